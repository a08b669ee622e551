"""The SMILES strings that benchmarks of text run on."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from stib_fast.chem import Vocabulary

MADE_UP = 200_000


@dataclass(frozen=True)
class Molecules:
    """Strings, a number for each to be predicted, and where they are from."""

    source: str
    strings: list[str]
    targets: list[float]


def load(path: Path | None, most: int | None = None) -> Molecules:
    """Read a file; without one ZINC where STIB_FAST_DATA points to it, else strings made up.

    Parameters
    ----------
    path : Path or None
        CSV with a column ``smiles``, and perhaps ``qed``, or text of one string a line, blanks and
        what follows them left out; either with ``.gz``. No package beyond Python's own reads it.
    most : int, optional
        So many of them at most.
    """
    if path is None and "STIB_FAST_DATA" in os.environ:
        path = Path(os.environ["STIB_FAST_DATA"]) / "zinc250k.csv.gz"
    if path is None:
        strings = list(islice(made_up(), most or MADE_UP))
        return Molecules("made up of ZINC's tokens", strings, [len(s) / 100 for s in strings])
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        if path.name.endswith((".csv", ".csv.gz")):
            rows = list(islice(csv.DictReader(file), most))
            strings = [row["smiles"].strip() for row in rows]
            targets = [
                float(row.get("qed") or len(s) / 100) for row, s in zip(rows, strings, strict=True)
            ]
        else:
            strings = [line.split()[0] for line in islice(file, most) if line.strip()]
            targets = [len(s) / 100 for s in strings]
    return Molecules(path.name, strings, targets)


def made_up() -> Iterator[str]:
    """Strings with the frequencies of ZINC's tokens and as long as its strings."""
    vocabulary = Vocabulary.preset("zinc250k")
    weights = np.array(vocabulary.counts) / sum(vocabulary.counts)
    random = np.random.default_rng(0)
    while True:
        count = int(np.clip(random.normal(38, 8), 10, 72))
        yield "".join(random.choice(vocabulary.tokens, count, p=weights))
