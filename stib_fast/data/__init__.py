"""Data sets: the artificial spiral, molecule tables, and their preparation."""

from stib_fast.data.batches import ShuffledBatches
from stib_fast.data.molecules import EV_PER_HARTREE, MoleculeTable, read_csv, read_qm9
from stib_fast.data.preprocessing import Standardiser, split
from stib_fast.data.spiral import Spiral, SpiralStream, sample

__all__ = [
    "EV_PER_HARTREE",
    "MoleculeTable",
    "ShuffledBatches",
    "Spiral",
    "SpiralStream",
    "Standardiser",
    "read_csv",
    "read_qm9",
    "sample",
    "split",
]
