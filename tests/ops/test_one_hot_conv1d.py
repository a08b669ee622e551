"""`one_hot_conv1d` against the convolution of a dense one-hot tensor in float64.

Tolerances bound the rounding: u of the precision of the sums, times the number of terms, times the
sum of their sizes (Higham 2002, section 4.2); and u of the dtype for rounding the result once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from stib_fast import functional as F
from stib_fast.ops.one_hot import ID_DTYPES

U = {
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
# Terms that either backend adds before it goes on in float64 or with another sum.
LONGEST_SUM = 2**12
Geometry = dict[str, int]


def dense(ids: Tensor, classes: int, padding_idx: int | None = None) -> Tensor:
    one_hot = torch.nn.functional.one_hot(ids.long(), classes).double()
    if padding_idx is not None:
        one_hot[..., padding_idx] = 0
    return one_hot.transpose(1, 2)


def reference(
    ids: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding_idx: int | None = None,
    **geometry: int,
) -> Tensor:
    one_hot = dense(ids, weight.shape[1], padding_idx)
    wide = None if bias is None else bias.double()
    return torch.nn.functional.conv1d(one_hot, weight.double(), wide, **geometry)


def draw_ids(batch: int, length: int, classes: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Strings of all lengths, each with one class repeated at its end."""
    ids = torch.randint(classes, (batch, length), dtype=dtype)
    ends = torch.arange(batch) % (length + 1) if length else torch.zeros(batch)
    last = torch.randint(classes, (batch, 1), dtype=dtype)
    return torch.where(torch.arange(length) >= ends[:, None], last, ids)


