"""The paper's experiments: what is trained and generated for each, and what is written of it."""

from stib_fast.reproduction.experiment import Experiment, Finished, Picture, Products
from stib_fast.reproduction.experiments import EXPERIMENTS
from stib_fast.reproduction.page import write_page
from stib_fast.reproduction.reproduce import reproduce
from stib_fast.reproduction.units import Unit, UnitStore, in_own_process

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "Finished",
    "Picture",
    "Products",
    "Unit",
    "UnitStore",
    "in_own_process",
    "reproduce",
    "write_page",
]
