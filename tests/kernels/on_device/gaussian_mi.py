"""The Triton kernels of gaussian_mi and moments, run by `test_on_device.py`.

Against float64 that shares nothing with them. Tolerances are in units of u, the unit roundoff of
the dtype in question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import stib_fast
from stib_fast import backends
from stib_fast import functional as F
from stib_fast.ops.gaussian_mi import UNIT_ROUNDOFF as U
from stib_fast.ops.gaussian_mi import finalize_state_eager, gaussian_mi_triton
from stib_fast.ops.moments import moments_apply_triton, moments_triton

pytest.importorskip("triton")
from stib_fast.kernels import gaussian_mi as kernels

DEVICE = torch.device("cpu" if backends.INTERPRETING else "cuda")
DTYPES = list(U)
U64, U32 = U[torch.float64], U[torch.float32]
# Rows of the gradient. A product of float32 on tensor cores is in three parts of TF32; and the
# interpreter cuts bfloat16 off where a GPU rounds.
U_ROWS = {torch.float64: U64, torch.float32: 2 * U32}
U_ROWS |= {torch.bfloat16: 2 * U[torch.bfloat16], torch.float16: U[torch.float16] + 2 * U32}
PLAIN_OR_WEIGHTED = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The backend is Triton; the names of its host functions as they are called."""
    names: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any) -> Any:
            names.append(name)
            return function(*arguments)

        return count

    for name in ("moments", "apply"):
        monkeypatch.setattr(kernels, name, counted(name, getattr(kernels, name)))
    with stib_fast.backend("triton"):
        yield names


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, device=DEVICE)


def uniform(rows: int) -> Tensor:
    return torch.rand(rows, dtype=torch.float64, device=DEVICE)