def draw(filters: int, classes: int, taps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    weight = torch.randn(filters, classes, taps, dtype=torch.float64).to(dtype)
    bias = torch.randn(filters, dtype=torch.float64).to(dtype)
    return weight.requires_grad_(), bias.requires_grad_()


def check(
    ids: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor | None = None, **options
) -> None:
    """Value and gradients, for an incoming gradient that is not all ones."""
    parameters = (weight,) if bias is None else (weight, bias)
    ours = F.one_hot_conv1d(ids, *parameters, **options)
    exact = reference(ids, *parameters, **options)
    assert ours.dtype == weight.dtype
    assert ours.shape == exact.shape
    assert ours.is_contiguous()
    u = U[torch.promote_types(weight.dtype, torch.float32)]
    once = U[weight.dtype] if weight.dtype.itemsize == 2 else 0.0
    least = torch.finfo(weight.dtype).smallest_normal  # below it u is absolute
    sizes = reference(ids, *(p.abs() for p in parameters), **options)
    terms = weight.shape[2] + 1
    error = (ours.double() - exact).abs()
    assert (error <= terms * u * sizes + once * (exact.abs() + least)).all()

    if grad is None:
        grad = torch.randn_like(ours)
    gradients = torch.autograd.grad(ours, parameters, grad)
    true = torch.autograd.grad(exact, parameters, grad.double())
    sizes = torch.autograd.grad(reference(ids, *parameters, **options), parameters,
                                grad.double().abs())  # fmt: skip
    terms = min(max(grad.numel() // max(1, len(weight)), 1), LONGEST_SUM)
    for ours, exact, size in zip(gradients, true, sizes, strict=True):
        assert ours.dtype == weight.dtype
        # autograd rounds the reference's gradient to the dtype of the weight, once.
        allowed = (terms * u + 2 * U[weight.dtype]) * size.double() + 2 * once * least
        assert ((ours.double() - exact.double()).abs() <= allowed).all()


# ---- values and gradients ----------------------------------------------------------------------

# Vectors hold 2 to 16 filters, by dtype and instruction set, and a tile has as many outputs.
FILTERS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 128, 130]
LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 120]
GEOMETRIES = [
    {},
    {"padding": 2},
    {"padding": 4, "dilation": 2},
    {"stride": 2, "padding": 1},
    {"stride": 3},
    {"stride": 2, "padding": 3, "dilation": 3},
    {"stride": 7, "padding": 5},  # a stride above the kernel: some ids are never seen
    {"padding": 11},  # more than the kernel: outputs that see the padding alone
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("filters", FILTERS)
def test_filters(filters: int, dtype: torch.dtype, backend: str) -> None:
    check(draw_ids(13, 21, 10), *draw(filters, 10, 3, dtype), padding=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(length: int, dtype: torch.dtype, backend: str) -> None:
    check(draw_ids(length + 2, length, 7), *draw(9, 7, 5, dtype), padding=2)


@pytest.mark.parametrize("taps", range(1, 10))
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_geometries(geometry: Geometry, taps: int, backend: str) -> None:
    # Long enough for the widest span, 25 positions, and for every length of the run at the end.
    check(draw_ids(52, 50, 6), *draw(5, 6, taps, torch.float64), **geometry)
    check(draw_ids(52, 50, 6), *draw(18, 6, taps, torch.float32), padding_idx=0, **geometry)


@pytest.mark.parametrize(("classes", "taps", "filters"), [(1, 1, 1), (1, 4, 3), (300, 2, 20)])
def test_classes(classes: int, taps: int, filters: int, backend: str) -> None:
    ids = draw_ids(30, 12, classes, torch.int16)
    check(ids, *draw(filters, classes, taps, torch.float32), padding=1)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_one_output(geometry: Geometry, backend: str) -> None:
    span = geometry.get("dilation", 1) * 3 + 1
    length = span - 2 * geometry.get("padding", 0)
    if length > 0:
        ids = draw_ids(40, length, 5)
        assert F.one_hot_conv1d(ids, torch.ones(2, 5, 4), **geometry).shape == (40, 2, 1)
        check(ids, *draw(17, 5, 4, torch.float32), **geometry)


def test_no_strings(backend: str) -> None:
    check(draw_ids(0, 20, 5), *draw(9, 5, 3, torch.float32))


def test_empty_strings_in_padding(backend: str) -> None:
    weight, bias = draw(3, 5, 3, torch.float32)
    ours = F.one_hot_conv1d(torch.zeros(2, 0, dtype=torch.uint8), weight, bias, padding=2)
    assert torch.equal(ours, bias[None, :, None].expand(2, 3, 2))


def test_without_bias(backend: str) -> None:
    weight, _ = draw(9, 10, 3, torch.float32)
    check(draw_ids(13, 21, 10), weight, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 2.0**-16])  # 2^-16: subnormal in float16
def test_half_precision_is_float32_rounded_once(
    size: float, dtype: torch.dtype, backend: str
) -> None:
    parameters = [(size * p.detach()).requires_grad_() for p in draw(20, 9, 5, dtype)]
    ids = draw_ids(30, 40, 9)
    check(ids, *parameters, padding=2)
    wide = [p.detach().float() for p in parameters]
    ours, expected = (F.one_hot_conv1d(ids, *p, padding=2) for p in (parameters, wide))
    assert torch.equal(ours, expected.to(dtype))


@pytest.mark.parametrize("size", [1e-42, 1e-38, 1e30, 1e37])
def test_size_of_weights_does_not_matter(size: float, backend: str) -> None:
    weight, bias = (p.detach().double() for p in draw(9, 10, 3, torch.float32))
    ids = draw_ids(13, 21, 10)
    small, other = (size * weight).float(), (size * bias).float()
    ours = F.one_hot_conv1d(ids, small, other)
    exact = reference(ids, small, other)
    # Subnormal numbers add without rounding; the others as in `check`.
    allowed = 4 * U[torch.float32] * reference(ids, small.abs(), other.abs())
    assert ((ours.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_stays_with_its_token_and_tap(bad: float, backend: str) -> None:
    ids = draw_ids(30, 40, 6)
    weight = torch.randn(18, 6, 3)
    marks = torch.zeros_like(weight)
    for place in ((17, 2, 1), (4, 5, 0), (4, 0, 2)):
        weight[place], marks[place] = bad, 1
    ours = F.one_hot_conv1d(ids, weight, padding=1)
    assert torch.equal(~ours.isfinite(), reference(ids, marks, padding=1) > 0)


def test_nan_in_the_gradient_stays_with_its_tokens(backend: str) -> None:
    ids = draw_ids(30, 40, 60)
    weight, bias = draw(18, 60, 3, torch.float32)
    grad = torch.randn(30, 18, 38)
    grad[3, 4, 5] = math.nan
    ours = torch.autograd.grad(F.one_hot_conv1d(ids, weight, bias), (weight, bias), grad)
    touched = torch.zeros_like(weight, dtype=torch.bool)
    touched[4, ids[3, 5:8].long(), torch.arange(3)] = True
    assert torch.equal(ours[0].isnan(), touched)
    assert torch.equal(ours[1].isnan(), torch.arange(18) == 4)


@pytest.mark.parametrize("padding_idx", [0, 5])
def test_padding_idx_counts_for_nothing(padding_idx: int, backend: str) -> None:
    ids = draw_ids(30, 40, 6)
    weight, bias = draw(18, 6, 3, torch.float32)
    check(ids, weight, bias, padding=1, padding_idx=padding_idx)
    with torch.no_grad():
        weight[:, padding_idx] = math.nan
    ours = F.one_hot_conv1d(ids, weight, bias, padding=1, padding_idx=padding_idx)
    assert ours.isfinite().all()
    gradient = torch.autograd.grad(ours.square().sum(), weight)[0]
    assert gradient.isfinite().all()
    assert not gradient[:, padding_idx].any()


def test_gradient_of_a_large_batch_keeps_its_digits(backend: str) -> None:
    # 2^21 equal terms: one sum of them in float32 would stop growing 5 % too low.
    batch, length = 2**16, 32
    ids = torch.randint(3, (batch, 1), dtype=torch.uint8).expand(batch, length).clone()
    ids[:, ::2] = 3  # no runs
    weight, bias = draw(2, 4, 1, torch.float32)
    grad = torch.full((batch, 2, length), 0.1)
    ours = torch.autograd.grad(F.one_hot_conv1d(ids, weight, bias), (weight, bias), grad)
    counts = torch.bincount(ids.flatten().long(), minlength=4).double() * grad[0, 0, 0].double()
    expected = counts[None, :, None].expand(2, 4, 1)
    tolerance = LONGEST_SUM * U[torch.float32]  # 2.4e-4: equal terms are all rounded the same way
    torch.testing.assert_close(ours[0].double(), expected, rtol=tolerance, atol=0)
    torch.testing.assert_close(ours[1].double(), expected.sum(1)[:, 0], rtol=tolerance, atol=0)


def test_equal_windows_have_equal_bits(backend: str) -> None:
    # Where the run at the end of a string begins is nothing that an output could see.
    weight, bias = draw(20, 4, 5, torch.float32)
    tail = torch.zeros(40, 40, dtype=torch.uint8)
    tail[torch.arange(40), torch.arange(40)] = 1  # the one other token at every place
    ours = F.one_hot_conv1d(tail, weight, bias)
    alone = ours[39, :, 0]  # a window of zeros
    for row in range(40):
        for t in range(36):
            if not t <= row < t + 5:
                assert torch.equal(ours[row, :, t], alone)
            else:
                assert torch.equal(ours[row, :, t], ours[row - t, :, 0])


# ---- layouts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ID_DTYPES)
def test_dtypes_of_ids(dtype: torch.dtype, backend: str) -> None:
    classes = min(torch.iinfo(dtype).max + 1, 300)
    check(draw_ids(13, 21, classes, dtype), *draw(9, 300, 3, torch.float32), padding=1)


def test_strides_of_ids(backend: str) -> None:
    ids = draw_ids(13, 21, 10)
    parameters = draw(9, 10, 3, torch.float32)
    expected = F.one_hot_conv1d(ids, *parameters)
    spread = torch.full((26, 84), 255, dtype=torch.uint8)
    spread[::2, 3::4] = ids
    for view in (spread[::2, 3::4], ids.T.contiguous().T):
        assert torch.equal(F.one_hot_conv1d(view, *parameters), expected)
    check(ids[:1].expand(13, 21), *parameters)
    check(ids[:, :1].expand(13, 21), *parameters)


def test_strides_of_parameters(backend: str) -> None:
    ids = draw_ids(13, 21, 10)
    weight, bias = draw(9, 10, 3, torch.float32)
    expected = F.one_hot_conv1d(ids, weight, bias)
    spread = torch.full((3, 9, 20), math.nan)
    spread[:, :, ::2] = weight.detach().permute(2, 0, 1)
    view = spread.permute(1, 2, 0)[:, ::2]
    other = torch.stack([bias.detach(), bias.detach()], 1)[:, 1]
    assert torch.equal(F.one_hot_conv1d(ids, view, other), expected)
    check(ids, view.requires_grad_(), other.requires_grad_())


def test_strides_of_the_gradient(backend: str) -> None:
    ids = draw_ids(13, 21, 10)
    parameters = draw(18, 10, 3, torch.float32)

    def inside(*shape: int) -> Tensor:
        return torch.full(shape, math.nan)

    views = {
        "channels": inside(13, 25, 19)[:, 5:23],
        "rows": inside(26, 18, 19)[::2],
        "outputs": inside(13, 18, 38)[..., ::2],
        "channels last": inside(13, 19, 18).transpose(1, 2),
        "batch last": inside(18, 19, 13).permute(2, 0, 1),
    }
    for view in views.values():
        view.copy_(torch.randn(13, 18, 19))
    views |= {
        "one number": torch.tensor(0.3).expand(13, 18, 19),
        "one row": torch.randn(19).expand(13, 18, 19),
        "one column": torch.randn(13, 18, 1).expand(13, 18, 19),
    }
    for view in views.values():
        check(ids, *parameters, grad=view)


# ---- reproducible ------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "filters"), [(60, 9), (900, 9), (900, 70), (3000, 3)])
def test_same_bits_for_any_number_of_threads(batch: int, filters: int, backend: str) -> None:
    ids = draw_ids(batch, 40, 12)
    parameters = draw(filters, 12, 5, torch.float32)
    grad = torch.randn(batch, filters, 36)
    first = None
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        value = F.one_hot_conv1d(ids, *parameters)
        found = (value, *torch.autograd.grad(value, parameters, grad))
        first = first or found
        for again, before in zip(found, first, strict=True):
            assert torch.equal(again, before), f"{threads} threads"


# ---- derivatives -------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", [{}, {"stride": 2, "padding": 3, "dilation": 2}], ids=str)
@pytest.mark.parametrize("padding_idx", [None, 1])
def test_gradcheck(padding_idx: int | None, geometry: Geometry, backend: str) -> None:
    ids = draw_ids(7, 9, 4)
    parameters = draw(3, 4, 2, torch.float64)

    def function(weight: Tensor, bias: Tensor) -> Tensor:
        return F.one_hot_conv1d(ids, weight, bias, padding_idx=padding_idx, **geometry).square()

    assert torch.autograd.gradcheck(function, parameters)
    assert torch.autograd.gradgradcheck(function, parameters)


def test_third_derivative(backend: str) -> None:
    ids = draw_ids(5, 8, 3)
    weight, _ = draw(2, 3, 2, torch.float64)
    direction = torch.randn_like(weight)

    def third(function: Callable[..., Tensor]) -> Tensor:
        value = function(ids, weight).exp().sum()
        for _ in range(2):
            gradient = torch.autograd.grad(value, weight, create_graph=True)[0]
            value = (gradient * direction).sum()
        return torch.autograd.grad(value, weight)[0]

    torch.testing.assert_close(third(F.one_hot_conv1d), third(reference), rtol=1e-12, atol=1e-12)


def test_one_parameter_alone_needs_a_gradient(backend: str) -> None:
    ids = draw_ids(13, 21, 10)
    weight, bias = draw(9, 10, 3, torch.float32)
    grad = torch.randn(13, 9, 19)
    both = torch.autograd.grad(F.one_hot_conv1d(ids, weight, bias), (weight, bias), grad)
    of_weight = F.one_hot_conv1d(ids, weight, bias.detach())
    assert torch.equal(torch.autograd.grad(of_weight, weight, grad)[0], both[0])
    of_bias = F.one_hot_conv1d(ids, weight.detach(), bias)
    assert torch.equal(torch.autograd.grad(of_bias, bias, grad)[0], both[1])
    assert not F.one_hot_conv1d(ids, weight.detach(), bias.detach()).requires_grad


def test_autocast_changes_nothing(backend: str) -> None:
    ids = draw_ids(13, 21, 10)
    parameters = draw(9, 10, 3, torch.float32)
    plain = F.one_hot_conv1d(ids, *parameters)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = F.one_hot_conv1d(ids, *parameters)
    assert torch.equal(ours, plain)
    gradients = (torch.autograd.grad(x.square().sum(), parameters) for x in (ours, plain))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_function_transforms_need_the_eager_backend(backend: str) -> None:
    ids = draw_ids(13, 21, 10)
    weights = torch.randn(4, 9, 10, 3, dtype=torch.float64)

    def loss(weight: Tensor) -> Tensor:
        return F.one_hot_conv1d(ids, weight).square().sum()

    transforms = (
        lambda: torch.vmap(lambda w: F.one_hot_conv1d(ids, w))(weights),
        lambda: torch.func.grad(loss)(weights[0]),
    )
    if backend == "cpp":
        for transform in transforms:
            with pytest.raises(RuntimeError, match=r"autograd.Function|vmap"):
                transform()
        return
    values, gradient = (transform() for transform in transforms)
    torch.testing.assert_close(values, torch.stack([reference(ids, w) for w in weights]))
    exact = torch.func.grad(lambda w: reference(ids, w).square().sum())(weights[0])
    torch.testing.assert_close(gradient, exact)


# ---- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, 10, 255, 2**40, -(2**62)])
@pytest.mark.parametrize("threads", [1, 2])
def test_ids_out_of_range_are_named(bad: int, threads: int, backend: str) -> None:
    torch.set_num_threads(threads)
    ids = draw_ids(900, 30, 10, torch.int64)
    ids[400, 11] = ids[400, 12] = ids[899, 0] = bad
    weight, bias = draw(9, 10, 3, torch.float32)
    with pytest.raises(ValueError, match=rf"ids\[400, 11\] is {bad}, outside \[0, 10\)"):
        F.one_hot_conv1d(ids, weight, bias)


def bad_arguments() -> list:
    ids, weight = torch.zeros(2, 9, dtype=torch.uint8), torch.zeros(4, 5, 3)
    bias = torch.zeros(4)
    return [
        ("ids must be a torch tensor; got list", ([[0]], weight), {}),
        (r"ids must have shape \[B, L\]; got \(9,\)", (ids[0], weight), {}),
        ("ids must be uint8.*got torch.float32", (ids.float(), weight), {}),
        ("ids has 2 positions, 2 with the padding.*spans 3", (ids[:, :2], weight), {}),
        ("ids has 2 .*, 4 with.* spans 5", (ids[:, :2], weight), {"padding": 1, "dilation": 2}),
        (r"weight must be a tensor of shape \[F, V, K\]; got \(4, 5\)", (ids, weight[..., 0]), {}),
        (r"weight must be a tensor of shape \[F, V, K\]; got list", (ids, [0.0]), {}),
        ("weight must be float32.*got torch.int64", (ids, weight.long()), {}),
        ("weight must not be empty", (ids, weight[:0]), {}),
        ("weight must not be empty", (ids, weight[:, :0]), {}),
        ("ids is on cpu but weight is on meta", (ids, weight.to("meta")), {}),
        (r"bias must be a tensor of shape \[4\]; got \(3,\)", (ids, weight, bias[:3]), {}),
        (r"bias must be a tensor of shape \[4\]; got float", (ids, weight, 1.0), {}),
        ("bias is torch.float64 on cpu but weight", (ids, weight, bias.double()), {}),
        ("stride must be an integer of at least 1; got 0", (ids, weight), {"stride": 0}),
        ("padding must be an integer of at least 0; got -1", (ids, weight), {"padding": -1}),
        ("padding must be an integer.*got 'same'", (ids, weight), {"padding": "same"}),
        ("dilation must be an integer of at least 1; got 0", (ids, weight), {"dilation": 0}),
        (r"padding_idx must lie in \[0, 5\); got 5", (ids, weight), {"padding_idx": 5}),
    ]  # fmt: skip


@pytest.mark.parametrize(("message", "arguments", "options"), bad_arguments())
def test_bad_arguments(message: str, arguments: tuple, options: dict, backend: str) -> None:
    with pytest.raises(ValueError, match=message):
        F.one_hot_conv1d(*arguments, **options)


# ---- the registered ops and torch.compile ------------------------------------------------------


@pytest.mark.usefixtures("library")
class TestOp:
    op = torch.ops.stib_fast.one_hot_conv1d.default
    backward = torch.ops.stib_fast.one_hot_conv1d_backward.default

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("with_bias", [False, True])
    def test_opcheck(self, with_bias: bool, dtype: torch.dtype) -> None:
        ids = draw_ids(6, 12, 5)
        weight, bias = draw(3, 5, 4, dtype)
        padding_idx = 2 if with_bias else None
        arguments = (ids, weight, bias if with_bias else None, 2, 1, 2, padding_idx)
        torch.library.opcheck(self.op, arguments)
        grad = torch.randn_like(self.op(*arguments)).requires_grad_()
        torch.library.opcheck(self.backward, (ids, grad, 5, 4, 2, 1, 2, padding_idx))

    def test_gradcheck(self) -> None:
        ids = draw_ids(6, 9, 4)
        parameters = draw(3, 4, 2, torch.float64)

        def function(weight: Tensor, bias: Tensor) -> Tensor:
            return self.op(ids, weight, bias, 2, 1, 2, 1).square()

        assert torch.autograd.gradcheck(function, parameters)
        assert torch.autograd.gradgradcheck(function, parameters)

    def test_arguments_out_of_bounds_are_refused(self) -> None:
        ids, weight, bias = draw_ids(6, 9, 4), torch.randn(3, 4, 2), torch.randn(3)
        for arguments in (
            (ids[0], weight, bias, 1, 0, 1, None),
            (ids.float(), weight, bias, 1, 0, 1, None),
            (ids, weight[0], bias, 1, 0, 1, None),
            (ids, weight.half(), None, 1, 0, 1, None),
            (ids, weight, bias[:2], 1, 0, 1, None),
            (ids, weight, bias.double(), 1, 0, 1, None),
            (ids, weight, bias, 0, 0, 1, None),
            (ids, weight, bias, 1, -1, 1, None),
            (ids, weight, bias, 1, 0, 9, None),
            (ids, weight, bias, 2**40, 0, 1, None),
            (ids + 1, weight, bias, 1, 0, 1, None),
        ):
            with pytest.raises(RuntimeError, match="one_hot"):
                self.op(*arguments)
        grad = torch.randn(6, 3, 8)
        for arguments in (
            (ids, grad[1:], 4, 2, 1, 0, 1, None),
            (ids, grad[..., 1:], 4, 2, 1, 0, 1, None),
            (ids, grad[0], 4, 2, 1, 0, 1, None),
            (ids, grad.half(), 4, 2, 1, 0, 1, None),
            (ids, grad, 0, 2, 1, 0, 1, None),
            (ids, grad, 2**28, 2, 1, 0, 1, None),
            (ids + 1, grad, 4, 2, 1, 0, 1, None),
        ):
            with pytest.raises(RuntimeError, match="one_hot"):
                self.backward(*arguments)


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def features(ids: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.tanh(F.one_hot_conv1d(ids, 2 * weight, bias, padding=1, padding_idx=0)).square()


@pytest.mark.usefixtures("_fresh_compiler")
class TestCompile:
    def test_values_and_gradients(self, backend: str) -> None:
        self.compare(torch.compile(features, fullgraph=True, backend="aot_eager"))

    def test_half_precision(self) -> None:
        compiled = torch.compile(features, fullgraph=True, backend="aot_eager")
        self.compare(compiled, dtype=torch.bfloat16)

    def test_one_graph_serves_any_number_of_strings(self) -> None:
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(features, fullgraph=True, backend=counter, dynamic=True)
        self.compare(compiled, sizes=(7,))
        graphs = counter.frame_count
        self.compare(compiled, sizes=(8, 40, 300))
        assert counter.frame_count == graphs

    def test_inductor(self) -> None:
        self.compare(torch.compile(features, fullgraph=True))

    def test_ids_out_of_range_are_refused(self) -> None:
        compiled = torch.compile(F.one_hot_conv1d, fullgraph=True, backend="aot_eager")
        with pytest.raises(RuntimeError, match=r"ids\[1, 2\] lies outside \[0, 5\)"):
            compiled(torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.randn(2, 5, 1))

    @staticmethod
    def compare(
        compiled: Callable[..., Tensor],
        sizes: tuple[int, ...] = (6, 40),
        dtype: torch.dtype = torch.float64,
    ) -> None:
        parameters = draw(3, 5, 4, dtype)
        for batch in sizes:  # a second size makes the batch a symbol
            ids = draw_ids(batch, 12, 5)
            results = []
            for function in (compiled, features):
                value = function(ids, *parameters)
                results.append((value, *torch.autograd.grad(value.sum(), parameters)))
            for ours, expected in zip(*results, strict=True):
                # Half precision: compiled, an operation may keep what eager mode rounds.
                torch.testing.assert_close(
                    ours, expected, rtol=8 * U[dtype], atol=64 * batch * U[dtype]
                )


def test_the_ops_refuse_no_filters(library: None) -> None:
    ids, ops = torch.zeros(2, 9, dtype=torch.uint8), torch.ops.stib_fast
    with pytest.raises(RuntimeError, match="must have a filter"):
        ops.one_hot_conv1d(ids, torch.zeros(0, 4, 3), None, 1, 0, 1, None)
    with pytest.raises(RuntimeError, match="must have a filter"):
        ops.one_hot_conv1d_backward(ids, torch.zeros(2, 0, 7), 4, 3, 1, 0, 1, None)
