"""Molecules as an experiment takes them: encoded, accounted for, and parted for training."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stib_fast.chem import SmilesTokenizer, Vocabulary
from stib_fast.data import LeftOut, MoleculeTable, Rows, Standardiser, split
from stib_fast.data.token_cache import RECORD, file_digest

DIGEST_FILE = "data.sha256"
REPORT_FILE = "data.json"
NEIGHBOURS = 20  # of the estimate of MI, which needs more molecules than that
# Where Z0 has many dimensions, the estimate of MI compares every pair of molecules.
INVARIANCE_WHOLE = 10_000
INVARIANCE_SAMPLE = 5_000


@dataclass(frozen=True)
class MoleculeData:
    """Which molecules of a file are taken, and how they are parted.

    Parameters
    ----------
    smiles : str
        Column of the SMILES.
    strict : bool
        Whether rows that cannot be used are an error, or counted, told and left out.
    check : bool
        Let RDKit read every string: those that are no molecule cannot be used, and two ways to
        write a molecule count as one.
    validation_fraction : float
        Share of the molecules that are measured along training and settings are chosen by.
    test_fraction : float
        Share of the molecules that only the evaluation at the end sees. With 0 there is no test
        part, and the evaluation is of the validation part.
    split_seed : int
        Of the choice of both.
    max_length : int or None
        Tokens of a string with its end mark; None: as many as the longest has.
    """

    smiles: str = "smiles"
    strict: bool = False
    check: bool = False
    validation_fraction: float = 0.05
    test_fraction: float = 0.05
    split_seed: int = 0
    max_length: int | None = None


@dataclass(frozen=True)
class MoleculeSet:
    """Encoded molecules.

    Parameters
    ----------
    source : str
        Their file.
    ids : Rows
        Token ids, gathered by row: integer [n, L].
    targets : Tensor
        float64, shape [N, T].
    left_out : tuple of LeftOut
        What else the file held.
    """

    source: str
    ids: Rows
    targets: Tensor
    left_out: tuple[LeftOut, ...]

    def __len__(self) -> int:
        return len(self.targets)

    def report(self) -> dict[str, object]:
        """Return what was read, kept and left out, as plain JSON values."""
        return {
            "read": len(self) + sum(note.count for note in self.left_out),
            "kept": len(self),
            "left_out": [asdict(note) for note in self.left_out],
        }

    def tell(self) -> None:
        """Write a line to standard error for each reason why rows were left out."""
        read = self.report()["read"]
        for note in self.left_out:
            print(f"{self.source}: of {read} rows left out {note}", file=sys.stderr)


class Part:
    """Some rows of others."""

    def __init__(self, whole: Rows, rows: Tensor) -> None:
        self._whole = whole
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self._whole[self._rows[rows]]


class TrainingSet:
    """Molecules in three parts, `train_rows`, `validation_rows` and `test_rows`.

    Targets are standardised on the training part. `evaluated_rows` are the test part, or the
    validation part where there is no test part.

    Raises
    ------
    ValueError
        For too few molecules, or a target that is the same in all training molecules or in all of
        those on which invariance is measured.
    """

    def __init__(
        self, molecules: MoleculeSet, data: MoleculeData, batch: int, names: Sequence[str]
    ) -> None:
        require_rows(molecules, names)
        self.molecules = molecules
        self.ids, self.targets = molecules.ids, molecules.targets
        self.train_rows, self.validation_rows, self.test_rows = split(
            len(molecules), data.validation_fraction, data.test_fraction, data.split_seed
        )
        part = "test" if len(self.test_rows) else "validation"
        self.evaluated_rows = self.test_rows if len(self.test_rows) else self.validation_rows
        if len(self.train_rows) < batch:
            raise ValueError(
                f"{molecules.source}: {len(self.train_rows)} training molecules are fewer than "
                f"optimisation.batch {batch}; lower that, molecules.validation_fraction or "
                "molecules.test_fraction"
            )
        measured = invariance_rows(self.evaluated_rows, len(molecules))
        if len(measured) <= NEIGHBOURS:
            raise ValueError(
                f"{molecules.source}: {len(measured)} {part} molecules are too few to measure "
                f"invariance on; raise molecules.{part}_fraction"
            )
        self._require_variance(self.train_rows, names, "training molecules; leave it out")
        # A target that varies in the training part varies in the whole data set, too.
        self._require_variance(
            measured,
            names,
            f"{part} molecules to measure invariance on; leave it out or raise "
            f"molecules.{part}_fraction",
        )
        self.standardiser = Standardiser.fit(self.targets[self.train_rows])
        self.standardised = self.standardiser.transform(self.targets.float())

    def _require_variance(self, rows: Tensor, names: Sequence[str], where: str) -> None:
        for name, values in zip(names, self.targets[rows].T, strict=True):
            if (values == values[0]).all():
                raise ValueError(
                    f"{self.molecules.source}: target {name!r} is {float(values[0]):g} in all "
                    f"{len(rows)} {where}"
                )


def encode_table(table: MoleculeTable, vocabulary: Vocabulary, data: MoleculeData) -> MoleculeSet:
    """Encode a table, and leave out what the vocabulary or the length does not allow.

    Raises
    ------
    ValueError
        If no molecule is left, or one cannot be encoded and `data` is strict.
    """
    assert data.max_length is not None
    tokenizer = SmilesTokenizer(vocabulary, data.max_length)
    ids = replace(tokenizer, on_unknown="drop", on_overflow="drop").encode(table.smiles)
    dropped = np.ones(len(table), dtype=bool)
    dropped[ids.rows.numpy()] = False
    table = table.without(
        dropped,
        "with tokens or a length that the model does not have",
        lambda i: _refusal(tokenizer, table.smiles[i]),
        strict=data.strict,
    )
    if not len(table):
        raise ValueError(f"{table.source}: no usable row is left: {table.left_out[-1]}")
    return MoleculeSet(table.source, ids.ids, table.targets, table.left_out)


def _refusal(tokenizer: SmilesTokenizer, smiles: str) -> str:
    """What the tokeniser has against a string."""
    try:
        tokenizer.encode([smiles])
    except ValueError as error:
        return str(error).removeprefix("row 0: ")
    raise AssertionError(f"{smiles!r} is encoded alone, but not among others")


def require_rows(molecules: MoleculeSet, names: Sequence[str]) -> None:
    """Refuse molecules that are too few to estimate MI and fit probes of all targets on."""
    needed = max(NEIGHBOURS, len(names)) + 1
    if len(molecules) < needed:
        raise ValueError(
            f"{molecules.source}: {len(molecules)} usable rows are too few: at least {needed} "
            f"are needed for {len(names)} targets"
        )


def sample(rows: Tensor, count: int) -> Tensor:
    """Take at most `count` of the rows, always the same."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(count))
    return rows[order[:count]] if len(rows) > count else rows


def invariance_rows(evaluated: Tensor, total: int) -> Tensor:
    """Rows on which MI and probes are measured: few enough for the k-d tree and the probes."""
    if total <= INVARIANCE_WHOLE:
        return torch.arange(total)
    return sample(evaluated, INVARIANCE_SAMPLE)


def digest(data: str) -> str:
    """SHA-256 of a file, or of the record of a token cache, which holds those of its parts."""
    path = Path(data)
    return file_digest(path / RECORD if path.is_dir() else path)


def data_report(folder: Path) -> dict[str, Any]:
    """What a run folder says of the rows of its file."""
    return json.loads((folder / REPORT_FILE).read_text())
