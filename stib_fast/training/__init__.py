"""Training: objective, loop, run folders, and the experiments."""

from stib_fast.training.artificial import (
    Artificial,
    ArtificialConfig,
    VectorModel,
    evaluation_points,
    read_arrays,
)
from stib_fast.training.execution import Execution
from stib_fast.training.loop import Interrupted, train
from stib_fast.training.molecule_data import MoleculeData, data_report
from stib_fast.training.molecules import MoleculeConfig, MoleculeExperiment, SmilesModel
from stib_fast.training.objective import (
    Terms,
    cvae_objective,
    cvib_objective,
    predictive_objective,
    stib_objective,
)
from stib_fast.training.optimisation import Optimisation
from stib_fast.training.processes import (
    ALONE,
    Processes,
    job,
    joined_processes,
    may_restart,
)
from stib_fast.training.qm9 import QM9, QM9Config, QM9Data
from stib_fast.training.run import Run
from stib_fast.training.table import Table, TableConfig, TableData
from stib_fast.training.trained import (
    MOLECULE_EXPERIMENTS,
    Trained,
    experiment_of,
    load,
    selected_model,
)
from stib_fast.training.zinc import Zinc, ZincConfig

__all__ = [
    "ALONE",
    "MOLECULE_EXPERIMENTS",
    "QM9",
    "Artificial",
    "ArtificialConfig",
    "Execution",
    "Interrupted",
    "MoleculeConfig",
    "MoleculeData",
    "MoleculeExperiment",
    "Optimisation",
    "Processes",
    "QM9Config",
    "QM9Data",
    "Run",
    "SmilesModel",
    "Table",
    "TableConfig",
    "TableData",
    "Terms",
    "Trained",
    "VectorModel",
    "Zinc",
    "ZincConfig",
    "cvae_objective",
    "cvib_objective",
    "data_report",
    "evaluation_points",
    "experiment_of",
    "job",
    "joined_processes",
    "load",
    "may_restart",
    "predictive_objective",
    "read_arrays",
    "selected_model",
    "stib_objective",
    "train",
]
