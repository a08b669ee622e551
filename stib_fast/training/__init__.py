"""Training: objective, loop, run folders, and the experiments."""

from stib_fast.training.artificial import (
    Artificial,
    ArtificialConfig,
    VectorModel,
    evaluation_points,
    read_arrays,
)
from stib_fast.training.loop import Interrupted, train
from stib_fast.training.objective import Terms, stib_objective
from stib_fast.training.optimisation import Optimisation
from stib_fast.training.qm9 import QM9, MoleculeData, QM9Config, SmilesModel
from stib_fast.training.run import Run
from stib_fast.training.trained import Trained, experiment_of, load

__all__ = [
    "QM9",
    "Artificial",
    "ArtificialConfig",
    "Interrupted",
    "MoleculeData",
    "Optimisation",
    "QM9Config",
    "Run",
    "SmilesModel",
    "Terms",
    "Trained",
    "VectorModel",
    "evaluation_points",
    "experiment_of",
    "load",
    "read_arrays",
    "stib_objective",
    "train",
]
