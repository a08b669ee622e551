"""Data sets: the artificial spiral, molecule tables, their preparation, and their moments."""

from stib_fast.data.batches import Rows, ShuffledBatches
from stib_fast.data.molecules import (
    EV_PER_HARTREE,
    LeftOut,
    MoleculeTable,
    read_qm9,
    read_table,
)
from stib_fast.data.preprocessing import Standardiser, split
from stib_fast.data.spiral import Spiral, SpiralStream, sample
from stib_fast.data.streaming import TableMoments, stream_moments, table_moments
from stib_fast.data.token_cache import CachedRows, TokenCache
from stib_fast.data.token_writer import CacheSettings, write_token_cache

__all__ = [
    "EV_PER_HARTREE",
    "CacheSettings",
    "CachedRows",
    "LeftOut",
    "MoleculeTable",
    "Rows",
    "ShuffledBatches",
    "Spiral",
    "SpiralStream",
    "Standardiser",
    "TableMoments",
    "TokenCache",
    "read_qm9",
    "read_table",
    "sample",
    "split",
    "stream_moments",
    "table_moments",
    "write_token_cache",
]
