"""`moments` against float64 sums about exact means, and the algebra of `Moments`."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stib_fast import Moments
from stib_fast import functional as F

U = {
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
DTYPES = list(U)
NO_WEIGHT_OR_WEIGHT = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])


def reference(*parts: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and scatter in two passes over the joined float64 rows."""
    x = torch.cat([part.double() for part in parts], 1)
    w = torch.ones(len(x)).double() if weight is None else weight.double()
    shift = x[len(x) // 2].detach()
    mean = shift + (w[:, None] * (x - shift)).sum(0) / w.sum()
    return w.sum(), mean, torch.einsum("r,ri,rj->ij", w, x - mean, x - mean)


def assert_moments(ours: Moments, exact: tuple[Tensor, Tensor, Tensor]) -> None:
    """To the roundings of float64, with u times sqrt(count) for sums, the reference's among them.

    Means are held in float64: of an offset, u times it is lost, and not u times its square.
    """
    count, mean, scatter = exact
    rounding = (32 + 2 * float(count.sqrt())) * U[torch.float64]
    deviation = (scatter.diagonal() / count).sqrt() + 1e-300
    assert abs(ours.count - count) <= rounding * count
    assert ((ours.mean - mean).abs() <= rounding * (mean.abs() + deviation)).all()
    allowed = rounding * count * deviation * deviation[:, None]
    offset = 1 + mean.abs() / deviation
    assert ((ours.scatter - scatter).abs() <= allowed * (offset + offset[:, None])).all()
    assert ((ours.scatter - ours.scatter.mT).abs() <= allowed).all()
    assert (ours.count.dtype, ours.mean.dtype, ours.scatter.dtype) == (torch.float64,) * 3


def loss(moments: Moments | tuple[Tensor, Tensor, Tensor], d: int) -> Tensor:
    """A number that sees every entry of mean and scatter, and their order."""
    count, mean, scatter = (
        (moments.count, moments.mean, moments.scatter) if isinstance(moments, Moments) else moments
    )
    weights = torch.linspace(-1, 2, d * d, dtype=torch.float64).view(d, d)
    return (mean * weights[0]).sum() * count.sqrt() + (weights * scatter).sum() / count


def gradients(function: Callable, parts: list[Tensor], **options) -> list[Tensor]:
    parts = [part.detach().requires_grad_() for part in parts]
    d = sum(part.shape[1] for part in parts)
    return list(torch.autograd.grad(loss(function(*parts, **options), d), parts))


def assert_gradients(ours: list[Tensor], exact: list[Tensor], dtype: torch.dtype) -> None:
    for one, other in zip(ours, exact, strict=True):
        assert one.dtype == dtype
        error = (one.double() - other.double()).norm()
        # One rounding on the way out; the arithmetic is in float32 at least, and sums d terms.
        assert error <= (2 * U[dtype] + 32 * U[torch.float64]) * other.double().norm() + (
            0 if dtype == torch.float64 else 16 * U[torch.float32] * other.double().norm()
        )


# One row, the lanes of vectors, tiles of 64 and 256 rows, 64 chunks of one tile and one row more.
@NO_WEIGHT_OR_WEIGHT
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 17, 63, 65, 255, 257, 1025, 16384, 16385])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows(dtype: torch.dtype, rows: int, weighted: bool, backend: str) -> None:
    parts = [torch.randn(rows, 2).to(dtype) + 3, torch.randn(rows, 3).to(dtype)]
    weight = torch.rand(rows) + 0.1 if weighted else None
    moments = F.moments(*parts, weight=weight)
    assert moments.sizes == (2, 3)
    assert moments.dtype == dtype
    assert_moments(moments, reference(*parts, weight=weight))
    exact = gradients(reference, parts, weight=weight)
    assert_gradients(gradients(F.moments, parts, weight=weight), exact, dtype)


