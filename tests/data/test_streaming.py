"""Moments in one pass, over batches and over tables."""

from __future__ import annotations

import gzip
import math
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from torch.utils.data import DataLoader, TensorDataset

from stib_fast import Moments
from stib_fast import functional as F
from stib_fast.data import TableMoments, stream_moments, streaming, table_moments

U = 2.0**-53


def assert_close(moments: Moments, rows: np.ndarray, batches: int) -> None:
    """Compare with 80-bit arithmetic where the system has it.

    Chan's update rounds, per batch, the scatter by some u √(S_ii S_jj). The means it subtracts are
    rounded by u M, M the largest size in a column, which by Cauchy and Schwarz is u M_j √(n S_ii)
    in the scatter, and n u² M_i M_j. Eight of each per batch.
    """
    exact = rows.astype(np.longdouble)
    n, mean = len(rows), exact.mean(0)
    scatter = ((exact - mean).T @ (exact - mean)).astype(float)
    most, spread = np.abs(rows).max(0), np.sqrt(np.diag(scatter))
    assert moments.count.item() == n
    steps = 8 * (batches + 1)
    np.testing.assert_array_less(
        np.abs(moments.mean.numpy() - mean.astype(float)), steps * U * most + 1e-300
    )
    mixed = np.outer(spread, math.sqrt(n) * most)
    allowed = steps * U * (np.outer(spread, spread) + mixed + mixed.T)
    allowed += n * (steps * U) ** 2 * np.outer(most, most)
    np.testing.assert_array_less(np.abs(moments.scatter.numpy() - scatter), allowed + 1e-300)


def assert_same_bits(a: Moments, b: Moments) -> None:
    for name in ("count", "mean", "scatter"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert (a.sizes, a.dtype) == (b.sizes, b.dtype)


# ---- batches -------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**16),
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    offset=st.sampled_from([0, 1, -1e4, 1e8]),
    drift=st.sampled_from([0, 1, 1e5]),
)
def test_any_cut_into_batches_gives_the_same(seed, sizes, offset, drift) -> None:
    if sum(sizes) == 0:
        sizes = [*sizes, 1]
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((sum(sizes), 3)) * [1, 1e-3, 50] + offset
    rows += drift * np.linspace(0, 1, len(rows))[:, None]  # batches with means of their own
    batches = [(b[:, :2], b[:, 2:]) for b in torch.from_numpy(rows).split(sizes)]
    moments = stream_moments(batches)
    assert moments.sizes == (2, 1)
    assert_close(moments, rows, len(sizes))
    assert_close(F.moments(*torch.from_numpy(rows).split([2, 1], 1)), rows, 1)


def test_loaders(backend: str) -> None:
    x, y = torch.randn(100, 3) + 10, torch.randn(100, 2)
    whole = F.moments(x, y)
    loader = DataLoader(TensorDataset(x, y), batch_size=32)
    found = stream_moments(loader)
    assert (found.sizes, found.dtype) == (whole.sizes, torch.float32)
    assert_close(found, torch.cat([x, y], 1).double().numpy(), 4)
    assert_same_bits(stream_moments(loader), found)
    one = stream_moments(DataLoader(x, batch_size=32))
    assert one.sizes == (3,)
    assert torch.equal(one.mean, found.mean[:3])


