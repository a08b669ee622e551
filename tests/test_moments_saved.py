"""`Moments.save`, `Moments.load` and `sum` of what was saved."""

from __future__ import annotations

import os
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pytest
import torch

from stib_fast import Moments, archives
from stib_fast import functional as F


def assert_same_bits(a: Moments, b: Moments) -> None:
    assert (a.sizes, a.dtype) == (b.sizes, b.dtype)
    for name in ("count", "mean", "scatter"):
        one, other = getattr(a, name).detach(), getattr(b, name).detach()
        assert one.dtype == other.dtype == torch.float64
        assert torch.equal(one.view(torch.int64), other.view(torch.int64)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [0, 1, 100])
def test_a_round_trip_keeps_every_bit(dtype: torch.dtype, rows: int, tmp_path: Path) -> None:
    x = torch.randn(rows, 3).to(dtype).requires_grad_()
    y = torch.full((rows, 1), float("nan"), dtype=dtype)
    saved = F.moments(x, y)
    saved.save(tmp_path / "a.moments")
    assert [path.name for path in tmp_path.iterdir()] == ["a.moments"]
    loaded = Moments.load(tmp_path / "a.moments")
    assert_same_bits(loaded, saved)
    assert not loaded.scatter.requires_grad
    assert_same_bits(loaded + loaded, saved + saved)


def test_sum(tmp_path: Path) -> None:
    moments = [F.moments(torch.randn(n, 2)) for n in (4, 0, 7)]
    for k, one in enumerate(moments):
        one.save(str(tmp_path / f"{k}.moments"))
    loaded = [Moments.load(tmp_path / f"{k}.moments") for k in range(3)]
    assert_same_bits(sum(loaded), reduce(add, moments))
    for start in (1, 1.5, "a", None):
        with pytest.raises(TypeError):
            start + moments[0]
    assert sum([]) == 0


def test_damage_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.moments"
    saved = F.moments(torch.randn(5, 2))
    saved.save(path)
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"a\.moments"):
            Moments.load(path)
    harmless = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            loaded = Moments.load(path)
        except ValueError:
            continue
        harmless += 1  # bytes of the archive that say nothing: dates, versions, flags
        assert_same_bits(loaded, saved)
    assert harmless < len(whole) / 4


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.moments"
    with pytest.raises(FileNotFoundError, match=r"a\.moments"):
        Moments.load(path)
    with pytest.raises(IsADirectoryError):
        Moments.load(tmp_path)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ValueError, match="not a readable npz file"):
        Moments.load(path)
    torch.save({"count": torch.ones(())}, path)
    with pytest.raises(ValueError, match=r"a\.moments"):
        Moments.load(path)
    archives.save_arrays(path, "something else", {"count": 1})
    with pytest.raises(ValueError, match="holds no moments of stib_fast"):
        Moments.load(path)


@pytest.mark.parametrize(
    "entries",
    [
        {"sizes": np.array([3])},
        {"sizes": np.array(2)},
        {"dtype": np.array("torch.int64")},
        {"scatter": np.ones((2, 3))},
        {"mean": np.ones(2, np.float32)},
        {"mean": None},
    ],
)
def test_entries_that_do_not_fit_are_refused(entries, tmp_path: Path) -> None:
    from stib_fast import moments

    arrays = moments.as_arrays(F.moments(torch.randn(5, 2))) | entries
    arrays = {name: array for name, array in arrays.items() if array is not None}
    archives.save_arrays(tmp_path / "a", moments.KIND, arrays)
    with pytest.raises(ValueError, match="a: damaged: "):
        Moments.load(tmp_path / "a")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", kind=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        Moments.load("a.npz")
    assert not Path("exploded").exists()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.moments"
    saved = F.moments(torch.randn(5, 2))
    saved.save(path)

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives.np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        F.moments(torch.randn(9, 2)).save(path)
    assert_same_bits(Moments.load(path), saved)
    assert list(tmp_path.iterdir()) == [path]
