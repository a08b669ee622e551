from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from stib_fast.data.columns import column_batches, read_columns

WRITERS = {
    "t.csv": lambda path, cells: path.write_text("a\n" + "".join(f"{cell}\n" for cell in cells)),
    "t.parquet": lambda path, cells: parquet.write_table(pa.table({"a": cells}), path),
    "t.npz": lambda path, cells: np.savez(path, a=cells),
}
IN_BATCHES = ["t.csv", "t.parquet"]


@pytest.mark.parametrize("name", IN_BATCHES)
def test_rows_are_counted_through_batches(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("stib_fast.chem.files.BLOCK_BYTES", 64)
    monkeypatch.setattr("stib_fast.chem.files._PARQUET_ROWS", 16)
    cells = [str(cell) for cell in range(100)]
    WRITERS[name](tmp_path / name, cells)
    np.testing.assert_array_equal(read_columns(tmp_path / name, ["a"])["a"], np.arange(100))
    cells[90] = "bad"
    WRITERS[name](tmp_path / name, cells)
    with pytest.raises(ValueError, match="column 'a', row 91: 'bad' is not a number"):
        read_columns(tmp_path / name, ["a"])


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    "integers",
    [
        np.arange(2**63, 2**63 + 5, dtype=np.uint64),
        np.array([0, -(2**53) - 1]),
        np.array([2**53 + 1, 0]),
    ],
)
def test_integers_that_would_be_rounded_are_refused(name, integers, tmp_path) -> None:
    WRITERS[name](tmp_path / name, integers)
    with pytest.raises(ValueError, match=r"column 'a' holds the integer .* subtract an offset"):
        read_columns(tmp_path / name, ["a"])


@pytest.mark.parametrize("name", WRITERS)
def test_exact_integers_and_large_numbers_are_read(name: str, tmp_path: Path) -> None:
    for cells in (np.array([2**53, -(2**60), 3]), np.array([1e17, -1.5e300, 3])):
        WRITERS[name](tmp_path / name, cells)
        np.testing.assert_array_equal(read_columns(tmp_path / name, ["a"])["a"], cells)


def test_object_arrays_are_named_and_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", a=np.array([1, None], dtype=object), b=np.zeros(2))
    with pytest.raises(ValueError, match=r"array 'a' is an object array.*save array.astype\(float"):
        read_columns(tmp_path / "t.npz", ["b", "a"])
    assert list(read_columns(tmp_path / "t.npz", ["b"])) == ["b"]


def test_an_array_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "t.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"t\.npz: not a readable npz file"):
        read_columns(tmp_path / "t.npz", ["a"])


def test_row_groups_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    cells = [str(cell) for cell in range(100)]
    parquet.write_table(pa.table({"b": cells, "a": cells}), path, row_group_size=10)
    found = list(column_batches(path, ["a"], [2, 3, 7], first_row=20))
    rows = [*range(20, 40), *range(70, 80)]
    np.testing.assert_array_equal(np.concatenate([batch[0] for batch in found]), rows)
    cells[31] = "bad"
    parquet.write_table(pa.table({"a": cells}), path, row_group_size=10)
    with pytest.raises(ValueError, match="column 'a', row 32: 'bad' is not a number"):
        list(column_batches(path, ["a"], [2, 3], first_row=20))