class Batches:
    """Makes batches anew, and sees which are still held when the next one is asked for."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.made: list[weakref.ref] = []
        self.held = 0

    def __iter__(self):
        return self

    def __next__(self) -> tuple[torch.Tensor, ...]:
        self.held = max(self.held, sum(ref() is not None for ref in self.made))
        if not self.left:
            raise StopIteration
        self.left -= 1
        batch = torch.randn(50, 2).requires_grad_(), torch.randn(50, 1)
        self.made += map(weakref.ref, batch)
        return batch


def test_no_batch_is_held() -> None:
    batches = Batches(20)
    moments = stream_moments(batches)
    assert len(batches.made) == 40
    assert moments.count.item() == 1000
    assert not moments.scatter.requires_grad
    assert batches.held == 0


def test_bad_batches() -> None:
    x = torch.randn(5, 2)
    for batches, message in [
        ([], "batches: there are none"),
        ([x, {"x": x}], "batch 1: a dict is no tensor, nor a tuple or list of tensors"),
        ([(x, 1)], "batch 0: a tuple is no tensor"),
        ([x, x[0]], r"batch 1: parts\[0\] must have shape"),
        ([x, x, x[:, :1]], r"batch 2: moments of parts \(2,\) .* and \(1,\)"),
        ([x, x.double()], "batch 1: moments of parts"),
    ]:
        with pytest.raises(ValueError, match=message):
            stream_moments(batches)


# ---- tables --------------------------------------------------------------------------------------


@pytest.fixture
def rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((300, 3)) * [1, 5, 1e-2] + [0, 1e4, -3]


def write(path: Path, rows: np.ndarray, names: str = "abc", row_group: int = 40) -> Path:
    columns = dict(zip(names, rows.T, strict=True))
    if path.suffix == ".parquet":
        parquet.write_table(pa.table(columns), path, row_group_size=row_group)
    elif path.suffix == ".npz":
        np.savez(path, **columns)
    else:
        lines = [",".join(columns), *(",".join(map(repr, row)) for row in rows.tolist())]
        text = ("\n".join(lines) + "\n").encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.fixture
def small(monkeypatch) -> None:
    """Batches and pieces of a few rows."""
    monkeypatch.setattr("stib_fast.chem.files.BLOCK_BYTES", 512)
    monkeypatch.setattr("stib_fast.data.columns.BATCH_ROWS", 16)
    monkeypatch.setattr(streaming, "PIECE_ROWS", 90)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet", "t.npz"])
def test_files_of_every_kind(name: str, rows: np.ndarray, tmp_path: Path) -> None:
    path = write(tmp_path / name, rows)
    table = table_moments(path, ["c", "a"], ["b"])
    assert table.parts == (("c", "a"), ("b",))
    assert (table.rows, table.missing, table.infinite, table.first_bad) == (300, 0, 0, "")
    assert table.moments.sizes == (2, 1)
    assert_close(table.moments, rows[:, [2, 0, 1]], 40)
    np.testing.assert_array_equal(table.low, rows.min(0)[[2, 0, 1]])
    np.testing.assert_array_equal(table.high, rows.max(0)[[2, 0, 1]])


def test_pieces_are_runs_of_row_groups(tmp_path: Path, rows: np.ndarray, monkeypatch) -> None:
    monkeypatch.setattr(streaming, "PIECE_ROWS", 90)
    path = write(tmp_path / "t.parquet", rows)
    found = [(p.row_groups, p.first_row) for p in streaming._pieces(path, ["a"])]
    assert found == [(range(3), 0), (range(3, 6), 120), (range(6, 8), 240)]


def test_same_bits_for_any_number_of_workers(rows, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(streaming, "PIECE_ROWS", 90)
    files = [
        write(tmp_path / "0.parquet", rows),
        write(tmp_path / "1.csv", rows[:50] * 2),
        write(tmp_path / "2.csv", rows[:0]),
        write(tmp_path / "3.npz", rows[:70] + 1),
    ]
    one, three = (table_moments(files, ["a"], ["b", "c"], workers=w) for w in (1, 3))
    assert_same_bits(one.moments, three.moments)
    assert_close(one.moments, np.concatenate([rows, rows[:50] * 2, rows[:70] + 1]), 60)


def test_what_a_worker_raises_is_raised(rows: np.ndarray, tmp_path: Path) -> None:
    good, bad = write(tmp_path / "0.csv", rows), tmp_path / "1.csv"
    bad.write_text("a,b\n1,2\n1,x\n")
    with pytest.raises(ValueError, match="column 'b', row 2: 'x' is not a number"):
        table_moments([good, bad], ["a"], ["b"], workers=2)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.npz"])
def test_rows_without_a_number(name: str, rows: np.ndarray, tmp_path: Path) -> None:
    holes = rows.copy()
    holes[170, 1], holes[171, 2], holes[250] = np.nan, np.inf, np.nan
    holes[250, 0] = -np.inf  # both: it counts as missing
    good = write(tmp_path / "good.csv", rows)
    path = write(tmp_path / name, holes)
    table = table_moments([good, path], ["c"], ["b", "a"], nan="drop")
    assert (table.rows, table.missing, table.infinite) == (597, 2, 1)
    assert table.first_bad == f"{path}: column 'b', row 171"
    kept = np.concatenate([rows, np.delete(holes, [170, 171, 250], 0)])[:, [2, 1, 0]]
    assert_close(table.moments, kept, 80)
    with pytest.raises(ValueError, match=r"column 'b', row 171: .* there are 3 such rows"):
        table_moments([good, path], ["c"], ["b", "a"])
    # Of columns that are not asked for, nothing matters.
    assert table_moments(path, ["c"], nan="drop").missing == 1


def test_files_without_rows(tmp_path: Path) -> None:
    for name in ("t.csv", "t.parquet"):
        table = table_moments(write(tmp_path / name, np.empty((0, 3))), ["a"], ["b"])
        assert table.rows == 0
        assert torch.isnan(F.gaussian_mi_of(table.moments))
        assert table.constant == []
        assert (table + table).rows == 0
    np.savez(tmp_path / "t.npz", a=np.empty(0), b=np.empty(0))
    assert table_moments(tmp_path / "t.npz", ["a"], ["b"]).rows == 0


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_at_most_one_batch_of_a_table_is_held(name, rows, tmp_path, monkeypatch) -> None:
    made: list[weakref.ref] = []
    held = []
    read = streaming.column_batches

    def watched(*arguments):
        for columns in read(*arguments):
            held.append(sum(ref() is not None for ref in made))
            made.extend(map(weakref.ref, columns))
            yield columns
            del columns

    monkeypatch.setattr(streaming, "column_batches", watched)
    table_moments(write(tmp_path / name, rows), ["a"], ["b", "c"])
    assert len(held) > 10
    assert max(held) <= 3  # the three columns of the batch before


@pytest.mark.parametrize("size", [2.0**560, 2.0**-560, 2.0**700, 2.0**-700, 2.0**1000])
def test_columns_of_any_size(size: float, rows: np.ndarray, tmp_path: Path) -> None:
    files, scaled = [], []
    for k, part in enumerate((rows[:100], rows[100:100], rows[100:])):
        files.append(write(tmp_path / f"{k}.parquet", part))
        scaled.append(write(tmp_path / f"{k}s.parquet", part * [size, 1, 1]))
    plain = table_moments(files, ["a"], ["b", "c"])
    table = table_moments(scaled, ["a"], ["b", "c"])
    # Powers of two change no bit of a correlation.
    mi = F.gaussian_mi_of(plain.moments)
    assert mi.item() > 0
    assert torch.equal(F.gaussian_mi_of(table.scaled), mi)
    with pytest.raises(ValueError, match=r"column 'a' holds numbers up to .* rescale it"):
        _ = table.moments
    # In one file of ordinary size, then in one of this.
    mixed = table_moments([files[0], scaled[2]], ["a"], ["b"])
    values = np.concatenate([rows[:100, :2], rows[100:, :2] * [size, 1]])
    values[:, 0] /= np.abs(values[:, 0]).max()
    expected = F.gaussian_mi(*torch.from_numpy(values).split(1, dim=1))
    assert F.gaussian_mi_of(mixed.scaled).item() == pytest.approx(expected.item(), rel=1e-9)


def test_constant_columns(tmp_path: Path, rows: np.ndarray) -> None:
    rows[:, 1] = 0.1
    first, second = write(tmp_path / "0.csv", rows), write(tmp_path / "1.csv", rows + 1)
    table = table_moments(first, ["a", "b"], ["c"])
    assert table.constant == ["b"]
    assert (table + table_moments(second, ["a", "b"], ["c"])).constant == []


def test_arrays_of_several_columns(tmp_path: Path, rows: np.ndarray) -> None:
    np.savez(tmp_path / "t.npz", ab=rows[:, :2], c=rows[:, 2])
    table = table_moments(tmp_path / "t.npz", ["ab"], ["c"])
    assert table.parts == (("ab[0]", "ab[1]"), ("c",))
    assert_close(table.moments, rows, 1)


def test_saved(tmp_path: Path, rows: np.ndarray) -> None:
    rows[3, 1] = np.nan
    rows[:, 0] *= 1e200
    table = table_moments(write(tmp_path / "t.csv", rows), ["a"], ["b", "c"], nan="drop")
    table.save(tmp_path / "t.moments")
    loaded = TableMoments.load(tmp_path / "t.moments")
    assert_same_bits(loaded.scaled, table.scaled)
    assert loaded.low.tobytes() == table.low.tobytes()
    assert loaded.high.tobytes() == table.high.tobytes()
    for name in ("parts", "missing", "infinite", "first_bad", "rows"):
        assert getattr(loaded, name) == getattr(table, name)
    assert (loaded + table).rows == 598
    with pytest.raises(ValueError, match="holds no moments of stib_fast"):
        Moments.load(tmp_path / "t.moments")
    whole = (tmp_path / "t.moments").read_bytes()
    for place in range(0, len(whole), 3):
        damaged = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        (tmp_path / "t.moments").write_bytes(damaged)
        try:
            loaded = TableMoments.load(tmp_path / "t.moments")
        except ValueError:
            continue
        assert_same_bits(loaded.scaled, table.scaled)


def test_other_columns_do_not_add(tmp_path: Path, rows: np.ndarray) -> None:
    path = write(tmp_path / "t.csv", rows)
    table = table_moments(path, ["a"], ["b"])
    with pytest.raises(ValueError, match="do not add up"):
        table + table_moments(path, ["a"], ["c"])


def test_bad_arguments(tmp_path: Path, rows: np.ndarray) -> None:
    for name in ("t.csv", "t.parquet"):
        path = write(tmp_path / name, rows)
        for message, files, parts, options in [
            ("files: at least one", [], [["a"]], {}),
            ("parts: each is a list", path, [], {}),
            ("parts: each is a list", path, [["a"], []], {}),
            ("parts: each is a list", path, ["ab"], {}),
            ("column 'a' is asked for more than once", path, [["a"], ["b", "a"]], {}),
            ("column 'q' is missing; there are", path, [["a", "q"]], {}),
            ("nan must be one of", path, [["a"]], {"nan": "fill"}),
            ("workers must be at least 1", path, [["a"]], {"workers": 0}),
            ("the name of a table ends in", tmp_path / "t.smi", [["a"]], {}),
        ]:
            with pytest.raises(ValueError, match=message):
                table_moments(files, *parts, **options)
    with pytest.raises(FileNotFoundError, match=r"no\.parquet"):
        table_moments(tmp_path / "no.parquet", ["a"])


def test_a_damaged_parquet_file_is_named(tmp_path: Path, rows: np.ndarray) -> None:
    path = write(tmp_path / "t.parquet", rows)
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(ValueError, match=r"t\.parquet"):
        table_moments(path, ["a"])
    path.write_bytes(b"PAR1" + b"\xff" * 400 + content[404:])
    with pytest.raises(ValueError, match=r"t\.parquet"):
        table_moments(path, ["a"])
