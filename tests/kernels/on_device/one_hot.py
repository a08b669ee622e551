"""The Triton kernels of one_hot and one_hot_conv1d, run by `test_on_device.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import stib_fast
from stib_fast import backends
from stib_fast import functional as F

pytest.importorskip("triton")
from stib_fast.kernels import one_hot as one_hot_kernels
from stib_fast.kernels import one_hot_conv1d as conv1d_kernels

DEVICE = torch.device("cpu" if backends.INTERPRETING else "cuda")
UNIT_ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11}
if DEVICE.type == "cuda":
    UNIT_ROUNDOFF[torch.bfloat16] = 2.0**-8  # the interpreter has no bfloat16 products


def poison(x: Tensor) -> Tensor:
    return x.fill_(torch.nan if x.is_floating_point() else 111)


def draw_ids(batch: int, length: int, classes: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Every class, and ids on both sides of their range where the dtype has them."""
    least = 0 if dtype == torch.uint8 else -2
    most = min(classes + 2, torch.iinfo(dtype).max)
    return torch.randint(least, most, (batch, length)).to(DEVICE, dtype)


def hot(ids: Tensor, classes: int, padding_idx: int | None) -> Tensor:
    """[B, V, L]"""
    ids = ids.long()
    one = ids[:, None] == torch.arange(classes, device=ids.device)[:, None]
    return one if padding_idx is None else one & (ids != padding_idx)[:, None]


ONE_HOT_SHAPES = [  # batch, length, classes
    (2, 120, 64),  # ZINC: whole stores of one row
    (3, 37, 35),  # the number of bytes is odd
    (5, 8, 2),  # several rows in a store, and in a word
    (2, 24, 63),  # a store spans two rows
    (60, 24, 66),  # several programs, the last one not full
    (2, 130, 7),  # two blocks of positions
    (1, 3, 300),  # classes past one program's part, no multiple of its block
    (1, 1, 1),
    (0, 3, 4),
    (3, 0, 4),
]
ONE_HOT_DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8]
ONE_HOT_DTYPES += [torch.bool, torch.int64]


def check_one_hot(ids: Tensor, classes: int, dtype: torch.dtype, padding_idx: int | None) -> None:
    expected = hot(ids, classes, padding_idx).to(dtype)
    for classes_first in (False, True):
        planes = expected if classes_first else expected.transpose(1, 2)
        out = poison(torch.empty(planes.shape, dtype=dtype, device=DEVICE))
        one_hot_kernels.one_hot(out, ids, classes_first, padding_idx)
        assert torch.equal(out, planes)


