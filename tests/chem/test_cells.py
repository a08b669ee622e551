from __future__ import annotations

import math
from pathlib import Path

import numpy
import pyarrow
import pytest

from stib_fast.chem.cells import as_numbers, as_strings, parse_number

PATH = Path("a.parquet")
TEXTS = [pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.large_binary()]
if hasattr(pyarrow, "string_view"):
    TEXTS += [pyarrow.string_view(), pyarrow.binary_view()]


def of_type(cells: list[str | None], kind: pyarrow.DataType) -> pyarrow.Array:
    if "binary" in str(kind):
        return pyarrow.array([cell and cell.encode() for cell in cells], kind)
    return pyarrow.array(cells, kind)


def dictionary(cells: list[str | None], kind: pyarrow.DataType) -> pyarrow.Array:
    words = sorted({cell for cell in cells if cell is not None})
    places = pyarrow.array([None if cell is None else words.index(cell) for cell in cells])
    return pyarrow.DictionaryArray.from_arrays(places, of_type(words, kind))


@pytest.mark.parametrize("make", [of_type, dictionary])
@pytest.mark.parametrize("kind", TEXTS, ids=str)
def test_text_of_any_type(kind, make):
    cells = ["C", None, "é", "C"]
    found = as_strings(PATH, "s", make(cells, kind))
    assert found.type in (pyarrow.string(), pyarrow.large_string())
    assert found.to_pylist() == cells
    for odd, value in (("1.5*^-5", 1.5e-5), ("1_000", math.nan), ("x", math.nan)):
        numbers = as_numbers(PATH, "x", make(["2", None, odd, " 3 "], kind))
        assert numbers.dtype == numpy.float64
        numpy.testing.assert_array_equal(numbers, [2, math.nan, value, 3])


def test_nulls():
    nulls = pyarrow.nulls(2)
    assert as_strings(PATH, "s", nulls).to_pylist() == [None, None]
    assert numpy.isnan(as_numbers(PATH, "x", nulls)).all()


def test_numbers_of_any_type():
    for kind in (pyarrow.int8(), pyarrow.float32(), pyarrow.uint64(), pyarrow.decimal128(20, 1)):
        column = pyarrow.array([1, None, 2]).cast(kind)
        for each in (column, column.dictionary_encode()):
            numpy.testing.assert_array_equal(as_numbers(PATH, "x", each), [1, math.nan, 2])


def test_other_types_are_refused():
    with pytest.raises(ValueError, match=r"a.parquet: column 's' holds int64, not strings"):
        as_strings(PATH, "s", pyarrow.array([1]))
    with pytest.raises(ValueError, match=r"a.parquet: column 's' is not UTF-8"):
        as_strings(PATH, "s", pyarrow.array([b"\xff"]))
    with pytest.raises(ValueError, match=r"a.parquet: column 'x' holds list.*, not numbers"):
        as_numbers(PATH, "x", pyarrow.array([[1.0]]))


@pytest.mark.parametrize(
    ("cell", "value"), [("-1e3", -1000), ("+2", 2), ("7*^2", 700), (" 1\n", 1), ("inf", math.inf)]
)
def test_cells_that_are_numbers(cell, value):
    assert parse_number(cell) == value


@pytest.mark.parametrize("cell", [None, "", "NA", "nan", "1_000", "1,5", "0x10", "1 2"])
def test_cells_that_are_none(cell):
    assert math.isnan(parse_number(cell))