def sample(
    rows: int, n: int, m: int, dtype: torch.dtype = torch.float64, noise: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Columns that depend on each other, each side at its own offset and scale."""
    z = normal(rows, n)
    y = z @ normal(n, m) / math.sqrt(n) + noise * normal(rows, m)
    return (2 * z - 1).to(dtype), (0.5 * y + 3).to(dtype)


# ---- references --------------------------------------------------------------------------------


def moments_reference(
    parts: list[Tensor], weight: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and scatter in two passes over the joined float64 rows."""
    x = torch.cat([part.double() for part in parts], 1)
    w = torch.ones_like(x[:, 0]) if weight is None else weight
    shift = x[len(x) // 2].detach()
    mean = shift + (w[:, None] * (x - shift)).sum(0) / w.sum()
    return w.sum(), mean, torch.einsum("r,ri,rj->ij", w, x - mean, x - mean)


def reference(z: Tensor, y: Tensor, weight: Tensor | None = None, eps: float = 1e-9) -> Tensor:
    """MI in nats by orthogonal factors of the centred data: no scatter matrix is formed.

    The ridge on the correlations is a row of sqrt(1e-12) below each unit column.
    """
    w = torch.ones_like(z[:, :1]).double() if weight is None else weight[:, None]
    tops = []
    for part in (z.double(), y.double()):
        centered = w.sqrt() * (part - (w * part).sum(0) / w.sum())
        centered = centered / centered.detach().abs().amax(0)  # neither overflow nor underflow
        unit = centered / centered.norm(dim=0)
        ridge = 1e-6 * torch.eye(part.shape[1], dtype=torch.float64, device=part.device)
        tops.append(torch.linalg.qr(torch.cat([unit, ridge])).Q[: len(z)])
    k = tops[0].mT @ tops[1]
    k = k if k.shape[0] <= k.shape[1] else k.mT
    eye = torch.eye(len(k), dtype=torch.float64, device=k.device)
    return -0.5 * torch.logdet(eye - (1 - eps) ** 2 * k @ k.mT)


def value_and_gradients(
    function: Callable[..., Tensor], z: Tensor, y: Tensor, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    z, y = z.detach().requires_grad_(), y.detach().requires_grad_()
    value = function(z, y, **options)
    grad_z, grad_y = torch.autograd.grad(value, (z, y))
    return value.detach(), grad_z, grad_y


def relative_error(ours: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """Of a gradient in several parts, in the Euclidean norm."""
    difference = torch.cat(
        [(a.double() - b.double()).flatten() for a, b in zip(ours, exact, strict=True)]
    )
    return float(difference.norm() / torch.cat([b.double().flatten() for b in exact]).norm())


def assert_matches(
    ours: tuple[Tensor, ...], exact: tuple[Tensor, ...], dtype: torch.dtype, factor: float = 16
) -> None:
    """Value and gradients to `factor` roundings; the columns are well conditioned."""
    assert ours[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert abs(ours[0].double() - exact[0]) <= factor * U[ours[0].dtype] * (1 + exact[0].abs())
    assert relative_error(ours[1:], exact[1:]) <= factor * U_ROWS[dtype]
    for gradient, part in zip(ours[1:], exact[1:], strict=True):
        assert gradient.shape == part.shape
        assert gradient.dtype == dtype


# ---- moments -----------------------------------------------------------------------------------

# One block of 8 columns; 8 + 8, 16 + 8, 32 + 16, 32 + 32, three tiles of 64; one part to four.
SIZES = [(1,), (1, 1), (2, 2), (9,), (9, 9), (16, 2), (3, 1, 16, 2), (31, 9), (32, 32), (65, 63)]
# One row; a tile of 16; a chunk of 128 rows, and one row more or less.
ROWS = [1, 2, 3, 15, 16, 17, 60, 127, 128, 129, 401]


def assert_moments(ours: Any, exact: tuple[Tensor, Tensor, Tensor]) -> None:
    """To the roundings of float64, with u times sqrt(count) for sums, the reference's among them.

    Means are held in float64: of an offset, u times it is lost, and not u times its square.
    """
    count, mean, scatter = exact
    rounding = (32 + 2 * float(count.sqrt())) * U64
    deviation = (scatter.diagonal() / count).sqrt() + 1e-300
    assert abs(ours[0] - count) <= rounding * count
    assert ((ours[1] - mean).abs() <= rounding * (mean.abs() + deviation)).all()
    allowed = rounding * count * deviation * deviation[:, None]
    offset = 1 + mean.abs() / deviation
    assert ((ours[2] - scatter).abs() <= allowed * (offset + offset[:, None])).all()
    assert torch.equal(ours[2], ours[2].mT)


@PLAIN_OR_WEIGHTED
@pytest.mark.parametrize("rows", ROWS)
def test_moments_of_any_number_of_rows(rows: int, weighted: bool) -> None:
    for dtype in (torch.float32, torch.float64):
        parts = [normal(rows, 3).to(dtype) + 3, normal(rows, 2).to(dtype)]
        weight = uniform(rows) + 0.1 if weighted else None
        assert_moments(kernels.moments(parts, weight, False), moments_reference(parts, weight))


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [(sizes, torch.float32) for sizes in SIZES] + [((3, 1, 16, 2), dtype) for dtype in DTYPES],
    ids=str,
)
def test_moments_of_any_columns(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    parts = [(2 * normal(131, n) - 1).to(dtype) for n in sizes]
    assert_moments(kernels.moments(parts, None, False), moments_reference(parts))


@pytest.mark.parametrize("sizes", [(2, 2), (9, 9)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_in_float32(dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    parts = [(2 * normal(131, n) - 1).to(dtype) for n in sizes]
    weight = uniform(131)
    _, mean, scatter = kernels.moments(parts, weight, True)
    _, exact_mean, exact = moments_reference(parts, weight)
    deviation = (exact.diagonal() / weight.sum()).sqrt()
    # Each product is rounded once and added to 15 more, sums of differences to all before.
    assert ((mean - exact_mean).abs() <= 16 * U32 * deviation).all()
    allowed = 32 * U32 * weight.sum() * deviation * deviation[:, None]
    assert ((scatter - exact).abs() <= allowed).all()


def test_no_rows_and_weights_of_zero() -> None:
    for parts, weight in (
        ([normal(0, 2), normal(0, 1)], None),
        ([normal(20, 2), normal(20, 1)], uniform(20) * 0),
        ([normal(200, 2), normal(200, 1)], uniform(200) * 0),
    ):
        for moment in kernels.moments(parts, weight, False):
            assert not moment.any()


@pytest.mark.parametrize("offset", [0.1, 1e4, 1e6])
def test_offset_costs_no_digits_of_moments(offset: float) -> None:
    x = (normal(300, 3) + offset).float()
    assert_moments(kernels.moments([x], None, False), moments_reference([x]))


def test_every_tile_and_chunk_may_have_a_mean_of_its_own() -> None:
    x = normal(400, 2) + 10 * torch.arange(400, device=DEVICE)[:, None]
    assert_moments(kernels.moments([x], None, False), moments_reference([x]))


@pytest.mark.parametrize("zeros", [5, 16, 150])  # in a tile, a tile, a chunk and more
def test_rows_of_weight_zero_may_hold_anything_finite(zeros: int) -> None:
    x = normal(300, 3) + 1e6
    weight = uniform(300)
    weight[:zeros] = 0
    x[:zeros] = -1e15
    exact = moments_reference([x[zeros:]], weight[zeros:])
    assert_moments(kernels.moments([x], weight, False), exact)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [0, 50, 150])  # where the origin is; in the chunk; in another
def test_nan_stays_in_its_column(row: int, bad: float) -> None:
    x = normal(160, 3)
    x[row, 1] = bad
    _, mean, scatter = kernels.moments([x], None, False)
    _, exact_mean, exact = moments_reference([x[:, ::2]])
    assert not mean[1].isfinite()
    assert scatter[1].isnan().all()
    assert scatter[:, 1].isnan().all()
    torch.testing.assert_close(mean[::2], exact_mean)
    torch.testing.assert_close(scatter[::2, ::2], exact)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """Views with other strides; the memory between the elements is full of NaN."""
    rows, d = x.shape

    def inside(*shape: int) -> Tensor:
        return torch.full(shape, math.nan, dtype=x.dtype, device=x.device)

    views = {
        "columns": inside(rows, d + 3)[:, 2 : d + 2],
        "every second column": inside(rows, 2 * d)[:, ::2],
        "every third row": inside(3 * rows, d)[::3],
        "transposed": inside(d, rows).mT,
        "odd offset": inside(rows * d + 1)[1:].view(rows, d),
        "both strides": inside(d, 2, rows, 3)[:, 1, :, 1].mT,
        "before NaN": inside(rows + 64, d)[:rows],
    }
    for view in views.values():
        view.copy_(x)
    return views | {
        "same row": x[:1].expand(rows, d),
        "same column": x[:, :1].expand(rows, d),
        "sliding window": x.flatten().as_strided((rows, d), (1, 1)),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(dtype: torch.dtype) -> None:
    x, other = sample(85, 3, 2, dtype)
    matrix, scale, shift = normal(5, 5), uniform(5), normal(5)
    for name, view in layouts(x).items():
        copies = kernels.moments([view.clone(), other], None, False)
        assert all(map(torch.equal, kernels.moments([view, other], None, False), copies)), name
        arguments = (None, copies[1], scale, matrix, shift, None)
        ours = kernels.apply([other, view], *arguments)
        expected = kernels.apply([other, view.clone()], *arguments)
        assert all(map(torch.equal, ours, expected)), name
        assert all(gradient.is_contiguous() for gradient in ours)


def test_rows_that_are_far_apart() -> None:
    """Whether 32 bits count the elements between a program's rows."""
    x = torch.empty_strided((17, 2), (2**27, 1), device="meta")
    assert kernels._index([x], 15) == kernels.tl.int32
    assert kernels._index([x], 16) == kernels.tl.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("rows", "d"), [(60, 4), (300, 18), (300, 128)])
def test_same_bits_from_run_to_run(rows: int, d: int, dtype: torch.dtype) -> None:
    z, y = sample(rows, d // 2, d // 2, dtype)
    weight = uniform(rows)
    first, again = (value_and_gradients(F.gaussian_mi, z, y, weight=weight) for _ in range(2))
    assert all(map(torch.equal, first, again))


# ---- rows of the gradient ----------------------------------------------------------------------


@PLAIN_OR_WEIGHTED
@pytest.mark.parametrize(
    "sizes", [(1,), (2, 2), (9, 9), (3, 1, 16, 2), (40, 24), (65, 63)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_apply(dtype: torch.dtype, sizes: tuple[int, ...], weighted: bool) -> None:
    d, rows = sum(sizes), 71
    parts = [(normal(rows, n) + 1).to(dtype) for n in sizes]
    weight = uniform(rows) if weighted else None
    center, scale, matrix, shift = normal(d), uniform(d) + 0.5, normal(d, d), normal(d)
    factor = torch.tensor(-3.0, device=DEVICE)
    x = (torch.cat([part.double() for part in parts], 1) - center) * scale
    w = 1 if weight is None else weight[:, None]
    # d products in float32 or better, each factor rounded once, and once on the way out.
    unit = U64 if dtype == torch.float64 else 2 * U32
    size = (x.abs() @ matrix.abs() * scale + shift.abs()) * w
    for by, moved in ((None, shift), (factor, None)):
        ours = torch.cat(kernels.apply(parts, weight, center, scale, matrix, moved, by), 1)
        exact = x @ matrix * scale * (1 if by is None else -3) + (0 if moved is None else shift)
        allowed = 3 * (d + 8) * unit * size + U_ROWS[dtype] * (w * exact).abs()
        assert ours.dtype == dtype
        assert ((ours.double() - w * exact).abs() <= allowed).all()


def test_apply_to_no_rows() -> None:
    arguments = (None, normal(2), normal(2), normal(2, 2), None, None)
    assert [x.shape for x in kernels.apply([normal(0, 2)], *arguments)] == [(0, 2)]


def test_apply_to_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "PROGRAMS", 2)  # so that each has several tiles
    x, weight = normal(333, 1), uniform(333)
    center, scale, matrix = normal(1), uniform(1), normal(1, 1)
    (ours,) = kernels.apply([x], weight, center, scale, matrix, None, None)
    torch.testing.assert_close(ours, weight[:, None] * (x - center) * scale * matrix * scale)


# ---- the op ------------------------------------------------------------------------------------


@PLAIN_OR_WEIGHTED
@pytest.mark.parametrize("rows", [5, 16, 60, 129])
def test_value_and_gradients_of_any_number_of_rows(rows: int, weighted: bool) -> None:
    for dtype in (torch.float32, torch.float64):
        z, y = sample(rows, 2, 1, dtype)
        weight = uniform(rows) + 0.5 if weighted else None
        ours = value_and_gradients(F.gaussian_mi, z, y, weight=weight)
        # Few rows: the correlations are near 1, and 1 - rho^2 divides the rounding.
        assert_matches(ours, value_and_gradients(reference, z, y, weight=weight), dtype, 1024)


@pytest.mark.parametrize(
    ("n", "m", "dtype"),
    [
        *((1, 1, torch.float32), (16, 2, torch.float32), (31, 33, torch.float32)),
        *((9, 9, dtype) for dtype in DTYPES),
        *((65, 70, dtype) for dtype in DTYPES),
    ],
)
def test_value_and_gradients_of_any_columns(
    n: int, m: int, dtype: torch.dtype, calls: list[str]
) -> None:
    z, y = sample(2 * (n + m), n, m, dtype)
    ours = value_and_gradients(F.gaussian_mi, z, y)
    exact = value_and_gradients(reference, z, y)
    # 1 - rho^2 of the nearly determined directions divides the rounding; more columns, more sums.
    assert_matches(ours, exact, dtype, 16 if dtype.itemsize == 2 else 64 * (n + m))
    assert calls == (["moments", "apply"] if n + m <= kernels.MOST_COLUMNS else [])


@pytest.mark.parametrize(("noise", "bound"), [(0.1, 1e-5), (0.01, 1e-4), (0.001, 1e-3)])
def test_ill_conditioned(noise: float, bound: float) -> None:
    """The accuracy that the design promises for float32 inputs, 8 dimensions a side."""
    z = normal(600, 8)
    y = z @ normal(8, 8) + noise * normal(600, 8)
    z, y = z.float(), y.float()
    value, *gradients = value_and_gradients(F.gaussian_mi, z, y)
    exact, *_ = value_and_gradients(reference, z, y)
    exact_gradients = value_and_gradients(reference, z.double(), y.double())[1:]
    assert relative_error(tuple(gradients), exact_gradients) <= bound
    assert abs(value.double() - exact) <= 2 * U32 * exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_offset_costs_no_digits(offset: float, dtype: torch.dtype) -> None:
    z, y = sample(300, 3, 2)
    z, y = (2 * z + offset).to(dtype), (4 * y - offset).to(dtype)
    ours, exact = (value_and_gradients(f, z, y) for f in (F.gaussian_mi, reference))
    # The mean itself is rounded to float64, and so is `offset + spread`.
    assert_matches(ours, exact, dtype, factor=16 + (offset if dtype == torch.float64 else 0))


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_size_of_columns_does_not_matter(size: float) -> None:
    z, y = sample(100, 3, 2, torch.float32)
    value, grad_z, grad_y = value_and_gradients(F.gaussian_mi, z, y)
    scaled, grad_scaled, grad_other = value_and_gradients(F.gaussian_mi, z * size, y)
    # Scaling rounds each element once.
    torch.testing.assert_close(scaled, value, rtol=1e-6, atol=0)
    assert relative_error((grad_scaled.double() * size, grad_other), (grad_z, grad_y)) <= 1e-6
    # The product of a gradient by moments is taken in columns of unit scatter, likewise.
    scaled = (z * size).requires_grad_()
    gradient = torch.autograd.grad(F.moments(scaled).scatter[0, 1] / size, scaled)[0]
    exact = (z - z.mean(0))[:, [1, 0, 2]] * torch.tensor([1, 1, 0], device=DEVICE)
    torch.testing.assert_close(gradient, exact, rtol=1e-5, atol=1e-5)


def test_fast_is_right_where_the_correlations_are_moderate() -> None:
    z, y = sample(500, 4, 3, torch.float32, noise=0.3)
    exact = value_and_gradients(reference, z.double(), y.double(), eps=1e-4)
    ours = value_and_gradients(F.gaussian_mi, z, y, precision="fast")
    # 1e-6 / (1 - rho^2), the promise; here 1 - rho^2 >= 0.01.
    assert abs(ours[0] - exact[0]) <= 1e-4
    assert relative_error(ours[1:], exact[1:]) <= 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", [0.1, -1e4])
def test_constant_column_is_correlated_with_nothing(level: float, dtype: torch.dtype) -> None:
    z, y = sample(300, 2, 2, dtype)
    constant = torch.full_like(z[:, :1], level)
    value, grad_z, grad_y = value_and_gradients(F.gaussian_mi, z, y)
    with_constant = torch.cat([constant, z], 1)
    wide_value, wide_grad, other = value_and_gradients(F.gaussian_mi, with_constant, y)
    torch.testing.assert_close(wide_value, value, rtol=1e-6, atol=0)
    # Another width is another order of the sums: u of float64 times a condition of 1000.
    error = relative_error((wide_grad[:, 1:], other), (grad_z, grad_y))
    assert error <= 4 * U_ROWS[dtype] + 1000 * U64
    assert not wide_grad[:, 0].any()


def test_nothing_but_constants() -> None:
    z, y = torch.full((50, 2), 0.1, device=DEVICE), torch.full((50, 1), -7.0, device=DEVICE)
    value, grad_z, grad_y = value_and_gradients(F.gaussian_mi, z, y)
    assert value == 0
    assert not grad_z.any()
    assert not grad_y.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [2, 3, 9])
def test_fewer_rows_than_columns(rows: int, dtype: torch.dtype) -> None:
    z, y = normal(rows, 8).to(dtype), normal(rows, 9).to(dtype)
    value, *gradients = value_and_gradients(F.gaussian_mi, z, y)
    assert abs(value - reference(z, y)) <= 1e-5 * rows
    assert all(x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [0, 100, 140])
def test_nan_and_infinity_come_out_as_nan(row: int, bad: float) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for side in (0, 1):
            parts = sample(141, 3, 2, dtype)
            parts[side][row, 1] = bad
            assert all(x.isnan().all() for x in value_and_gradients(F.gaussian_mi, *parts))


def test_weight_zero_leaves_a_row_out_but_not_its_nan() -> None:
    z, y = sample(300, 3, 2, noise=0.01)
    z += 1e6
    mask = uniform(300) > 0.3
    mask[:20] = False
    expected = value_and_gradients(F.gaussian_mi, z[mask], y[mask])
    z[~mask] = 1e12
    value, grad_z, grad_y = value_and_gradients(F.gaussian_mi, z, y, weight=mask)
    # Rounding 1e-16 of 1e6, beside noise of 0.01: 1e-8.
    assert abs(value - expected[0]) <= 1e-8
    assert relative_error((grad_z[mask], grad_y[mask]), expected[1:]) <= 1e-8
    assert not grad_z[~mask].any()
    z[3, 0] = math.nan
    assert F.gaussian_mi(z, y, weight=mask).isnan()


@PLAIN_OR_WEIGHTED
@pytest.mark.parametrize(("n", "m"), [(2, 2), (9, 9), (5, 3)])
def test_state_is_that_of_exact_moments(n: int, m: int, weighted: bool) -> None:
    z, y = sample(300, n, m, torch.float32)
    weight = uniform(300) if weighted else None
    mi, state = gaussian_mi_triton(z, y, weight, 1e-9, False)
    exact_mi, exact = finalize_state_eager(*moments_reference([z, y], weight), n, 1e-9, U32)
    torch.testing.assert_close(mi, exact_mi.float(), rtol=2 * U32, atol=0)
    # Sums in another order, times the condition.
    torch.testing.assert_close(state, exact, rtol=1e-11, atol=1e-11 * float(exact[2:].abs().max()))


# ---- autograd ----------------------------------------------------------------------------------


@PLAIN_OR_WEIGHTED
def test_gradcheck(weighted: bool, calls: list[str]) -> None:
    z, y = (x.requires_grad_() for x in sample(5, 2, 1))
    weight = uniform(5) + 0.5 if weighted else None
    assert torch.autograd.gradcheck(lambda z, y: F.gaussian_mi(z, y, weight=weight), (z, y))
    assert set(calls) == {"moments", "apply"}
    assert torch.autograd.gradgradcheck(lambda z, y: F.gaussian_mi(z, y, weight=weight), (z, y))


def mean_and_scatter(*parts: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    moments = F.moments(*parts, weight=weight)
    return moments.mean, moments.scatter


@PLAIN_OR_WEIGHTED
def test_gradcheck_of_moments(weighted: bool) -> None:
    parts = [normal(4, n).requires_grad_() for n in (1, 1, 1)]
    weight = uniform(4) + 0.5 if weighted else None
    function = partial(mean_and_scatter, weight=weight)
    assert torch.autograd.gradcheck(function, parts)
    assert torch.autograd.gradgradcheck(function, parts)


@pytest.mark.parametrize("sizes", [(5,), (9, 9), (3, 1, 6, 2), (70, 70)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_moments(dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    d = sum(sizes)
    weights = torch.linspace(-1, 2, d * d, dtype=torch.float64, device=DEVICE).view(d, d)
    parts = [(2 * normal(130, n) - 1).to(dtype).requires_grad_() for n in sizes]

    def loss(mean: Tensor, scatter: Tensor) -> Tensor:
        return (mean * weights[0]).sum() + (weights * scatter).sum() / 130

    ours = torch.autograd.grad(loss(*mean_and_scatter(*parts)), parts)
    wide = [part.detach().double().requires_grad_() for part in parts]
    exact = torch.autograd.grad(loss(*moments_reference(wide)[1:]), wide)
    # Once rounded on the way out; the arithmetic is in float32 at least, and sums d terms.
    unit = 32 * U64 if dtype == torch.float64 else 2 * U_ROWS[dtype] + 16 * U32
    assert [gradient.dtype for gradient in ours] == [dtype] * len(sizes)
    assert relative_error(ours, exact) <= unit


@pytest.mark.parametrize("dtype", DTYPES)
def test_incoming_gradient(dtype: torch.dtype) -> None:
    z, y = sample(100, 2, 2, dtype)
    plain = value_and_gradients(F.gaussian_mi, z, y)
    # A power of two: exact in every dtype, and past what float16 could hold were it applied late.
    scaled = value_and_gradients(lambda a, b: 256 * F.gaussian_mi(a, b), z, y)
    assert (
        relative_error(scaled[1:], tuple(256 * g.double() for g in plain[1:])) <= 4 * U_ROWS[dtype]
    )


def test_the_backward_stays_where_the_forward_was(calls: list[str]) -> None:
    z, y = sample(60, 2, 2, torch.float32)
    z.requires_grad_()
    value = F.gaussian_mi(z, y)
    with stib_fast.backend("eager"):
        torch.autograd.grad(value, z)
    assert calls == ["moments", "apply"]


def test_registered_for_the_gpu() -> None:
    """torch.compile and export reach the kernels through the dispatcher."""
    for name in ("moments", "moments_apply", "gaussian_mi", "gaussian_mi_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"stib_fast::{name}", "CUDA")


def test_direct_calls_are_kept_in_bounds() -> None:
    z, y = torch.zeros(10, 2, device=DEVICE), torch.zeros(9, 1, device=DEVICE)
    with pytest.raises(ValueError, match="same rows"):
        moments_triton((z, y), None, False)
    with pytest.raises(ValueError, match="same rows and dtype"):
        moments_triton((z, z.double()), None, False)
    with pytest.raises(ValueError, match=r"weight must be float64 of shape \[10\]"):
        moments_triton((z,), torch.ones(9, device=DEVICE).double(), False)
    square = torch.eye(3, dtype=torch.float64, device=DEVICE)
    with pytest.raises(ValueError, match="not 3 columns"):
        moments_apply_triton((z,), None, square[0], square[0], square, square[0])