@pytest.mark.parametrize("dtype", ONE_HOT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", ONE_HOT_SHAPES, ids=str)
def test_one_hot(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    batch, length, classes = shape
    check_one_hot(draw_ids(batch, length, classes), classes, dtype, classes // 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("padding_idx", [None, 0, 6])
def test_one_hot_ids(dtype: torch.dtype, padding_idx: int | None) -> None:
    ids = draw_ids(4, 30, 7, dtype)
    check_one_hot(ids, 7, torch.float32, padding_idx)
    wide = torch.full((8, 4 * 30), 5, dtype=dtype, device=DEVICE)
    wide[::2, 3::4] = ids
    check_one_hot(wide[::2, 3::4], 7, torch.float32, padding_idx)


@pytest.mark.parametrize("beyond", [2**32, 2**32 + 3, -(2**32) + 3, 2**63 - 1, -(2**63)])
def test_ids_are_not_narrowed_before_they_are_compared(beyond: int) -> None:
    ids = torch.tensor([[3, beyond]], device=DEVICE)
    check_one_hot(ids, 7, torch.float32, None)
    weight = torch.ones((1, 7, 1), device=DEVICE)
    assert conv1d_kernels.one_hot_conv1d(ids, weight, None, 1, 0, 1, None).tolist() == [[[1, 0]]]


@pytest.mark.parametrize(
    "offset", [1, 2, 3, 4]
)  # bytes: a place for no word, short ones, and whole
def test_one_hot_writes_only_its_part(offset: int) -> None:
    ids = draw_ids(2, 12, 8)
    whole = poison(torch.empty(200 + offset, dtype=torch.uint8, device=DEVICE))
    out = whole[offset : offset + 192].view(2, 12, 8)
    one_hot_kernels.one_hot(out, ids, False, None)
    assert torch.equal(out, hot(ids, 8, None).transpose(1, 2).to(torch.uint8))
    assert (whole[:offset] == 111).all()
    assert (whole[offset + 192 :] == 111).all()


CONV1D_SHAPES = [  # batch, length, classes, filters, taps, stride, padding, dilation
    (2, 120, 64, 9, 9, 1, 0, 1),  # ZINC, after Gómez-Bombarelli et al. 2018
    (2, 41, 35, 33, 3, 2, 1, 2),  # no size is a multiple of a block
    (1, 3, 5, 70, 3, 1, 0, 1),  # one output; three blocks of filters forward, two backward
    (2, 300, 70, 3, 2, 3, 5, 7),  # two blocks of outputs; two of classes
    (3, 5, 4, 2, 2, 1, 6, 1),  # windows that see only padding
    (70, 8, 6, 2, 1, 1, 0, 1),  # two chunks of the gradient, the last one not full
    (1, 1, 1, 1, 1, 1, 0, 1),
    (0, 9, 5, 3, 3, 1, 1, 1),
]
CONV1D_CASES = [
    *((shape, torch.float32) for shape in CONV1D_SHAPES),
    *((CONV1D_SHAPES[1], dtype) for dtype in UNIT_ROUNDOFF if dtype != torch.float32),
]


def geometry_of(shape: tuple[int, ...]) -> tuple[int, int, int]:
    stride, padding, dilation = shape[5:]
    return stride, padding, dilation


def convolve(
    ids: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple, padding_idx: int | None
) -> Tensor:
    """The reference, in float64."""
    dense = hot(ids, weight.shape[1], padding_idx).double()
    return torch.nn.functional.conv1d(
        dense, weight.double(), None if bias is None else bias.double(), *geometry
    )


def assert_within(ours: Tensor, expected: Tensor, tolerance: Tensor) -> None:
    assert ours.shape == expected.shape
    assert ((ours.double() - expected).abs() <= tolerance).all()


@pytest.mark.parametrize(("shape", "dtype"), CONV1D_CASES, ids=str)
def test_conv1d(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, length, classes, filters, taps = shape[:5]
    geometry = geometry_of(shape)
    ids = draw_ids(batch, length, classes)
    weight = torch.randn(filters, classes, taps).to(DEVICE, dtype)
    for bias, padding_idx in ((torch.randn(filters).to(DEVICE, dtype), classes // 2), (None, None)):
        ours = conv1d_kernels.one_hot_conv1d(ids, weight, bias, *geometry, padding_idx)
        expected = convolve(ids, weight, bias, geometry, padding_idx)
        # taps additions in float32 or better, one rounding to the result's dtype.
        size = convolve(
            ids, weight.abs(), None if bias is None else bias.abs(), geometry, padding_idx
        )
        unit = min(UNIT_ROUNDOFF[dtype], 2.0**-24)
        assert ours.dtype == dtype
        assert_within(ours, expected, taps * unit * size + UNIT_ROUNDOFF[dtype] * expected.abs())


def gradients(
    ids: Tensor, grad: Tensor, classes: int, taps: int, geometry: tuple, padding_idx: int | None
) -> tuple[Tensor, Tensor]:
    """The reference, in float64."""
    filters = grad.shape[1]
    options = {"dtype": torch.float64, "device": grad.device, "requires_grad": True}
    weight = torch.zeros(filters, classes, taps, **options)
    bias = torch.zeros(filters, **options)
    out = convolve(ids, weight, bias, geometry, padding_idx)
    grad_weight, grad_bias = torch.autograd.grad(out, (weight, bias), grad.double())
    return grad_weight, grad_bias


def check_gradients(
    ids: Tensor, grad: Tensor, classes: int, taps: int, geometry: tuple, padding_idx: int | None
) -> None:
    ours = conv1d_kernels.one_hot_conv1d_backward(ids, grad, classes, taps, *geometry, padding_idx)
    expected = gradients(ids, grad, classes, taps, geometry, padding_idx)
    sizes = gradients(ids, grad.abs(), classes, taps, geometry, padding_idx)
    # Two parts of a float32 leave at most 2**-23 of it. Sums of 32 outputs, each in two parts, are
    # in float32, which tensor cores cut off rather than round; what follows is in float64.
    unit = UNIT_ROUNDOFF[grad.dtype]
    sums = ids.numel() * unit if grad.dtype == torch.float64 else 2.0**-23 * (1 + 2 * 32)
    for one, other, size in zip(ours, expected, sizes, strict=True):
        assert one.dtype == grad.dtype
        assert_within(one, other, sums * size + unit * other.abs())


@pytest.mark.parametrize(("shape", "dtype"), CONV1D_CASES, ids=str)
def test_conv1d_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, length, classes, filters, taps = shape[:5]
    ids = draw_ids(batch, length, classes)
    outputs = convolve(ids, torch.zeros(filters, classes, taps), None, geometry_of(shape), None)
    grad = torch.randn(outputs.shape).to(DEVICE, dtype)
    check_gradients(ids, grad, classes, taps, geometry_of(shape), classes // 2)


def test_conv1d_strides() -> None:
    ids = draw_ids(36, 6, 5, torch.uint8).T[::2]  # [3, 36]
    weight = torch.randn(3, 5, 4, device=DEVICE).transpose(0, 2)  # [4, 5, 3]
    bias = torch.randn(8, device=DEVICE)[::2]
    ours = conv1d_kernels.one_hot_conv1d(ids, weight, bias, 1, 1, 1, None)
    expected = convolve(ids, weight, bias, (1, 1, 1), None)
    assert_within(ours, expected, 4 * 2.0**-24 * (expected.abs() + 20))
    base = torch.randn(36, 3, 8, device=DEVICE).permute(1, 2, 0)[:, ::2]
    for grad in (base, base[:, :1, :1].expand(3, 4, 36), base.contiguous()[..., :35]):
        check_gradients(ids[:, : grad.shape[2]], grad, 5, 3, (1, 1, 1), None)


def test_conv1d_gradient_adds_up_in_float64() -> None:
    """Next to 2**25 a float32 sum loses each 1, inside a chunk and over the two there are."""
    ids = torch.zeros((80, 8), dtype=torch.uint8, device=DEVICE)
    grad = torch.zeros((80, 1, 8), device=DEVICE)
    grad[:, 0, 3] = 1
    grad[0, 0, 3], grad[79, 0, 3] = 2.0**25, -(2.0**25)
    arguments = (ids, grad, 2, 1, 1, 0, 1, None)
    weight, bias = conv1d_kernels.one_hot_conv1d_backward(*arguments)
    assert weight.flatten().tolist() == [78, 0]
    assert bias.tolist() == [78]
    again, _ = conv1d_kernels.one_hot_conv1d_backward(*arguments)
    assert torch.equal(weight, again)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The backend is Triton; the names of its host functions as they are called."""
    names: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any) -> Any:
            names.append(name)
            return function(*arguments)

        return count

    for module, name in (
        (one_hot_kernels, "one_hot"),
        (conv1d_kernels, "one_hot_conv1d"),
        (conv1d_kernels, "one_hot_conv1d_backward"),
    ):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    with stib_fast.backend("triton"):
        yield names


@pytest.mark.parametrize("layout", ["BLV", "BVL"])
def test_functional_one_hot(layout: str, calls: list[str]) -> None:
    ids = torch.randint(7, (3, 37)).to(DEVICE, torch.uint8)
    expected = hot(ids, 7, 3) if layout == "BVL" else hot(ids, 7, 3).transpose(1, 2)
    ours = F.one_hot(ids, 7, dtype=torch.float16, layout=layout, padding_idx=3)
    assert torch.equal(ours, expected.half())
    out = poison(torch.empty_like(ours))
    assert F.one_hot(ids, 7, dtype=torch.float16, layout=layout, padding_idx=3, out=out) is out
    assert torch.equal(out, ours)
    assert calls == ["one_hot"] * 2


@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF, ids=str)
def test_functional_conv1d(dtype: torch.dtype, calls: list[str]) -> None:
    """Values and gradients, with an incoming gradient that is not 1."""
    ids = torch.randint(7, (3, 37)).to(DEVICE, torch.uint8)
    weight = torch.randn(4, 7, 3).to(DEVICE, dtype).requires_grad_()
    bias = torch.randn(4).to(DEVICE, dtype).requires_grad_()
    out = F.one_hot_conv1d(ids, weight, bias, 2, 1, 2, padding_idx=0)
    grad = torch.randn(out.shape).to(DEVICE, dtype)
    with stib_fast.backend("eager"):  # the backward stays where the forward was
        ours = torch.autograd.grad(out, (weight, bias), grad)
    assert calls == ["one_hot_conv1d", "one_hot_conv1d_backward"]
    wide = [x.detach().double().requires_grad_() for x in (weight, bias)]
    expected = convolve(ids, *wide, (2, 1, 2), 0)
    expected_gradients = torch.autograd.grad(expected, wide, grad.double())
    assert out.dtype == dtype
    # Sums of at most 60 terms of size 4, all but their last rounding in float32 or better.
    tolerance = 2.0**-44 if dtype == torch.float64 else 2.0**-15
    for one, other in zip((out, *ours), (expected, *expected_gradients), strict=True):
        assert_within(one, other, tolerance + UNIT_ROUNDOFF[dtype] * other.abs())


def test_gradcheck(calls: list[str]) -> None:
    ids = torch.tensor([[0, 2, 1, 1, 2]], device=DEVICE)
    weight = torch.randn(2, 3, 2, dtype=torch.float64, device=DEVICE, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, device=DEVICE, requires_grad=True)

    def convolution(weight: Tensor, bias: Tensor) -> Tensor:
        return F.one_hot_conv1d(ids, weight, bias, 2, 1, 1, padding_idx=0)

    assert torch.autograd.gradcheck(convolution, (weight, bias))
    assert torch.autograd.gradgradcheck(convolution, (weight, bias))
    assert set(calls) == {"one_hot_conv1d", "one_hot_conv1d_backward"}


def test_registered_for_the_gpu() -> None:
    """torch.compile and export reach the kernels through the dispatcher."""
    for name in ("one_hot", "one_hot_conv1d", "one_hot_conv1d_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"stib_fast::{name}", "CUDA")
