"""Columns of numbers from tables and array files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stib_fast.archives import open_npz
from stib_fast.chem.cells import as_numbers
from stib_fast.chem.files import read_batches

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".csv", ".csv.gz", ".parquet", ".npz")
# What a cell of text without a number says, in lower case.
MISSING = ("", "na", "n/a", "nan", "null", "none")
BATCH_ROWS = 2**16
INTEGERS_END = 2**53  # from here float64 skips some


def read_columns(path: str | Path, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    r"""Read columns of numbers.

    Parameters
    ----------
    path : str or Path
        ``.csv``, ``.csv.gz`` or ``.parquet``, as `stib_fast.chem.files.read_batches` reads them, or
        ``.npz``, where a name is that of an array [n] or [n, columns].
    names : sequence of str
        Which columns, each once.

    Returns
    -------
    dict of str to ndarray
        By name, float64: [n], or [n, columns] where an array has that shape. NaN where a cell is
        null, empty, or says NA, N/A, NaN, null or none.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        A column that is missing (the message lists those that are there), appears or is asked for
        more than once, or holds no numbers (naming column and row, from 1 after the header) or
        integers that float64 rounds; arrays of different lengths, or of objects; no rows; a damaged
        file, or one of another kind.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "table.csv"
    ...     _ = path.write_text("a,b\n1,x\n,y\n2.5,z\n")
    ...     read_columns(path, ["a"])
    {'a': array([1. , nan, 2.5])}
    """
    path = Path(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise ValueError(f"{path}: the name of a table ends in one of {', '.join(SUFFIXES)}")
    columns = array_columns(path, names) if path.suffix.lower() == ".npz" else _cells(path, names)
    if not any(map(len, columns.values())):
        raise ValueError(f"{path}: the file holds no rows")
    return columns


def array_columns(path: Path, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Read arrays of an ``.npz`` file as `read_columns` does; they may have no rows."""
    for name in names:
        if list(names).count(name) > 1:
            raise ValueError(f"{path}: array {name!r} is asked for more than once")
    found = {}
    try:
        with open_npz(path) as archive:
            there = list(archive.files)
            for name in names:
                if name in there:
                    found[name] = archive[name]
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise ValueError(
            f"{path}: array {name!r} is an object array, which is pickled and not read; save "
            "array.astype(float) instead"
        ) from error
    for name in names:
        if name not in found:
            raise ValueError(f"{path}: array {name!r} is missing; there are {there}")
        array = found[name]
        if array.ndim not in (1, 2) or array.dtype.kind not in "fiub" or 0 in array.shape[1:]:
            raise ValueError(
                f"{path}: array {name!r} is {array.dtype} {array.shape}, not numbers [n] or "
                "[n, columns]"
            )
    columns = {name: array.astype(np.float64) for name, array in found.items()}
    for name, numbers in columns.items():
        if found[name].dtype.kind in "iu":
            big = np.abs(numbers) >= INTEGERS_END
            _refuse_rounded(path, name, found[name][big].tolist(), numbers[big].tolist())
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path}: arrays differ in length: {lengths}")
    return columns


def _cells(path: Path, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    parts: list[list[NDArray[np.float64]]] = [[np.empty(0)] for _ in names]
    for batch in column_batches(path, names):
        for part, column in zip(parts, batch, strict=True):
            part.append(column)
    return {name: np.concatenate(part) for name, part in zip(names, parts, strict=True)}


def column_batches(
    path: str | Path,
    names: Sequence[str],
    row_groups: Sequence[int] | None = None,
    first_row: int = 0,
) -> Iterator[list[NDArray[np.float64]]]:
    r"""Read columns of a table as `read_columns` does, batch by batch.

    Parameters
    ----------
    path : str or Path
        ``.csv``, ``.csv.gz`` or ``.parquet``.
    names : sequence of str
        Which columns, each once.
    row_groups : sequence of int, optional
        Of a Parquet file: read these alone.
    first_row : int
        The rows of the file before the first that is read, for messages.

    Yields
    ------
    list of ndarray
        float64 [n] for each name; of CSV about 16 MB of the file, of Parquet 65,536 rows.

    Raises
    ------
    OSError, ValueError
        As for `read_columns`; a file without rows yields nothing.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "table.csv"
    ...     _ = path.write_text("a,b\n1,x\n,y\n2.5,z\n")
    ...     next(column_batches(path, ["a"]))
    [array([1. , nan, 2.5])]
    """
    path = Path(path)
    if row_groups is None:
        batches = read_batches(path, names)
    else:
        batches = _row_groups(path, names, row_groups)
    for batch in batches:
        pairs = zip(names, batch.columns, strict=True)
        yield [_numbers(path, name, column, first_row) for name, column in pairs]
        first_row += batch.num_rows


def _row_groups(
    path: Path, names: Sequence[str], row_groups: Sequence[int]
) -> Iterator[pyarrow.RecordBatch]:
    from pyarrow import ArrowException, parquet

    try:
        # Without these two settings a whole row group is read before its first batch is there.
        with parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as table:
            for batch in table.iter_batches(
                BATCH_ROWS, list(row_groups), list(names), use_threads=False
            ):
                yield batch.select(list(names))
    except (ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path}: damaged: {' '.join(str(error).split())}") from error


def _numbers(path: Path, name: str, column: pyarrow.Array, first_row: int) -> NDArray[np.float64]:
    import pyarrow

    numbers = as_numbers(path, name, column)
    for row in np.flatnonzero(np.isnan(numbers)).tolist():
        cell = column[row].as_py()
        if isinstance(cell, str) and cell.strip().lower() not in MISSING:
            place = f"{path}: column {name!r}, row {first_row + row + 1}"
            raise ValueError(f"{place}: {cell!r} is not a number")
    if not pyarrow.types.is_floating(column.type):  # which are rounded already
        big = np.flatnonzero(np.abs(numbers) >= INTEGERS_END).tolist()
        _refuse_rounded(path, name, [column[row].as_py() for row in big], numbers[big].tolist())
    return numbers


def _refuse_rounded(
    path: Path, name: str, cells: Sequence[object], numbers: Sequence[float]
) -> None:
    for cell, number in zip(cells, numbers, strict=True):
        text = str(cell)
        if text.lstrip("+-").isdecimal() and int(text) != number:
            raise ValueError(
                f"{path}: column {name!r} holds the integer {text}, which float64 rounds; subtract "
                "an offset from the column, or store it as floating-point numbers"
            )
