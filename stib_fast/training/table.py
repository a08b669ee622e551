"""STIB on anybody's table of molecules, or on a token cache."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stib_fast.chem import SmilesTokenizer, Vocabulary
from stib_fast.data import LeftOut, MoleculeTable, read_table
from stib_fast.data.molecules import usable
from stib_fast.data.token_cache import TokenCache, read_record
from stib_fast.training.molecule_data import MoleculeData, MoleculeSet, Part, encode_table
from stib_fast.training.molecules import CHUNK, MoleculeConfig, MoleculeExperiment

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class TableData(MoleculeData):
    """Which columns of a table are taken, beside what `MoleculeData` says.

    Parameters
    ----------
    targets : tuple of str
        Columns to predict, each once; of a token cache, all that it holds where none is named.

    Raises
    ------
    ValueError
        A target is named twice.
    """

    check: bool = True
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.targets:
            if self.targets.count(name) > 1:
                raise ValueError(f"target {name!r} is named more than once")


@dataclass(frozen=True)
class TableConfig(MoleculeConfig):
    """Configuration of the experiment on a table; `data` is its file, or a token cache."""

    molecules: TableData = field(default_factory=TableData)


class Table(MoleculeExperiment[TableConfig]):
    """Named columns of a table, in their own units.

    Writing a token cache never asks RDKit. With `check` its strings are decoded and RDKit reads
    them here, as those of a table; without, they are not checked by RDKit, and stay on disk.
    """

    name = "table"
    config_type = TableConfig

    @property
    def predictions(self) -> tuple[str, ...]:
        """The columns."""
        return self.config.molecules.targets

    @classmethod
    def read(cls, config: TableConfig) -> MoleculeTable:
        """Read the columns of a file."""
        data = config.molecules
        if not data.targets:
            raise ValueError("name the columns to predict: --target COL, or molecules.targets")
        return read_table(
            config.data,
            data.smiles,
            targets=data.targets,
            strict=data.strict,
            check=data.check,
            unique=True,
        )

    @classmethod
    def from_file(cls, config: TableConfig) -> Self:
        """Read a table or a token cache, which brings its vocabulary and length."""
        if not Path(config.data).is_dir():
            return super().from_file(config)
        cache = TokenCache(config.data)
        molecules = replace(
            config.molecules,
            targets=config.molecules.targets or cache.target_names,
            max_length=cache.max_length,
        )
        if not molecules.targets:
            raise ValueError(f"{config.data} holds no targets: encode the file again with some")
        config = replace(config, molecules=molecules)
        encoded = cls.load(config, cache.vocabulary)
        encoded.tell()
        return cls(config, cache.vocabulary, encoded)

    @classmethod
    def load(cls, config: TableConfig, vocabulary: Vocabulary) -> MoleculeSet:
        """Read a table, or open a token cache, under a known vocabulary."""
        if not Path(config.data).is_dir():
            return super().load(config, vocabulary)
        cache = _fitting_cache(config, vocabulary)
        if not config.molecules.check:
            return _on_disk(config, cache)
        return encode_table(_checked(config, cache), vocabulary, config.molecules)


class _CachedIds:
    """The ids of a token cache, gathered from its files."""

    def __init__(self, cache: TokenCache) -> None:
        self._cache = cache

    def __len__(self) -> int:
        return len(self._cache)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self._cache[rows].ids


def _fitting_cache(config: TableConfig, vocabulary: Vocabulary) -> TokenCache:
    """Open a token cache that the model can read, with its targets, and with `strict` whole."""
    data = config.molecules
    cache = TokenCache(config.data)
    if cache.vocabulary.fingerprint != vocabulary.fingerprint:
        raise ValueError(
            f"{config.data} was encoded with another vocabulary than the model's: encode the file "
            "again with the run's vocabulary.json"
        )
    marks = read_record(Path(config.data)).settings
    if cache.max_length != data.max_length or marks["bos"] or not marks["eos"]:
        raise ValueError(
            f"{config.data} holds {cache.max_length} tokens a string, bos {marks['bos']}, eos "
            f"{marks['eos']}; the model reads {data.max_length}, without bos, with eos"
        )
    missing = [name for name in data.targets if name not in cache.target_names]
    if missing:
        raise ValueError(
            f"{config.data}: target {missing[0]!r} is missing; there are {list(cache.target_names)}"
        )
    dropped = _dropped(cache)
    if dropped and data.strict:
        raise ValueError(
            f"{config.data}: rows that strict reading refuses were dropped when it was written: "
            + ", ".join(map(str, dropped))
        )
    return cache


def _dropped(cache: TokenCache) -> list[LeftOut]:
    """Rows that were dropped when a cache was written."""
    return [
        LeftOut(reason.replace("_", " "), count, ())
        for reason, count in cache.counts.items()
        if count and reason not in ("read", "kept")
    ]


def _targets(config: TableConfig, cache: TokenCache) -> Tensor:
    return cache.targets[:, [cache.target_names.index(name) for name in config.molecules.targets]]


def _checked(config: TableConfig, cache: TokenCache) -> MoleculeTable:
    """Decode a cache for RDKit."""
    data = config.molecules
    tokenizer = SmilesTokenizer(cache.vocabulary, cache.max_length)
    table = MoleculeTable(
        [text for shard in cache.shards for text in tokenizer.decode(shard.ids)],
        _targets(config, cache),
        data.targets,
        source=config.data,
        rows=torch.cat([shard.rows for shard in cache.shards]) + 1,
        left_out=tuple(_dropped(cache)),
    )
    return usable(table, strict=data.strict, check=True, unique=True)


def _on_disk(config: TableConfig, cache: TokenCache) -> MoleculeSet:
    """Leave the ids of a cache where they are."""
    kept, repeated = _first_of_each(cache)
    left_out = _dropped(cache)
    if len(repeated):
        first = tuple(f"row {row + 1}" for row in cache[repeated[:5]].rows.tolist())
        left_out.append(LeftOut("repeating a string", len(repeated), first))
        if config.molecules.strict:
            raise ValueError(f"{config.data}: rows that strict reading refuses: {left_out[-1]}")
    targets = _targets(config, cache)[kept]
    return MoleculeSet(config.data, Part(_CachedIds(cache), kept), targets, tuple(left_out))


def _first_of_each(cache: TokenCache) -> tuple[Tensor, Tensor]:
    """Rows of a cache that hold a string for the first time, and the others.

    Strings are told apart by 64 bits, sums of their ids with random weights.
    """
    weights = torch.randint(
        -(2**63), 2**63 - 1, (cache.max_length,), generator=torch.Generator().manual_seed(0)
    )
    sums = [
        (part.long() * weights).sum(1) for shard in cache.shards for part in shard.ids.split(CHUNK)
    ]
    _, first = np.unique(torch.cat(sums).numpy(), return_index=True)
    is_first = torch.zeros(len(cache), dtype=torch.bool)
    is_first[torch.from_numpy(first)] = True
    return is_first.nonzero().squeeze(1), (~is_first).nonzero().squeeze(1)
