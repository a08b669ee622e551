"""Moments in one pass over what does not fit into memory: batches, and columns of table files."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial, reduce
from itertools import count, islice
from multiprocessing import get_context
from operator import add
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stib_fast import functional
from stib_fast.archives import load_arrays, save_arrays
from stib_fast.chem.files import columns_of, read_batches
from stib_fast.data.columns import SUFFIXES, array_columns, column_batches
from stib_fast.moments import Moments, as_arrays, from_arrays

OnBadRow = Literal["error", "drop"]

KIND = "moments of tables of stib_fast, version 1"
PIECE_ROWS = 2**20  # of a Parquet file, read by one worker at a time; part of the result's bits
# Numbers between 2^±400 have squares, and sums of squares, in float64: others are scaled.
LARGEST_EXPONENT = 400


def stream_moments(batches: Iterable[Tensor | Sequence[Tensor]]) -> Moments:
    """Moments of all rows of a loader or generator, in one pass, holding one batch at a time.

    Parameters
    ----------
    batches : iterable of Tensor or of sequences of Tensor
        Each the parts of a batch, as `stib_fast.functional.moments` takes them: [n, columns] of one
        dtype. A ``DataLoader`` of a ``TensorDataset`` gives such; any number of rows, also 0.

    Returns
    -------
    Moments
        On the device of the batches, without gradient. Batches are added up in their order: the
        same batches give the same bits. A column with NaN or infinity has NaN moments.

    Raises
    ------
    ValueError
        There are no batches; one, numbered from 0, that is no tensor or sequence of tensors, that
        `functional.moments` refuses, or whose columns or dtype are not the first one's.

    Notes
    -----
    A batch costs about 0.1 ms beside its rows: let it have thousands. Of rows spread over
    processes, each streams its own; then ``.gathered(group)`` makes one of them, or `Moments.save`
    in each and ``sum(map(Moments.load, files))`` anywhere.

    Examples
    --------
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> x, y = torch.arange(10.0)[:, None], torch.arange(10.0)[:, None] % 3
    >>> moments = stream_moments(DataLoader(TensorDataset(x, y), batch_size=4))
    >>> moments.count.item(), moments.mean.tolist(), moments.sizes
    (10.0, [4.5, 0.9], (1, 1))
    """
    total: Moments | None = None
    numbers = count()  # `enumerate` would hold a batch while the next one is made
    with torch.no_grad():
        for batch in batches:
            number = next(numbers)
            try:
                new = functional.moments(*_parts(batch))
                total = new if total is None else total + new
            except ValueError as error:
                raise ValueError(f"batch {number}: {error}") from error
            del batch
    if total is None:
        raise ValueError("batches: there are none")
    return total


def _parts(batch: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    parts = [batch] if isinstance(batch, Tensor) else batch
    if not isinstance(parts, (list, tuple)) or not all(isinstance(p, Tensor) for p in parts):
        raise ValueError(
            f"a {type(batch).__name__} is no tensor, nor a tuple or list of tensors; map the "
            "batches to such"
        )
    return parts


@dataclass(frozen=True)
class TableMoments:
    r"""Moments of named columns of tables, with what was left out; they add up with ``+``.

    `table_moments` makes them.

    Parameters
    ----------
    parts : tuple of tuple of str
        The columns of each part. Those of a two-dimensional array are ``name[0]``, ``name[1]``, ...
    scaled : Moments
        Of the columns divided by ``2 ** exponents``: whatever their size, their squares are float64
        numbers. Gaussian mutual information does not change with the scale.
    low, high : ndarray
        Least and largest value of each column, [d] float64; infinity and its negative without rows.
    missing, infinite : int
        Rows left out: those with a NaN or an empty cell, and others with an infinite value.
    first_bad : str
        Where the first of them was: file, column and row; empty without such rows.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [Path(folder) / "0.csv", Path(folder) / "1.csv"]
    ...     _ = paths[0].write_text("a,b\n1,2\n3,4\n"), paths[1].write_text("b,a\n9,8\n")
    ...     one, other = (table_moments(path, ["a"], ["b"]) for path in paths)
    >>> (one + other).rows, (one + other).moments.mean.tolist()
    (3, [4.0, 5.0])
    """

    parts: tuple[tuple[str, ...], ...]
    scaled: Moments
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    missing: int = 0
    infinite: int = 0
    first_bad: str = ""

    @property
    def rows(self) -> int:
        """Rows that were counted."""
        return int(self.scaled.count)

    @property
    def columns(self) -> list[str]:
        """Names of all columns in their order."""
        return [name for part in self.parts for name in part]

    @property
    def constant(self) -> list[str]:
        """Names of the columns that have one value in all rows."""
        return [self.columns[i] for i in np.flatnonzero(self.low == self.high)]

    @property
    def exponents(self) -> NDArray[np.int64]:
        """Each 0, but for columns whose squares are too large or small for float64."""
        return _exponents(self.low, self.high)

    @property
    def moments(self) -> Moments:
        """Moments in the columns' own units.

        Raises
        ------
        ValueError
            Naming a column whose squares are too large or too small for float64.
        """
        for i in np.flatnonzero(self.exponents):
            largest = max(abs(self.low[i]), abs(self.high[i]))
            raise ValueError(
                f"column {self.columns[i]!r} holds numbers up to {largest:.3g} in size, whose "
                "squares float64 does not hold; rescale it"
            )
        return self.scaled

    def __add__(self, other: TableMoments) -> TableMoments:
        if self.parts != other.parts:
            raise ValueError(
                f"moments of the columns {self.parts} and of {other.parts} do not add up"
            )
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        to = _exponents(low, high)
        return TableMoments(
            parts=self.parts,
            scaled=_times(self.scaled, self.exponents - to)
            + _times(other.scaled, other.exponents - to),
            low=low,
            high=high,
            missing=self.missing + other.missing,
            infinite=self.infinite + other.infinite,
            first_bad=self.first_bad or other.first_bad,
        )

    def save(self, path: str | Path) -> None:
        """Write them to a file, which is there as a whole or not at all.

        Raises
        ------
        OSError
            It cannot be written.
        """
        own = {name: np.array(getattr(self, name)) for name in OWN_ENTRIES}
        names = np.array(self.columns)
        save_arrays(path, KIND, {**as_arrays(self.scaled), **own, "columns": names})

    @classmethod
    def load(cls, path: str | Path) -> TableMoments:
        """Read what `save` wrote, bit for bit; nothing in the file is executed.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            It is damaged, or holds something else.
        """
        arrays = load_arrays(path, KIND)
        scaled = from_arrays(path, arrays)
        try:
            low, high, missing, infinite, first_bad = (arrays[name] for name in OWN_ENTRIES)
            columns = arrays["columns"].tolist()
        except KeyError as error:
            raise ValueError(f"{path}: damaged: {error} is missing") from error
        if not len(low) == len(high) == len(columns) == len(scaled.mean):
            raise ValueError(f"{path}: damaged: entries differ in length")
        names = iter(columns)
        parts = tuple(tuple(islice(names, size)) for size in scaled.sizes)
        return cls(parts, scaled, low, high, int(missing), int(infinite), str(first_bad))


OWN_ENTRIES = ("low", "high", "missing", "infinite", "first_bad")


def _exponents(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.int64]:
    """Powers of two that bring the columns into -1 ... 1, where that is needed."""
    largest = np.where(low <= high, np.maximum(np.abs(low), np.abs(high)), 0)
    exponents = np.frexp(largest)[1].astype(np.int64)
    return np.where(np.abs(exponents) > LARGEST_EXPONENT, exponents, 0)


def _times(moments: Moments, steps: NDArray[np.int64]) -> Moments:
    """Moments of the columns times 2 ** steps: exact, but for what underflows."""
    if not steps.any():
        return moments
    mean = np.ldexp(moments.mean.numpy(), steps)
    scatter = np.ldexp(moments.scatter.numpy(), steps[:, None] + steps)
    return Moments(
        moments.count,
        torch.from_numpy(mean),
        torch.from_numpy(scatter),
        moments.sizes,
        moments.dtype,
    )


def table_moments(
    files: str | Path | Iterable[str | Path],
    *parts: Sequence[str],
    nan: OnBadRow = "error",
    workers: int = 1,
) -> TableMoments:
    r"""Moments of columns of table files in one pass, in memory that does not grow with them.

    That of a batch of rows; of CSV also the 0.5 GB that Arrow reads ahead.

    Parameters
    ----------
    files : str or Path, or iterable of them
        ``.csv``, ``.csv.gz``, ``.parquet``, and ``.npz``, which is read at once; as
        `stib_fast.data.columns.read_columns` reads them. Some of them may hold no rows.
    *parts : sequence of str
        The columns of each part, such as x and y, each column once.
    nan : {"error", "drop"}
        What becomes of rows with a missing or infinite value: an error, once all files are read, or
        they are left out and counted.
    workers : int
        Processes that read at the same time: one file each, or about a million rows of a Parquet
        file with several row groups. They are spawned, which takes seconds, and a script that asks
        for more than one needs the guard ``if __name__ == "__main__":``.

    Returns
    -------
    TableMoments
        In float64. The files add up in their order: the same bits for any number of workers.

    Raises
    ------
    OSError
        A file cannot be read.
    ValueError
        No files, parts or columns; a column asked for twice; what `read_columns` refuses; rows with
        a missing or infinite value (file, column and row of the first, and how many there are).
    RuntimeError
        A worker was killed.

    Examples
    --------
    >>> import tempfile
    >>> from stib_fast import functional as F
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "table.csv"
    ...     _ = path.write_text("a,b,c\n1,2,4\n3,,5\n2,2,6\n0,1,3\n")
    ...     table = table_moments(path, ["a", "b"], ["c"], nan="drop")
    >>> table.rows, table.missing, table.first_bad[-17:]
    (3, 1, "column 'b', row 2")
    >>> F.gaussian_mi_of(table.moments).shape
    torch.Size([])
    """
    paths = [Path(file) for file in ([files] if isinstance(files, (str, Path)) else files)]
    groups, names = _checked(parts)
    if not paths:
        raise ValueError("files: at least one is needed")
    if nan not in get_args(OnBadRow):
        raise ValueError(f"nan must be one of {get_args(OnBadRow)}; got {nan!r}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")
    pieces = [piece for path in paths for piece in _pieces(path, names)]
    total = reduce(add, _counted(pieces, groups, workers))
    bad = total.missing + total.infinite
    if nan == "error" and bad:
        raise ValueError(
            f"{total.first_bad}: a missing or infinite value; there are {bad} such rows; "
            'nan="drop" leaves them out'
        )
    return total


def _checked(parts: Sequence[Sequence[str]]) -> tuple[tuple[tuple[str, ...], ...], list[str]]:
    """Give the parts as tuples, and the names of their columns."""
    if not parts or not all(parts) or any(isinstance(part, str) for part in parts):
        raise ValueError(f"parts: each is a list of one column or more; got {parts}")
    names = [name for part in parts for name in part]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"parts: column {name!r} is asked for more than once")
    return tuple(tuple(part) for part in parts), names


class _Piece(NamedTuple):
    """What one worker reads at a time."""

    path: Path
    row_groups: range | None = None
    first_row: int = 0


def _pieces(path: Path, names: Sequence[str]) -> list[_Piece]:
    """Cut a file in a way that does not depend on the number of workers."""
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise ValueError(f"{path}: the name of a table ends in one of {', '.join(SUFFIXES)}")
    if not name.endswith(".parquet"):
        return [_Piece(path)]
    from pyarrow import parquet

    there = columns_of(path)
    if any(there.count(name) != 1 for name in names):
        next(read_batches(path, names))  # says which and what there is
    metadata = parquet.read_metadata(path)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    pieces, begin, rows, first_row = [], 0, 0, 0
    for group, size in enumerate(sizes):
        rows += size
        if rows >= PIECE_ROWS or group + 1 == len(sizes):
            pieces.append(_Piece(path, range(begin, group + 1), first_row))
            begin, rows, first_row = group + 1, 0, first_row + rows
    return pieces or [_Piece(path)]


def _counted(
    pieces: Sequence[_Piece], parts: tuple[tuple[str, ...], ...], workers: int
) -> Iterator[TableMoments]:
    """Moments of each piece, in order."""
    workers = min(workers, len(pieces))
    if workers == 1:
        yield from (_count(piece, parts) for piece in pieces)
        return
    # Spawned: a fork would copy the locks of this process's threads as they stand.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,))
    try:
        yield from map(pickle.loads, pool.map(partial(_pickled_count, parts=parts), pieces))
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker was killed, perhaps for lack of memory; take fewer workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _pickled_count(piece: _Piece, parts: tuple[tuple[str, ...], ...]) -> bytes:
    # Left to itself, PyTorch would pass the tensors through shared memory of the worker.
    return pickle.dumps(_count(piece, parts))


def _count(piece: _Piece, parts: tuple[tuple[str, ...], ...]) -> TableMoments:
    """Moments of a piece, batch by batch."""
    path, names = piece.path, [name for part in parts for name in part]
    if path.suffix.lower() == ".npz":
        return _of_arrays(path, parts)
    total = _of_batch([np.empty(0) for _ in names], parts, path, 0)
    row = piece.first_row
    for columns in column_batches(path, names, piece.row_groups, row):
        total += _of_batch(columns, parts, path, row)
        row += len(columns[0])
    return total


def _of_arrays(path: Path, parts: tuple[tuple[str, ...], ...]) -> TableMoments:
    arrays = array_columns(path, [name for part in parts for name in part])
    columns: dict[str, NDArray[np.float64]] = {}
    labels = []
    for part in parts:
        first = len(columns)
        for name in part:
            array = arrays[name]
            if array.ndim == 1:
                columns[name] = array
            else:
                columns |= {f"{name}[{i}]": array[:, i] for i in range(array.shape[1])}
        labels.append(tuple(columns)[first:])
    return _of_batch(list(columns.values()), tuple(labels), path, 0)


def _of_batch(
    columns: Sequence[NDArray[np.float64]],
    parts: tuple[tuple[str, ...], ...],
    path: Path,
    first_row: int,
) -> TableMoments:
    values = np.stack(columns)
    low, high = _range(values)
    missing, infinite, first_bad = 0, 0, ""
    if not np.isfinite([low, high]).all():
        is_missing = np.isnan(values).any(axis=0)
        bad = np.logical_or(is_missing, np.isinf(values).any(axis=0))
        missing, infinite = int(is_missing.sum()), int((bad & ~is_missing).sum())
        first_bad = _first(bad, values, parts, path, first_row) if bad.any() else ""
        values = values[:, ~bad]
        low, high = _range(values)
    exponents = _exponents(low, high)
    if exponents.any():
        values = np.ldexp(values, -exponents[:, None])
    sides = torch.from_numpy(values).T.split([len(part) for part in parts], dim=1)
    return TableMoments(
        parts=parts,
        scaled=functional.moments(*sides),
        low=low,
        high=high,
        missing=missing,
        infinite=infinite,
        first_bad=first_bad,
    )


def _range(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least and largest value of each column; NaN where there is one."""
    return values.min(axis=1, initial=np.inf), values.max(axis=1, initial=-np.inf)


def _first(
    bad: NDArray[np.bool_],
    values: NDArray[np.float64],
    parts: tuple[tuple[str, ...], ...],
    path: Path,
    first_row: int,
) -> str:
    row = int(bad.argmax())
    names = [name for part in parts for name in part]
    name = names[int(np.isfinite(values[:, row]).argmin())]
    return f"{path}: column {name!r}, row {first_row + row + 1}"