# Around the register blocks of 3 and 4 columns and vectors of 2 to 16; one part to four.
@pytest.mark.parametrize(
    "sizes", [(1,), (3,), (4,), (5,), (13,), (16,), (1, 1), (8, 9), (31, 33), (3, 1, 16, 2), (130,)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_and_dtypes(dtype: torch.dtype, sizes: tuple[int, ...], backend: str) -> None:
    parts = [(2 * torch.randn(301, n) - 1).to(dtype) for n in sizes]
    moments = F.moments(*parts)
    assert moments.sizes == sizes
    assert_moments(moments, reference(*parts))
    assert_gradients(gradients(F.moments, parts), gradients(reference, parts), dtype)


@pytest.mark.parametrize("offset", [0.1, 1e4, 1e6])
def test_offset_costs_no_digits(offset: float, backend: str) -> None:
    x = (torch.randn(1000, 3, dtype=torch.float64) + offset).float()
    assert_moments(F.moments(x), reference(x))


def test_drifting_mean(backend: str) -> None:
    # Every tile and every chunk has a mean of its own, far from those before.
    x = torch.randn(20_000, 2, dtype=torch.float64) + torch.arange(20_000)[:, None] * 10.0
    assert_moments(F.moments(x), reference(x))


def test_rows_of_weight_zero_may_hold_anything_finite(backend: str) -> None:
    x = torch.randn(1000, 3, dtype=torch.float64) + 1e6
    weight = torch.rand(1000)
    weight[:300] = 0
    x[:300] = -1e15
    assert_moments(F.moments(x, weight=weight), reference(x[300:], weight=weight[300:]))
    changed = gradients(F.moments, [x], weight=weight)[0]
    assert not changed[:300].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_stays_in_its_column(bad: float, backend: str) -> None:
    x = torch.randn(300, 3)
    x[150, 1] = bad
    moments = F.moments(x)
    assert not moments.mean[1].isfinite()
    assert moments.scatter[1].isnan().all()
    exact = reference(x[:, ::2])
    torch.testing.assert_close(moments.mean[::2], exact[1])
    torch.testing.assert_close(moments.scatter[::2, ::2], exact[2])


def test_empty_sample_and_weights_of_zero(backend: str) -> None:
    empty = F.moments(torch.randn(0, 2), torch.randn(0, 1))
    x = torch.randn(20, 3)
    nothing = F.moments(x[:, :2], x[:, 2:], weight=torch.zeros(20))
    some = F.moments(x[:, :2], x[:, 2:])
    for moments in (empty, nothing):
        assert moments.count == 0
        assert not moments.mean.any()
        assert not moments.scatter.any()
        for total in (moments + some, some + moments):
            assert torch.equal(total.count, some.count)
            torch.testing.assert_close(total.mean, some.mean, rtol=1e-15, atol=0)
            assert torch.equal(total.scatter, some.scatter)


def test_gradient_through_weights_of_zero_is_zero(backend: str) -> None:
    x = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    moments = F.moments(x, weight=torch.zeros(20)) + F.moments(torch.randn(9, 3).double())
    assert not torch.autograd.grad(moments.scatter.sum() + moments.mean.sum(), x)[0].any()


def test_constant_column_has_a_gradient_here(backend: str) -> None:
    # Only a correlation of it is undefined: its mean and its scatter with others are not.
    parts = [torch.cat([torch.full((100, 1), 0.1), torch.randn(100, 2)], 1).double()]
    exact = gradients(reference, parts)
    assert exact[0][:, 0].abs().max() > 0.001
    assert_gradients(gradients(F.moments, parts), exact, torch.float64)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_size_of_float32_columns_does_not_matter(size: float, backend: str) -> None:
    x = torch.randn(100, 2)
    torch.testing.assert_close(
        F.moments(x * size).scatter / size**2, F.moments(x).scatter, rtol=1e-6, atol=1e-5
    )
    scaled = (x * size).requires_grad_()
    gradient = torch.autograd.grad(F.moments(scaled).scatter[0, 1] / size, scaled)[0]
    exact = (x - x.mean(0)).flip(1)
    torch.testing.assert_close(gradient, exact, rtol=1e-5, atol=1e-5)


def test_strides_and_overlap(backend: str) -> None:
    base = torch.randn(400, dtype=torch.float64)
    for view in (
        base.view(100, 4)[:, 1:3],
        base.view(100, 4)[::3, ::2],
        base.view(4, 100).mT,
        base[:3].expand(50, 3),
        base[:50, None].expand(50, 3),
        base.as_strided((100, 3), (1, 1)),
        base.as_strided((100, 4), (3, 1)),
    ):
        # A constant column of a sum that rounds is not quite constant: a wider factor.
        assert_gradients(gradients(F.moments, [view]), gradients(reference, [view]), torch.float64)
        ours, exact = F.moments(view), reference(view)
        torch.testing.assert_close(ours.mean, exact[1], rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(ours.scatter, exact[2], rtol=1e-13, atol=1e-13)


@NO_WEIGHT_OR_WEIGHT
@pytest.mark.parametrize(("rows", "d"), [(100, 3), (20_001, 9), (70_000, 44), (300_000, 3)])
def test_same_bits_for_any_number_of_threads(
    rows: int, d: int, weighted: bool, backend: str
) -> None:
    x = torch.randn(rows, d) + 5
    weight = torch.rand(rows) if weighted else None
    first = F.moments(x, weight=weight)
    first_gradient = gradients(F.moments, [x], weight=weight)[0]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        again = F.moments(x, weight=weight)
        for name in ("count", "mean", "scatter"):
            assert torch.equal(getattr(again, name), getattr(first, name)), f"{threads} threads"
        assert torch.equal(gradients(F.moments, [x], weight=weight)[0], first_gradient)


# ---- the algebra -------------------------------------------------------------------------------


def test_sum_is_the_moments_of_the_union(backend: str) -> None:
    parts = [torch.randn(1000, 2) + 100, torch.randn(1000, 1)]
    # Pieces with means of their own; one empty, one of a single row.
    parts[0][600:] += 50

    def in_pieces(*parts: Tensor) -> Moments:
        pieces = [
            F.moments(*piece)
            for piece in zip(*(p.split([600, 0, 1, 399]) for p in parts), strict=True)
        ]
        return pieces[0] + pieces[1] + (pieces[2] + pieces[3])

    assert_moments(in_pieces(*parts), reference(*parts))
    assert_gradients(gradients(in_pieces, parts), gradients(reference, parts), torch.float32)


def test_order_of_a_sum_does_not_matter(backend: str) -> None:
    a, b, c = (F.moments(torch.randn(n, 3) + n) for n in (10, 200, 31))
    for one, other in ((a + b, b + a), ((a + b) + c, a + (b + c)), ((c + a) + b, a + (b + c))):
        assert_moments(one, (other.count, other.mean, other.scatter))


def test_moments_of_different_variables_do_not_add(backend: str) -> None:
    x = torch.randn(10, 4)
    whole, halves = F.moments(x), F.moments(x[:, :2], x[:, 2:])
    with pytest.raises(ValueError, match="do not describe the same variables"):
        whole + halves
    with pytest.raises(ValueError, match="do not describe the same variables"):
        whole + F.moments(x.double())


def test_bad_arguments(backend: str) -> None:
    x = torch.randn(10, 2)
    for message, parts, options in [
        ("at least one tensor", (), {}),
        (r"parts\[1\] has 9 rows but parts\[0\] has 10", (x, x[1:]), {}),
        (r"parts\[0\] must have shape", (x[0],), {}),
        (r"parts\[2\] is torch.float64 but parts\[0\]", (x, x, x.double()), {}),
        (r"parts\[1\] must be float32", (x, x.int()), {}),
        ("weight must be finite", (x,), {"weight": torch.full((10,), -1.0)}),
    ]:
        with pytest.raises(ValueError, match=message):
            F.moments(*parts, **options)


# ---- autograd, the registered op and torch.compile ---------------------------------------------


@NO_WEIGHT_OR_WEIGHT
def test_gradcheck(weighted: bool, backend: str) -> None:
    parts = [torch.randn(7, n, dtype=torch.float64, requires_grad=True) for n in (2, 1, 2)]
    weight = torch.rand(7) + 0.5 if weighted else None

    def mean_and_scatter(*parts: Tensor) -> tuple[Tensor, Tensor]:
        moments = F.moments(*parts, weight=weight)
        return moments.mean, moments.scatter

    assert torch.autograd.gradcheck(mean_and_scatter, parts)
    assert torch.autograd.gradgradcheck(mean_and_scatter, parts)


def test_gradient_of_a_factorisation_may_come_in_column_major_order(backend: str) -> None:
    """As those of torch.linalg do; the eager reference takes them in any order."""
    x = torch.randn(40, 3, dtype=torch.float64)

    def log_det(scatter: Tensor) -> Tensor:
        return 2 * torch.linalg.cholesky(scatter).diagonal().log().sum() + scatter.logdet()

    ours, exact = x.clone().requires_grad_(), x.clone().requires_grad_()
    log_det(F.moments(ours[:, :2], ours[:, 2:]).scatter).backward()
    log_det(reference(exact)[2]).backward()
    torch.testing.assert_close(ours.grad, exact.grad, rtol=1e-10, atol=1e-12)


def test_one_part_alone_needs_a_gradient(backend: str) -> None:
    x, y = torch.randn(50, 2), torch.randn(50, 3)
    exact = gradients(F.moments, [x, y])
    for parts, expected in (
        ([x.clone().requires_grad_(), y], exact[0]),
        ([x, y.clone().requires_grad_()], exact[1]),
    ):
        needed = next(part for part in parts if part.requires_grad)
        assert torch.equal(torch.autograd.grad(loss(F.moments(*parts), 5), needed)[0], expected)


def test_double_backward_where_a_part_appears_twice(backend: str) -> None:
    x = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)

    def twice(x: Tensor) -> Tensor:
        return loss(F.moments(x, x, x * x), 6)

    plain = torch.autograd.grad(twice(x), x)[0]
    torch.testing.assert_close(torch.autograd.grad(twice(x), x, create_graph=True)[0], plain)
    assert torch.autograd.gradgradcheck(twice, (x,))


@pytest.mark.usefixtures("library")
class TestOp:
    op = torch.ops.stib_fast.moments.default
    apply = torch.ops.stib_fast.moments_apply.default

    @NO_WEIGHT_OR_WEIGHT
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_opcheck(self, dtype: torch.dtype, weighted: bool) -> None:
        parts = [torch.randn(40, 2).to(dtype), torch.randn(40, 3).to(dtype)]
        weight = torch.rand(40).double() if weighted else None
        vectors = [torch.randn(5).double() for _ in range(3)]
        matrix = torch.randn(5, 5).double()
        torch.library.opcheck(self.apply, (parts, weight, *vectors[:2], matrix, vectors[2]))
        parts = [part.requires_grad_() for part in parts]
        torch.library.opcheck(self.op, (parts, weight, False))

    @NO_WEIGHT_OR_WEIGHT
    def test_gradcheck(self, weighted: bool) -> None:
        parts = [torch.randn(7, n, dtype=torch.float64, requires_grad=True) for n in (2, 3)]
        weight = torch.rand(7).double() + 0.5 if weighted else None
        assert torch.autograd.gradcheck(lambda *parts: self.op(parts, weight, False)[1:], parts)

    def test_apply_is_its_formula(self) -> None:
        parts = [torch.randn(70, 2).double(), torch.randn(70, 1).double()]
        center, scale, shift = (torch.randn(3).double() for _ in range(3))
        matrix, weight = torch.randn(3, 3).double(), torch.rand(70).double()
        rows = ((torch.cat(parts, 1) - center) * scale) @ matrix * scale + shift
        ours = self.apply(parts, weight, center, scale, matrix, shift)
        torch.testing.assert_close(torch.cat(ours, 1), weight[:, None] * rows)

    def test_double_backward_is_refused(self) -> None:
        x = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
        value = self.op([x], None, False)[2].sum()
        gradient = torch.autograd.grad(value, x, create_graph=True)[0]
        with pytest.raises(RuntimeError, match="moments_apply can't be differentiated"):
            gradient.sum().backward()

    def test_arguments_out_of_bounds_are_refused(self) -> None:
        x = torch.randn(10, 2).double()
        for parts, weight in (([], None), ([x, x[1:]], None), ([x], torch.ones(9).double())):
            with pytest.raises(RuntimeError):
                self.op(parts, weight, False)
        with pytest.raises(RuntimeError, match="gaussian_mi: matrix"):
            self.apply([x], None, x[0], x[0], x[:1].contiguous(), x[0])


def test_compiled(backend: str) -> None:
    torch.compiler.reset()

    def several(*parts: Tensor) -> Moments:
        return F.moments(*(part.sin() for part in parts)) + F.moments(*parts)

    compiled = torch.compile(several, fullgraph=True, backend="aot_eager")
    for rows in (40, 70):
        parts = [torch.randn(rows, 2).double(), torch.randn(rows, 1).double()]
        for one, other in zip(gradients(compiled, parts), gradients(several, parts), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
        ours, expected = compiled(*parts), several(*parts)
        torch.testing.assert_close(ours.scatter, expected.scatter, rtol=1e-12, atol=1e-12)
        assert ours.sizes == (2, 1)
    torch.compiler.reset()
