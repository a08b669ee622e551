"""Arrow columns, however a file stores them, as strings and as numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow


def as_strings(path: Path, name: str, column: pyarrow.Array) -> pyarrow.Array:
    """Read a column as strings.

    Parameters
    ----------
    path, name : Path, str
        The file and its column, for messages.
    column : pyarrow.Array
        Of strings, of bytes in UTF-8, of nulls, or a dictionary of such.

    Returns
    -------
    pyarrow.Array
        Of type string or large_string; null where a cell is.

    Raises
    ------
    ValueError
        Another type, or bytes that are not UTF-8.

    Examples
    --------
    >>> import pyarrow
    >>> column = pyarrow.array(["C", None, "C"]).dictionary_encode()
    >>> as_strings(Path("a.parquet"), "smiles", column).to_pylist()
    ['C', None, 'C']
    """
    import pyarrow

    column = _decoded(column)
    if _is(column, "string", "large_string"):
        return column
    if not (_is_text(column) or _is(column, "null")):
        raise ValueError(f"{path}: column {name!r} holds {column.type}, not strings")
    try:
        return column.cast(pyarrow.large_string())
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: column {name!r} is not UTF-8") from error


def as_numbers(path: Path, name: str, column: pyarrow.Array) -> NDArray[numpy.float64]:
    """Read a column as numbers.

    Parameters
    ----------
    path, name : Path, str
        The file and its column, for messages.
    column : pyarrow.Array
        Of numbers, of what `as_strings` reads, or a dictionary of such.

    Returns
    -------
    ndarray
        float64 [N]; NaN where a cell is null or no number (`parse_number`).

    Raises
    ------
    ValueError
        Another type.

    Examples
    --------
    >>> import pyarrow
    >>> as_numbers(Path("a.csv"), "gap", pyarrow.array(["2", "1.5*^-5", "1_000", ""]))
    array([2.0e+00, 1.5e-05,     nan,     nan])
    """
    import pyarrow

    column = _decoded(column)
    if _is_text(column):
        column = as_strings(path, name, column)
    try:
        return column.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
    except pyarrow.ArrowNotImplementedError as error:
        raise ValueError(f"{path}: column {name!r} holds {column.type}, not numbers") from error
    except pyarrow.ArrowInvalid:
        return numpy.array([parse_number(cell) for cell in column.to_pylist()], numpy.float64)


def parse_number(cell: str | None) -> float:
    """Read a cell; NaN where it is no number. QM9 writes some exponents as ``1.5*^-5``.

    Examples
    --------
    >>> parse_number(" 1.5*^-5 "), parse_number("1_000"), parse_number(None)
    (1.5e-05, nan, nan)
    """
    text = (cell or "").replace("*^", "e")
    try:
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan


def _decoded(column: pyarrow.Array) -> pyarrow.Array:
    import pyarrow

    if not _is(column, "dictionary"):
        return column
    words = column.dictionary
    if _is(words, "string_view", "binary_view"):  # of which Arrow takes none
        words = words.cast(pyarrow.large_binary())
    return words.take(column.indices)


def _is_text(column: pyarrow.Array) -> bool:
    return _is(
        column, "string", "large_string", "string_view", "binary", "large_binary", "binary_view"
    )


def _is(column: pyarrow.Array, *kinds: str) -> bool:
    """Whether the column is of one of these types, of which old versions of Arrow lack some."""
    from pyarrow import types

    tests = [getattr(types, f"is_{kind}", None) for kind in kinds]
    return any(test(column.type) for test in tests if test)
