"""`gaussian_mi` against a float64 reference that shares nothing with either backend.

Tolerances are in units of u, the unit roundoff of the dtype in question; ORDER is what another
order of float64 sums costs: u times a condition of 1000.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Callable

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

import stib_fast
from stib_fast import functional as F

U = {
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
ORDER = 1000 * U[torch.float64]
DTYPES = list(U)
NO_WEIGHT_OR_WEIGHT = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])


def reference(z: Tensor, y: Tensor, weight: Tensor | None = None, eps: float = 1e-9) -> Tensor:
    """MI in nats by orthogonal factors of the centred data: no scatter matrix is formed.

    The ridge on the correlations is a row of sqrt(1e-12) below each unit column.
    """
    w = torch.ones(len(z), 1, dtype=torch.float64) if weight is None else weight.double()[:, None]
    tops = []
    for part in (z.double(), y.double()):
        centered = w.sqrt() * (part - (w * part).sum(0) / w.sum())
        centered = centered / centered.detach().abs().amax(0)  # neither overflow nor underflow
        unit = centered / centered.norm(dim=0)
        ridged = torch.cat([unit, 1e-6 * torch.eye(part.shape[1]).double()])
        tops.append(torch.linalg.qr(ridged).Q[: len(z)])
    k = tops[0].mT @ tops[1]
    k = k if k.shape[0] <= k.shape[1] else k.mT
    return -0.5 * torch.logdet(torch.eye(len(k)).double() - (1 - eps) ** 2 * k @ k.mT)


def careful(z: Tensor, y: Tensor) -> Tensor:
    """What a careful user writes in the dtype at hand (float32 for half precision)."""
    x = torch.cat([z, y], 1)
    x = x if x.dtype == torch.float64 else x.float()
    x = x - x.mean(0)
    scatter = x.mT @ x
    scale = scatter.diagonal().rsqrt()
    correlation = scatter * scale * scale[:, None]
    n = z.shape[1]
    blocks = (correlation[:n, :n], correlation[n:, n:], correlation)
    log_det_z, log_det_y, log_det = (
        2 * torch.linalg.cholesky(block).diagonal().log().sum() for block in blocks
    )
    return (log_det_z + log_det_y - log_det) / 2


def cap(eps: float = 1e-9) -> float:
    """MI of one pair of columns that determine each other, with the ridge of 1e-12."""
    return -0.5 * math.log1p(-(((1 - eps) / (1 + 1e-12)) ** 2))


def sample(rows: int, n: int, m: int, dtype: torch.dtype = torch.float64, noise: float = 1.0):
    """Columns that depend on each other, each side at its own offset and scale."""
    z = torch.randn(rows, n, dtype=torch.float64)
    mixing = torch.randn(n, m, dtype=torch.float64) / math.sqrt(n)
    y = z @ mixing + noise * torch.randn(rows, m, dtype=torch.float64)
    return (2 * z - 1).to(dtype), (0.5 * y + 3).to(dtype)


def value_and_gradients(
    function: Callable[..., Tensor], z: Tensor, y: Tensor, **options
) -> tuple[Tensor, Tensor, Tensor]:
    z, y = z.detach().requires_grad_(), y.detach().requires_grad_()
    value = function(z, y, **options)
    return value.detach(), *torch.autograd.grad(value, (z, y))


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
    value_u = U[torch.float64 if dtype == torch.float64 else torch.float32]
    assert abs(ours[0].double() - exact[0]) <= factor * value_u * (1 + exact[0].abs())
    assert relative_error(ours[1:], exact[1:]) <= factor * U[dtype]
    for gradient, part in zip(ours[1:], exact[1:], strict=True):
        assert gradient.shape == part.shape
        assert gradient.dtype == dtype


# ---- accuracy ----------------------------------------------------------------------------------

# Vectors hold 2 to 16 lanes, by dtype and instruction set; apply works on tiles of 64 rows,
# moments on tiles of 256; from 64 * 256 rows on, one of the 64 chunks holds more than one tile.
ROWS = [5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 255, 256, 257, 513, 16383, 16384, 16385]
# Below, at and above the lanes and the register blocks of 3, 4 and 8 columns; powers of two below
# the lanes have a path of their own; 130: beyond two of anything.
COLUMNS = [
    *[(1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (4, 4), (5, 3), (7, 9), (8, 8), (9, 7), (12, 1)],
    *[(15, 16), (16, 2), (16, 16), (17, 13), (1, 32), (33, 31), (65, 65)],
]


@NO_WEIGHT_OR_WEIGHT
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", ROWS)
def test_rows(rows: int, dtype: torch.dtype, weighted: bool, backend: str) -> None:
    z, y = sample(rows, 2, 1, dtype)
    weight = torch.rand(rows) + 0.5 if weighted else None
    ours = value_and_gradients(F.gaussian_mi, z, y, weight=weight)
    # Few rows: the correlations are near 1, and 1 - rho^2 divides the rounding.
    assert_matches(ours, value_and_gradients(reference, z, y, weight=weight), dtype, factor=1024)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), COLUMNS)
def test_columns_and_dtypes(n: int, m: int, dtype: torch.dtype, backend: str) -> None:
    z, y = sample(2 * (n + m) + 300, n, m, dtype)
    value, *gradients = value_and_gradients(F.gaussian_mi, z, y)
    exact, *exact_gradients = value_and_gradients(reference, z, y)
    theirs, *their_gradients = value_and_gradients(careful, z, y)
    wide = dtype == torch.float64
    assert value.dtype == (torch.float64 if wide else torch.float32)
    assert [g.dtype for g in gradients] == [dtype, dtype]
    # As good as the careful formula in the same dtype, but for rounding the result once and, for
    # float64, where both are exact to rounding, for another order of d + 1 sums.
    value_u = U[value.dtype] * (1 + exact.abs()) * (16 * (n + m) if wide else 1)
    assert abs(value.double() - exact) <= abs(theirs.double() - exact) + value_u
    for ours, true, other in zip(gradients, exact_gradients, their_gradients, strict=True):
        tolerance = U[dtype] * (16 * (n + m) if wide else 4)
        allowed = (other.double() - true.double()).norm() + tolerance * true.double().norm()
        # The reference's gradient is rounded to the dtype on the way out of `.double()`.
        assert (ours.double() - true.double()).norm() <= allowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 2.0**-16, 1000.0])  # 2^-16: subnormal in float16
@pytest.mark.parametrize("factor", [1.0, 2.0**-16, 2.0**20])  # subnormal gradients, and infinity
def test_half_precision_is_float32_rounded_once(
    factor: float, size: float, dtype: torch.dtype, backend: str
) -> None:
    z, y = ((size * part).to(dtype) for part in sample(301, 3, 2))

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return factor * F.gaussian_mi(z, y)

    value, *gradients = value_and_gradients(loss, z, y)
    wide_value, *wide = value_and_gradients(loss, z.float(), y.float())
    torch.testing.assert_close(value, wide_value, rtol=1e-6, atol=0)
    for ours, exact in zip(gradients, wide, strict=True):
        assert (ours == exact.to(dtype)).float().mean() > 0.99  # but for the last bit in float32


@pytest.mark.parametrize(("noise", "bound"), [(0.1, 1e-5), (0.01, 1e-4), (0.001, 1e-3)])
@pytest.mark.parametrize("seed", range(3))
def test_ill_conditioned(noise: float, bound: float, seed: int, backend: str) -> None:
    """The accuracy that the design promises for float32 inputs, 8 dimensions a side."""
    torch.manual_seed(seed)
    z = torch.randn(2048, 8, dtype=torch.float64)
    y = z @ torch.randn(8, 8, dtype=torch.float64) + noise * torch.randn(2048, 8).double()
    z, y = z.float(), y.float()
    value, *gradients = value_and_gradients(F.gaussian_mi, z, y)
    exact, *_ = value_and_gradients(reference, z, y)
    exact_gradients = value_and_gradients(reference, z.double(), y.double())[1:]
    assert relative_error(tuple(gradients), exact_gradients) <= bound
    assert abs(value.double() - exact) <= 2 * U[torch.float32] * exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [1e4, 1e5, 1e6])
def test_offset_costs_no_digits(offset: float, dtype: torch.dtype, backend: str) -> None:
    # 1000 rows: the last of four tiles is not full. Spread 2: well above the rounding of 1e6.
    z, y = sample(1000, 3, 2)
    z, y = (2 * z + offset).to(dtype), (4 * y - offset).to(dtype)
    ours, exact = (value_and_gradients(f, z, y) for f in (F.gaussian_mi, reference))
    # The mean itself is rounded to float64, and so is `offset + spread`.
    assert_matches(ours, exact, dtype, factor=16 + (offset if dtype == torch.float64 else 0))


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
def test_size_of_float32_columns_does_not_matter(size: float, backend: str) -> None:
    z, y = sample(300, 3, 2, torch.float32)
    value, grad_z, grad_y = value_and_gradients(F.gaussian_mi, z, y)
    scaled, grad_scaled, grad_other = value_and_gradients(F.gaussian_mi, z * size, y)
    # Scaling rounds each element once.
    torch.testing.assert_close(scaled, value, rtol=1e-6, atol=0)
    assert relative_error((grad_scaled.double() * size, grad_other), (grad_z, grad_y)) <= 1e-6


@pytest.mark.parametrize("size", [1e-140, 1e-100, 1e100, 1e140])
def test_size_of_float64_columns_does_not_matter(size: float, backend: str) -> None:
    z, y = sample(300, 3, 2)
    value, grad_z, grad_y = value_and_gradients(F.gaussian_mi, z, y)
    scaled, grad_scaled, grad_other = value_and_gradients(F.gaussian_mi, z * size, y)
    torch.testing.assert_close(scaled, value, rtol=1e-14, atol=1e-14)
    assert relative_error((grad_scaled * size, grad_other), (grad_z, grad_y)) <= 1e-13


def test_float64_columns_out_of_range_give_no_silent_number(backend: str) -> None:
    z, y = sample(300, 3, 2)
    assert all(x.isnan().all() for x in value_and_gradients(F.gaussian_mi, z * 1e200, y))


def test_fast_is_right_where_the_correlations_are_moderate(backend: str) -> None:
    z, y = sample(5000, 4, 3, torch.float32, noise=0.3)
    exact = value_and_gradients(reference, z.double(), y.double(), eps=1e-4)
    ours = value_and_gradients(F.gaussian_mi, z, y, precision="fast")
    # 1e-6 / (1 - rho^2), the promise; here 1 - rho^2 >= 0.01.
    assert abs(ours[0] - exact[0]) <= 1e-4
    assert relative_error(ours[1:], exact[1:]) <= 1e-4


def test_linear_map_of_condition_4000_changes_nothing(backend: str) -> None:
    z, y = sample(4096, 8, 8, noise=0.3)
    y = y + 0.5 * z  # no weak direction
    exact = reference(z, y)
    left, right = (torch.linalg.qr(torch.randn(8, 8).double()).Q for _ in range(2))
    mapping = left * torch.logspace(0, -math.log10(4000), 8, dtype=torch.float64) @ right
    assert exact > 10
    # The ridge: 1e-12 * 4000^2 on rho^2, divided by 1 - rho^2 > 0.01, and halved; a dimension.
    assert abs(F.gaussian_mi(z @ mapping, y) - exact) <= 8 * 1e-12 * 4000**2 / 0.01 / 2
    assert abs(F.gaussian_mi(z, y @ mapping) - exact) <= 8 * 1e-12 * 4000**2 / 0.01 / 2


# ---- defined on every input --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", [0.0, 0.1, -1e4])
def test_constant_column_is_correlated_with_nothing(
    level: float, dtype: torch.dtype, backend: str
) -> None:
    z, y = sample(700, 2, 2, dtype)
    constant = torch.full((700, 1), level, dtype=dtype)
    value, grad_z, grad_y = value_and_gradients(F.gaussian_mi, z, y)
    for joined, kept in (([constant, z], slice(1, None)), ([z, constant], slice(0, 2))):
        wide_value, wide_grad, other = value_and_gradients(F.gaussian_mi, torch.cat(joined, 1), y)
        torch.testing.assert_close(wide_value, value, rtol=1e-6, atol=0)
        # Other widths, other register blocks: other orders of the sums.
        error = relative_error((wide_grad[:, kept], other), (grad_z, grad_y))
        assert error <= 4 * U[dtype] + ORDER
        wide_grad[:, kept] = 0
        assert (wide_grad == 0).all()


def test_column_that_varies_by_rounding_alone_is_constant(backend: str) -> None:
    z, y = sample(500, 1, 2, torch.float32)
    ulp = 0.0625  # of float32 at 1e6
    flicker = 1e6 + ulp * torch.randint(-1, 2, (500, 1)).float()
    value, grad_z, _ = value_and_gradients(F.gaussian_mi, torch.cat([z, flicker], 1), y)
    torch.testing.assert_close(value, F.gaussian_mi(z, y), rtol=1e-6, atol=0)
    assert (grad_z[:, 1] == 0).all()
    assert (grad_z[:, 0] != 0).all()


def test_nothing_but_constants(backend: str) -> None:
    z, y = torch.full((50, 2), 0.1), torch.full((50, 1), -7.0)
    value, grad_z, grad_y = value_and_gradients(F.gaussian_mi, z, y)
    assert value == 0
    assert not grad_z.any()
    assert not grad_y.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_collinear_columns_add_nothing(dtype: torch.dtype, backend: str) -> None:
    z, y = sample(500, 3, 2, dtype)
    redundant = torch.cat([z, z @ torch.tensor([[1.0], [2.0], [-1.0]], dtype=dtype)], 1)
    ours = value_and_gradients(F.gaussian_mi, redundant, y)
    assert all(x.isfinite().all() for x in ours)
    # In float32 the sum's own rounding, 1e-7 of a column, is a direction that the ridge of 1e-12
    # lets through with a weight of at most u / 1e-6, and correlates 1 / sqrt(500) with y.
    tolerance = 5e-4 if dtype == torch.float32 else 1e-9
    assert abs(ours[0] - reference(z, y)) <= tolerance
    same_on_both_sides = value_and_gradients(F.gaussian_mi, redundant, torch.cat([y, y], 1))
    assert abs(same_on_both_sides[0] - reference(z, y)) <= tolerance
    assert all(x.isfinite().all() for x in same_on_both_sides)


@pytest.mark.parametrize("condition", [1e0, 1e3, 1e5, 1e7, 1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_determined_sides_of_any_condition_are_finite(
    dtype: torch.dtype, condition: float, backend: str
) -> None:
    z = torch.randn(200, 5, dtype=torch.float64)
    for _ in range(5):
        left, right = (torch.linalg.qr(torch.randn(5, 5).double()).Q for _ in range(2))
        spread = torch.logspace(0, -math.log10(condition), 5, dtype=torch.float64)
        mapped = z @ left * spread @ right
        value, *gradients = value_and_gradients(F.gaussian_mi, z.to(dtype), mapped.to(dtype))
        assert 0 < value <= 5 * cap() + 1e-5
        assert all(x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("rows", [2, 3, 5, 9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fewer_rows_than_columns(dtype: torch.dtype, rows: int, backend: str) -> None:
    z, y = torch.randn(rows, 8).to(dtype), torch.randn(rows, 9).to(dtype)
    value, *gradients = value_and_gradients(F.gaussian_mi, z, y)
    # rows - 1 directions, or all 8, determine each other, each up to the ridge beside eps.
    assert abs(value - min(rows - 1, 8) * cap()) <= 0.01 * rows
    assert abs(value - reference(z, y)) <= 1e-5 * rows
    assert all(x.isfinite().all() for x in gradients)


def test_two_rows(backend: str) -> None:
    z, y = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([[5.0], [1.0]]).double()
    assert abs(F.gaussian_mi(z, y) - cap()) <= 1e-6


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-9, 1e-4, 0.1, 0.9])
def test_eps_caps_the_value(eps: float, backend: str) -> None:
    z = torch.randn(100, 3, dtype=torch.float64)
    rounding = 1e-14 / (2 * eps + 2e-12)  # of 1 - rho^2, relative to what is left of it
    assert abs(F.gaussian_mi(z[:, :1], 3 - 2 * z[:, :1], eps=eps) - cap(eps)) <= rounding + 1e-13
    y = z @ torch.randn(3, 3).double()
    assert abs(F.gaussian_mi(z, y, eps=eps) - reference(z, y, eps=eps)) <= 3 * rounding + 1e-13


@pytest.mark.parametrize("eps", [1e-3, 0.2])
def test_eps_shrinks_the_canonical_correlations(eps: float, backend: str) -> None:
    z, y = sample(400, 3, 4, noise=0.1)
    exact = value_and_gradients(reference, z, y, eps=eps)
    assert_matches(value_and_gradients(F.gaussian_mi, z, y, eps=eps), exact, torch.float64, 8192)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
# First row: the origin; in a full vector; in another tile; the last row: the scalar tail.
@pytest.mark.parametrize("row", [0, 100, 256, 300])
@pytest.mark.parametrize(("side", "column"), [(0, 0), (0, 2), (1, 1)])
def test_nan_and_infinity_come_out_as_nan(
    side: int, column: int, row: int, bad: float, dtype: torch.dtype, backend: str
) -> None:
    parts = sample(301, 3, 2, dtype)
    parts[side][row, column] = bad
    assert all(x.isnan().all() for x in value_and_gradients(F.gaussian_mi, *parts))


def test_nan_beside_a_constant_column_and_in_one_column_a_side(backend: str) -> None:
    z, y = torch.randn(40, 2), torch.randn(40, 1)
    z[:, 0] = 0.1
    y[7] = math.nan
    assert all(x.isnan().all() for x in value_and_gradients(F.gaussian_mi, z, y))
    assert all(x.isnan().all() for x in value_and_gradients(F.gaussian_mi, z[:, :1], y))
    y[7] = math.inf
    assert all(x.isnan().all() for x in value_and_gradients(F.gaussian_mi, z[:, 1:], y))


def bad_arguments() -> list:
    z, y = torch.randn(10, 2), torch.randn(10, 3)
    ones = torch.ones(10)
    return [
        ("z must be a torch tensor", ([[1.0]], y), {}),
        ("z must have shape", (z[:, 0], y), {}),
        ("y must have shape", (z, y[None]), {}),
        ("y has 9 rows but z has 10", (z, y[1:]), {}),
        ("z has 1 rows", (z[:1], y[:1]), {}),
        ("z has 0 rows", (z[:0], y[:0]), {}),
        ("z must be float32", (z.long(), y.long()), {}),
        ("y must be float32.*complex64", (z, y.to(torch.complex64)), {}),
        ("y is torch.float64 but z is torch.float32", (z, y.double()), {}),
        ("y is on meta but z is on cpu", (z, y.to("meta")), {}),
        ("y has no columns", (z, y[:, :0]), {}),
        ("z must be a dense tensor", (z.to_sparse(), y), {}),
        (r"weight must be a tensor of shape \[10\]", (z, y), {"weight": torch.ones(9)}),
        (r"weight must be a tensor of shape \[10\]", (z, y), {"weight": ones[:, None]}),
        (r"weight must be a tensor of shape \[10\]; got list", (z, y), {"weight": [1.0] * 10}),
        ("weight is on meta", (z, y), {"weight": ones.to("meta")}),
        ("weight has no gradient", (z, y), {"weight": ones.clone().requires_grad_()}),
        ("weight must be real", (z, y), {"weight": ones.to(torch.complex64)}),
        ("weight must be finite and not negative", (z, y), {"weight": -ones}),
        ("weight must be finite and not negative", (z, y), {"weight": ones * math.nan}),
        ("weight must be finite and not negative", (z, y), {"weight": ones * math.inf}),
        ("weight sums to less than 2", (z, y), {"weight": ones / 10}),
        ("weight sums to less than 6", (z, y), {"weight": ones / 2, "bias_correction": True}),
        ("z has 5 rows; 6", (z[:5], y[:5]), {"bias_correction": True}),
        ("eps must lie in", (z, y), {"eps": 1.0}),
        ("eps must lie in", (z, y), {"eps": -1e-9}),
        ("eps must lie in", (z, y), {"eps": math.nan}),
        ("precision must be 'exact' or 'fast'", (z, y), {"precision": "double"}),
    ]


@pytest.mark.parametrize(("message", "parts", "options"), bad_arguments())
def test_bad_arguments(message: str, parts: tuple, options: dict, backend: str) -> None:
    with pytest.raises(ValueError, match=message):
        F.gaussian_mi(*parts, **options)


# ---- weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_integer_weights_repeat_rows(dtype: torch.dtype, backend: str) -> None:
    z, y = sample(401, 3, 2, dtype)
    times = torch.randint(0, 4, (401,))
    value, *gradients = value_and_gradients(F.gaussian_mi, z, y, weight=times)
    rows = torch.repeat_interleave(torch.arange(401), times)
    repeated, *each = value_and_gradients(F.gaussian_mi, z[rows], y[rows])
    torch.testing.assert_close(value, repeated, rtol=2 * U[value.dtype], atol=ORDER)
    totals = [torch.zeros(401, part.shape[1]).double().index_add(0, rows, part.double())
              for part in each]  # fmt: skip
    assert relative_error(tuple(gradients), tuple(totals)) <= 4 * U[dtype] + ORDER


@pytest.mark.parametrize("first", [1, 300], ids=["first row", "first tile"])
def test_weight_zero_leaves_a_row_out(first: int, backend: str) -> None:
    z, y = sample(900, 3, 2, noise=0.01)
    z += 1e6
    mask = torch.rand(900) > 0.3
    mask[:first] = False
    expected = value_and_gradients(F.gaussian_mi, z[mask], y[mask])
    for filling in (0.0, 1e12, z[~mask]):  # whatever stands there
        z[~mask] = filling
        value, grad_z, grad_y = value_and_gradients(F.gaussian_mi, z, y, weight=mask)
        # Rounding 1e-16 of 1e6, beside noise of 0.01: 1e-8.
        assert abs(value - expected[0]) <= 1e-8
        assert relative_error((grad_z[mask], grad_y[mask]), expected[1:]) <= 1e-8
        assert not grad_z[~mask].any()
        assert not grad_y[~mask].any()


def test_tile_of_weight_zero_inside_a_chunk(backend: str) -> None:
    # From 16,385 rows on, a chunk has two tiles: the second must not be centred on the first.
    z, y = sample(20_000, 2, 1, noise=0.01)
    z += 1e6
    z[:256] = 0
    weight = torch.ones(20_000)
    weight[:256] = 0
    expected = value_and_gradients(F.gaussian_mi, z[256:], y[256:])
    value, grad_z, grad_y = value_and_gradients(F.gaussian_mi, z, y, weight=weight)
    # As above; 1e-4 would be lost to squares of the offset.
    assert abs(value - expected[0]) <= 1e-8
    assert relative_error((grad_z[256:], grad_y[256:]), expected[1:]) <= 1e-8


def test_row_of_weight_zero_must_be_finite_all_the_same(backend: str) -> None:
    z, y = sample(50, 2, 2)
    z[3, 0] = math.nan
    weight = torch.ones(50)
    weight[3] = 0
    assert F.gaussian_mi(z, y, weight=weight).isnan()


def test_scale_of_weights_does_not_matter(backend: str) -> None:
    z, y = sample(333, 3, 2)
    weight = torch.rand(333)
    one = value_and_gradients(F.gaussian_mi, z, y, weight=weight)
    assert_matches(
        value_and_gradients(F.gaussian_mi, z, y, weight=weight * 1024), one, torch.float64, 64
    )
    assert_matches(one, value_and_gradients(reference, z, y, weight=weight), torch.float64, 64)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float16, torch.float64])
def test_dtype_of_weights(dtype: torch.dtype, backend: str) -> None:
    z, y = sample(100, 2, 1)
    weight = torch.tensor([1, 0, 1, 1, 1]).repeat(20)
    expected = F.gaussian_mi(z[weight > 0], y[weight > 0])
    torch.testing.assert_close(F.gaussian_mi(z, y, weight=weight.to(dtype)), expected)


# ---- layouts -----------------------------------------------------------------------------------


def layouts(x: Tensor) -> dict[str, Tensor]:
    """Views with other strides; the memory between the elements is full of NaN."""
    rows, d = x.shape

    def inside(*shape: int) -> Tensor:
        return torch.full(shape, math.nan, dtype=x.dtype)

    views = {
        "columns": inside(rows, d + 3)[:, 2 : d + 2],
        "last columns": inside(rows, d + 3)[:, 3:],
        "every second column": inside(rows, 2 * d)[:, ::2],
        "every third row": inside(3 * rows, d)[::3],
        "transposed": inside(d, rows).mT,
        "transposed columns": inside(d, rows + 5)[:, 2 : rows + 2].mT,
        "odd offset": inside(rows * d + 1)[1:].view(rows, d),
        "both strides": inside(d, 2, rows, 3)[:, 1, :, 1].mT,
    }
    for view in views.values():
        view.copy_(x)
    return views | {
        "same row": x[:1].expand(rows, d),
        "same column": x[:, :1].expand(rows, d),
        "sliding window": x.flatten().as_strided((rows, d), (1, 1)),
        "overlapping rows": x.flatten().as_strided((rows, d), (max(d - 1, 1), 1)),
    }


@NO_WEIGHT_OR_WEIGHT
@pytest.mark.parametrize("d", [1, 2, 3, 4, 8, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_layouts(dtype: torch.dtype, d: int, weighted: bool, backend: str) -> None:
    x, other = sample(85, d, 2, dtype)
    weight = torch.rand(85, 2)[:, 1] if weighted else None
    for name, view in layouts(x).items():
        expected = value_and_gradients(F.gaussian_mi, view.clone(), other, weight=weight)
        ours = value_and_gradients(F.gaussian_mi, view, other, weight=weight)
        swapped = value_and_gradients(F.gaussian_mi, other, view, weight=weight)
        # Another order of the sums; collinear columns stand beside a ridge of 1e-12.
        loose = 1e-2 if name in ("same column", "sliding window", "overlapping rows") else 0
        for value, *gradients in (ours, (swapped[0], swapped[2], swapped[1])):
            torch.testing.assert_close(value, expected[0], rtol=1e-6, atol=1e-12, msg=name)
            for gradient, true in zip(gradients, expected[1:], strict=True):
                difference = (gradient.double() - true.double()).norm()
                allowed = (4 * U[dtype] + ORDER + loose) * true.double().norm()
                assert difference <= allowed + 1e-12, name


def test_lazy_negation_is_seen(backend: str) -> None:
    z, y = sample(50, 2, 2)
    negated = torch.complex(y, -z).conj().imag
    assert negated.is_neg()
    torch.testing.assert_close(F.gaussian_mi(negated, y), F.gaussian_mi(z, y))


@pytest.fixture(scope="module")
def pages_before_a_fault() -> Tensor:
    """Bytes whose last one is followed by a page that must not be touched."""
    size, page = 1 << 20, mmap.PAGESIZE
    memory = mmap.mmap(-1, size + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    no_access = 0
    if libc.mprotect(ctypes.c_void_p(address + size), ctypes.c_size_t(page), no_access) != 0:
        pytest.skip("this system does not protect pages")
    return torch.frombuffer(memory, dtype=torch.uint8, count=size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_read_past_the_end(
    dtype: torch.dtype, pages_before_a_fault: Tensor, backend: str
) -> None:
    end = pages_before_a_fault.view(dtype)
    for rows in (2, 15, 16, 17, 64, 100, 300):
        for d in (1, 2, 3, 4, 5, 8, 15, 16, 17, 33):
            for width in (d, d + 1, 40):  # d of `width` columns: row stride above the columns
                view = end[-rows * width :].view(rows, width)[:, width - d :]
                view.copy_(torch.randn(rows, d))
                assert F.gaussian_mi(view, torch.randn(rows, 1).to(dtype)).isfinite()
            transposed = end[-rows * d :].view(d, rows).mT
            assert F.gaussian_mi(transposed, torch.randn(rows, 1).to(dtype)).isfinite()


# ---- reproducible ------------------------------------------------------------------------------


@NO_WEIGHT_OR_WEIGHT
@pytest.mark.parametrize(
    ("rows", "n", "m"),
    [(60, 2, 2), (4097, 8, 8), (20_001, 5, 3), (70_000, 24, 20), (300_000, 2, 1)],
)
def test_same_bits_for_any_number_of_threads(
    rows: int, n: int, m: int, weighted: bool, backend: str
) -> None:
    if backend == "eager":
        n, m = min(n, 8), min(m, 8)  # more columns: see the next test
    z, y = sample(rows, n, m, torch.float32)
    weight = torch.rand(rows) if weighted else None
    first = value_and_gradients(F.gaussian_mi, z, y, weight=weight)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for again, before in zip(
            value_and_gradients(F.gaussian_mi, z, y, weight=weight), first, strict=True
        ):
            assert torch.equal(again, before), f"{threads} threads"


def test_eager_step_on_many_columns_depends_on_threads_by_rounding_alone() -> None:
    # LAPACK's triangular solves: the one part of the eager backend whose order of sums may change.
    z, y = sample(2000, 70, 60)
    results = []
    with stib_fast.backend("eager"):
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(value_and_gradients(F.gaussian_mi, z, y))
            again = value_and_gradients(F.gaussian_mi, z, y)
            assert all(torch.equal(*pair) for pair in zip(results[-1], again, strict=True))
    for other in results[1:]:
        assert_matches(other, results[0], torch.float64, factor=1000)


# ---- gradients ---------------------------------------------------------------------------------


def test_loss_in_the_middle_of_a_graph(backend: str) -> None:
    x = torch.randn(300, 4, dtype=torch.float64)
    weights = torch.randn(4, 3, dtype=torch.float64)

    def loss(mi: Callable[..., Tensor], weights: Tensor) -> Tensor:
        z = torch.tanh(x @ weights)
        return (-3 * mi(z, x[:, :2] + z.square().sum(1, keepdim=True))).exp().square()

    ours, exact = (
        torch.autograd.functional.jacobian(lambda w, mi=mi: loss(mi, w), weights)
        for mi in (F.gaussian_mi, reference)
    )
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_incoming_gradient(dtype: torch.dtype, backend: str) -> None:
    z, y = sample(100, 2, 2, dtype)
    plain = value_and_gradients(F.gaussian_mi, z, y)
    # A power of two: exact in every dtype, and past what float16 could hold were it applied late.
    scaled = value_and_gradients(lambda a, b: 256 * F.gaussian_mi(a, b), z, y)
    for one, other in zip(plain[1:], scaled[1:], strict=True):
        assert relative_error((other,), (256 * one.double(),)) <= 4 * U[dtype]


def test_one_side_alone_needs_a_gradient(backend: str) -> None:
    z, y = sample(100, 3, 2, torch.float32)
    _, grad_z, grad_y = value_and_gradients(F.gaussian_mi, z, y)
    z.requires_grad_()
    F.gaussian_mi(z, y).backward()
    assert torch.equal(z.grad, grad_z)
    z, y = z.detach(), y.requires_grad_()
    F.gaussian_mi(z, y).backward()
    assert torch.equal(y.grad, grad_y)
    assert not F.gaussian_mi(z, y.detach()).requires_grad


def test_backward_twice_through_a_kept_graph(backend: str) -> None:
    z, y = sample(100, 3, 2)
    z.requires_grad_()
    value = F.gaussian_mi(z, y)
    once, twice = (torch.autograd.grad(value, z, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, twice)


def test_input_changed_before_the_backward_is_noticed() -> None:
    # The compiled backend reads the rows again; the eager one holds copies.
    z, y = sample(100, 3, 2)
    z.requires_grad_()
    value = F.gaussian_mi(z, y)
    with torch.no_grad():
        z += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@NO_WEIGHT_OR_WEIGHT
def test_gradcheck(weighted: bool, backend: str) -> None:
    z, y = (x.requires_grad_() for x in sample(11, 3, 2))
    weight = torch.rand(11) + 0.5 if weighted else None
    assert torch.autograd.gradcheck(lambda z, y: F.gaussian_mi(z, y, weight=weight), (z, y))
    assert torch.autograd.gradgradcheck(lambda z, y: F.gaussian_mi(z, y, weight=weight), (z, y))


def test_double_backward_where_one_side_is_computed_from_the_other(backend: str) -> None:
    x = sample(20, 2, 2)[0].requires_grad_()

    def dependent(x: Tensor) -> Tensor:
        return F.gaussian_mi(x, x.square() + x)

    plain = torch.autograd.grad(dependent(x), x)[0]
    differentiable = torch.autograd.grad(dependent(x), x, create_graph=True)[0]
    torch.testing.assert_close(differentiable, plain, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradgradcheck(dependent, (x,))


def test_bias_correction_leaves_the_gradient_alone(backend: str) -> None:
    z, y = sample(100, 3, 2)
    plain = value_and_gradients(F.gaussian_mi, z, y)
    corrected = value_and_gradients(F.gaussian_mi, z, y, bias_correction=True)
    assert corrected[0] < plain[0]
    assert torch.equal(corrected[1], plain[1])


# ---- bias --------------------------------------------------------------------------------------


def test_bias_correction_is_unbiased(backend: str) -> None:
    # Exact for Gaussian samples, so any number of repetitions must agree within its own error.
    repetitions, rows, rho = 2000, 12, 0.6
    z = torch.randn(repetitions, rows, 2, dtype=torch.float64)
    y = torch.randn(repetitions, rows, 3, dtype=torch.float64)
    y[..., 0] = rho * z[..., 0] + math.sqrt(1 - rho**2) * y[..., 0]
    truth = -0.5 * math.log(1 - rho**2)
    values = torch.stack(
        [F.gaussian_mi(a, b, bias_correction=True) for a, b in zip(z, y, strict=True)]
    )
    error = values.std() / math.sqrt(repetitions)
    assert error < 0.01
    assert abs(values.mean() - truth) <= 4 * error
    raw = torch.stack([F.gaussian_mi(a, b) for a, b in zip(z[:500], y[:500], strict=True)])
    assert raw.mean() > truth + 0.2


def test_bias_correction_counts_weights(backend: str) -> None:
    z, y = sample(30, 2, 2)
    rows = torch.arange(30).repeat_interleave(2)
    weighted = F.gaussian_mi(z, y, weight=torch.full((30,), 2.0), bias_correction=True)
    torch.testing.assert_close(weighted, F.gaussian_mi(z[rows], y[rows], bias_correction=True))


# ---- autocast, moments, torch.func -------------------------------------------------------------


def test_autocast_changes_nothing(backend: str) -> None:
    z, y = sample(300, 3, 2, torch.float32)
    plain = value_and_gradients(F.gaussian_mi, z, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = value_and_gradients(F.gaussian_mi, z, y)
        of_moments = F.gaussian_mi_of(F.moments(z, y))
    for ours, expected in zip(under_autocast, plain, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, expected)
    torch.testing.assert_close(of_moments.float(), plain[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@NO_WEIGHT_OR_WEIGHT
def test_sum_of_moments_gives_the_same(dtype: torch.dtype, weighted: bool, backend: str) -> None:
    z, y = sample(1000, 3, 2, dtype)
    weight = torch.rand(1000) + 0.5 if weighted else None

    def in_batches(z: Tensor, y: Tensor) -> Tensor:
        total = F.moments(z[:0], y[:0])  # an empty batch adds nothing
        for rows in torch.arange(1000).split(171):
            part = None if weight is None else weight[rows]
            total = total + F.moments(z[rows], y[rows], weight=part)
        return F.gaussian_mi_of(total)

    direct = value_and_gradients(F.gaussian_mi, z, y, weight=weight)
    batches = value_and_gradients(in_batches, z, y)
    torch.testing.assert_close(batches[0].to(direct[0]), direct[0], rtol=1e-6, atol=0)
    assert relative_error(batches[1:], direct[1:]) <= 4 * U[dtype] + ORDER


def test_moments_of_other_than_two_parts_or_one_row(backend: str) -> None:
    x = torch.randn(10, 2)
    with pytest.raises(ValueError, match="moments must be of two parts; these are of 3"):
        F.gaussian_mi_of(F.moments(x, x, x))
    assert F.gaussian_mi_of(F.moments(x[:1], x[:1])).isnan()
    assert F.gaussian_mi_of(F.moments(x[:4], x[:4]), bias_correction=True).isnan()


def test_function_transforms_need_the_eager_backend(backend: str) -> None:
    z, y = torch.randn(4, 30, 2).double(), torch.randn(4, 30, 3).double()
    direction = torch.randn(30, 2).double()
    transforms = (
        lambda: torch.vmap(F.gaussian_mi)(z, y),
        lambda: torch.func.jvp(lambda a: F.gaussian_mi(a, y[0]), (z[0],), (direction,))[1],
        lambda: torch.func.grad(F.gaussian_mi)(z[0], y[0]),
    )
    if backend == "cpp":
        for transform in transforms:
            with pytest.raises(RuntimeError, match=r"autograd.Function|vmap"):
                transform()
        return
    values, slope, gradient = (transform() for transform in transforms)
    torch.testing.assert_close(
        values,
        torch.stack([reference(*parts) for parts in zip(z, y, strict=True)]),
        rtol=1e-9,
        atol=1e-9,
    )
    exact = value_and_gradients(reference, z[0], y[0])[1]
    torch.testing.assert_close(gradient, exact, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(slope, (exact * direction).sum(), rtol=1e-8, atol=1e-10)


# ---- the registered op and torch.compile -------------------------------------------------------


@pytest.mark.usefixtures("library")
class TestOp:
    op = torch.ops.stib_fast.gaussian_mi.default
    backward = torch.ops.stib_fast.gaussian_mi_backward.default

    @NO_WEIGHT_OR_WEIGHT
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_opcheck(self, dtype: torch.dtype, weighted: bool) -> None:
        z, y = sample(40, 3, 2, dtype)
        weight = torch.rand(40).double() if weighted else None
        mi, state = self.op(z, y, weight, 1e-9, False)
        torch.library.opcheck(self.backward, (torch.ones_like(mi), z, y, weight, state))
        z, y = z.requires_grad_(), y.requires_grad_()
        torch.library.opcheck(self.op, (z, y, weight, 1e-9, False))

    @NO_WEIGHT_OR_WEIGHT
    def test_gradcheck(self, weighted: bool) -> None:
        z, y = (x.requires_grad_() for x in sample(11, 3, 2))
        weight = torch.rand(11).double() + 0.5 if weighted else None
        assert torch.autograd.gradcheck(lambda z, y: self.op(z, y, weight, 1e-9, False)[0], (z, y))

    def test_double_backward_is_refused(self) -> None:
        z, y = (x.requires_grad_() for x in sample(11, 3, 2))
        value = self.op(z, y, None, 1e-9, False)[0]
        gradient = torch.autograd.grad(value, z, create_graph=True)[0]
        with pytest.raises(RuntimeError, match=r"gaussian_mi_backward can't be differentiated"):
            gradient.sum().backward()

    def test_arguments_out_of_bounds_are_refused(self) -> None:
        z, y = sample(40, 3, 2)
        for arguments in (
            (z, y[1:], None),
            (z, y.float(), None),
            (z.long(), y.long(), None),
            (z[0], y, None),
            (z, y, torch.ones(39).double()),
            (z, y, torch.ones(40)),
        ):
            with pytest.raises(RuntimeError, match="gaussian_mi: "):
                self.op(*arguments, 1e-9, False)
        mi, state = self.op(z, y, None, 1e-9, False)
        with pytest.raises(RuntimeError, match="gaussian_mi: state"):
            self.backward(mi, z, y, None, state[1:].contiguous())


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def features(weights: Tensor, y: Tensor, x: Tensor, weight: Tensor | None) -> Tensor:
    return 2 * F.gaussian_mi(torch.tanh(x @ weights), y, weight=weight).square()


@pytest.mark.usefixtures("_fresh_compiler")
class TestCompile:
    @NO_WEIGHT_OR_WEIGHT
    def test_values_and_gradients(self, weighted: bool, backend: str) -> None:
        self.compare(torch.compile(features, fullgraph=True, backend="aot_eager"), weighted)

    def test_one_graph_serves_any_number_of_rows(self) -> None:
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(features, fullgraph=True, backend=counter, dynamic=True)
        self.compare(compiled, weighted=True, sizes=(64,))
        graphs = counter.frame_count
        self.compare(compiled, weighted=True, sizes=(65, 300, 1000))
        assert counter.frame_count == graphs

    def test_inductor(self) -> None:
        self.compare(torch.compile(features, fullgraph=True), weighted=False)

    @staticmethod
    def compare(
        compiled: Callable[..., Tensor], weighted: bool, sizes: tuple[int, ...] = (64, 300)
    ) -> None:
        weights = torch.randn(4, 3, dtype=torch.float64)
        for rows in sizes:  # a second size makes the rows a symbol
            x, y = sample(rows, 4, 2)
            fixed = {"x": x, "weight": torch.rand(rows) + 0.5 if weighted else None}
            value, *gradients = value_and_gradients(compiled, weights, y, **fixed)
            expected, *true = value_and_gradients(features, weights, y, **fixed)
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
            assert relative_error(tuple(gradients), tuple(true)) <= 1e-12

    def test_options(self, backend: str) -> None:
        def several(z: Tensor, y: Tensor) -> Tensor:
            total = F.moments(z[:20], y[:20]) + F.moments(z[20:], y[20:])
            return F.gaussian_mi(
                z, y, eps=0.1, bias_correction=True, precision="fast"
            ) + F.gaussian_mi_of(total, bias_correction=True)

        compiled = torch.compile(several, fullgraph=True, backend="aot_eager")
        for rows in (50, 70):
            z, y = sample(rows, 3, 2)
            ours, expected = (value_and_gradients(f, z, y) for f in (compiled, several))
            torch.testing.assert_close(ours[0], expected[0], rtol=1e-10, atol=0)
            # The float32 products of "fast" may be summed in another order.
            assert relative_error(ours[1:], expected[1:]) <= 1e-6

    def test_bad_arguments_are_still_refused(self, backend: str) -> None:
        compiled = torch.compile(F.gaussian_mi, fullgraph=True, backend="aot_eager")
        with pytest.raises(Exception, match="y has 9 rows but z has 10"):
            compiled(torch.randn(10, 2), torch.randn(9, 2))

    def test_double_backward_is_refused(self, backend: str) -> None:
        z, y = (x.requires_grad_() for x in sample(30, 3, 2))
        compiled = torch.compile(F.gaussian_mi, fullgraph=True, backend="aot_eager")
        gradient = torch.autograd.grad(compiled(z, y), z, create_graph=True)[0]
        with pytest.raises(RuntimeError, match="double backward"):
            gradient.sum().backward()

    def test_nan(self, backend: str) -> None:
        z, y = sample(30, 3, 2)
        z[3, 1] = math.nan
        compiled = torch.compile(F.gaussian_mi, fullgraph=True, backend="aot_eager")
        assert all(x.isnan().all() for x in value_and_gradients(compiled, z, y))
