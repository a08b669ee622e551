"""The Triton kernels of knn_mi against brute force, bit for bit, run by `test_on_device.py`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import stib_fast
from stib_fast import backends
from stib_fast import functional as F
from stib_fast.ops import knn_mi as ops

pytest.importorskip("triton")
from stib_fast.kernels import knn_mi as kernels

DEVICE = torch.device("cpu" if backends.INTERPRETING else "cuda")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
KINDS = ["normal", "clusters", "copies", "constant", "offset", "tiny", "huge"]


def draw(kind: str, n: int, columns: int, dtype: torch.dtype) -> Tensor:
    points = torch.randn(n, columns, dtype=torch.float64)
    if kind == "clusters":
        points = 1e-6 * points + torch.randint(3, (n, 1))
    elif kind == "copies":  # ties everywhere, and k copies of a row
        points = points.round()
    elif kind == "constant":
        points[:, 0] = 3.0
    elif kind == "offset":
        points += 1e6
    elif kind in ("tiny", "huge"):
        points *= 1e-30 if kind == "tiny" else 1e30
    return points.to(DEVICE, dtype)


def distances(points: Tensor) -> Tensor:
    """[n, n] in the dtype of the points."""
    return (points[:, None] - points).abs().amax(dim=2)


def check(points: Tensor, x_columns: int, k: int, begin: int = 0, end: int | None = None) -> None:
    end = len(points) if end is None else end
    far = distances(points)
    radius = far.sort(dim=1).values[:, k]
    ours = kernels.knn_radii(points, x_columns, k, 1, begin, end)
    assert all(torch.equal(side, radius[begin:end]) for side in ours)
    if x_columns < points.shape[1]:
        neighbours = far <= radius[:, None]
        sides = points[:, :x_columns], points[:, x_columns:]
        ours = kernels.knn_radii(points, x_columns, k, 2, begin, end)
        for found, side in zip(ours, sides, strict=True):
            widest = distances(side).where(neighbours, 0).amax(dim=1)
            assert torch.equal(found, widest[begin:end])
    for closed in (False, True):
        within = far <= radius[:, None] if closed else far < radius[:, None]
        ours = kernels.knn_counts(points, radius[begin:end], closed, begin, end)
        assert ours.dtype == torch.int64
        assert torch.equal(ours, within.sum(dim=1)[begin:end])


@DTYPES
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_points(kind: str, dtype: torch.dtype) -> None:
    check(draw(kind, 140, 5, dtype), 3, 7)


@DTYPES
@pytest.mark.parametrize("n", [2, 31, 32, 33, 127, 128, 129, 257])
def test_numbers_of_points(n: int, dtype: torch.dtype) -> None:
    check(draw("normal", n, 2, dtype), 1, min(3, n - 1))


@pytest.mark.parametrize("columns", [1, 17, 40])
def test_numbers_of_columns(columns: int) -> None:
    check(draw("normal", 150, columns, torch.float32), max(1, columns - 1), 20)


@DTYPES
@pytest.mark.parametrize("k", [1, 31, 32, 64, 255])
def test_numbers_of_neighbours(k: int, dtype: torch.dtype) -> None:
    check(draw("normal", 260, 3, dtype), 2, k, 20, 40)  # a few rows: the interpreter is slow


@pytest.mark.parametrize(("begin", "end"), [(0, 1), (40, 41), (100, 150), (149, 150), (60, 60)])
def test_ranges_of_rows(begin: int, end: int) -> None:
    check(draw("copies", 150, 3, torch.float32), 2, 4, begin, end)


@DTYPES
@pytest.mark.parametrize("variant", [1, 2])
def test_functional(variant: int, dtype: torch.dtype) -> None:
    """The same estimate as on the other backends, to the order of one mean."""
    x, y = draw("normal", 300, 3, dtype), draw("copies", 300, 1, dtype)
    with stib_fast.backend("triton"):
        ours = F.knn_mi(x, y, 5, variant=variant)
        entropy = F.knn_entropy(x, 5)
    with stib_fast.backend("eager"):
        assert abs(ours - F.knn_mi(x, y, 5, variant=variant)) < 1e-12
        assert abs(entropy - F.knn_entropy(x, 5)) < 1e-12


def test_more_neighbours_than_registers_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain PyTorch sorts them; the counts stay."""

    def refuse(*arguments: object) -> None:
        raise LookupError("the kernel was called")

    monkeypatch.setattr(kernels, "knn_radii", refuse)
    x, y = (draw("normal", 270, columns, torch.float32) for columns in (2, 1))
    with stib_fast.backend("triton"):
        with pytest.raises(LookupError):
            F.knn_mi(x, y, 255)
        ours = F.knn_mi(x, y, 256)
    with stib_fast.backend("eager"):
        assert abs(ours - F.knn_mi(x, y, 256)) < 1e-12


def test_registered_for_the_gpu() -> None:
    for name in ("knn_order", "knn_radii", "knn_counts"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"stib_fast::{name}", "CUDA")
    points = draw("normal", 50, 3, torch.float32)
    rows = ops._kernels("triton").knn_order(points)
    assert torch.equal(rows.sort().values, torch.arange(50, device=DEVICE))
