"""The op ``one_hot_conv1d``: the convolution of one-hot ids, which are never made.

A convolution of one-hot rows is a sum of columns of the weight: with class c(j) at position j,

    out[b, f, t] = bias[f] + sum_k weight[f, c(t stride - padding + k dilation), k].

It is linear in weight and bias, so its transpose is all that derivatives of any order need: the
backward of each of the two ops here is the other.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from stib_fast.backends import LIBRARY, backend_for
from stib_fast.ops.moments import below_autograd
from stib_fast.ops.one_hot import refuse_ids_outside

LIBRARY.define(
    "one_hot_conv1d(Tensor ids, Tensor weight, Tensor? bias, int stride, int padding, int dilation,"
    " int? padding_idx) -> Tensor"
)
# The gradients with respect to weight and bias.
LIBRARY.define(
    "one_hot_conv1d_backward(Tensor ids, Tensor grad, int num_classes, int kernel_size, int stride,"
    " int padding, int dilation, int? padding_idx) -> (Tensor weight, Tensor bias)"
)

# Sums of a gradient in working precision are about this long, or as long as a table is tall, whose
# copies would otherwise cost more than the sums; cpu.cpp has the same number.
CHUNK = 2**12


def output_length(length: int, kernel_size: int, stride: int, padding: int, dilation: int) -> int:
    """L' of a convolution."""
    return (length + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1


@torch.library.register_fake("stib_fast::one_hot_conv1d", lib=LIBRARY)
def _(
    ids: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
    padding_idx: int | None,
) -> Tensor:
    outputs = output_length(ids.shape[1], weight.shape[2], stride, padding, dilation)
    return weight.new_empty((ids.shape[0], weight.shape[0], outputs))


@torch.library.register_fake("stib_fast::one_hot_conv1d_backward", lib=LIBRARY)
def _(
    ids: Tensor,
    grad: Tensor,
    num_classes: int,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    padding_idx: int | None,
) -> tuple[Tensor, Tensor]:
    filters = grad.shape[1]
    return grad.new_empty((filters, num_classes, kernel_size)), grad.new_empty((filters,))


def one_hot_conv1d_eager(
    ids: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
    padding_idx: int | None,
) -> Tensor:
    """The op in plain PyTorch, differentiable to any order; an id out of range adds nothing.

    Rows of a table are gathered tap by tap. Every chunk of the batch has a copy of the table, so
    that the sums of the weight's gradient stay short.
    """
    filters, classes, taps = weight.shape
    batch, length = ids.shape
    outputs = output_length(length, taps, stride, padding, dilation)
    wide = torch.promote_types(weight.dtype, torch.float32)
    ids = ids.to(torch.int64)  # 256 compared with uint8 would be 0
    without_class = (ids < 0) | (ids >= classes)
    if padding_idx is not None:
        without_class = without_class | (ids == padding_idx)
    positions = nnf.pad(ids.masked_fill(without_class, classes), (padding, padding), value=classes)
    per_chunk = max(1, max(CHUNK, classes) // outputs)
    chunks = (batch + per_chunk - 1) // per_chunk
    chunk = torch.arange(batch, device=ids.device)[:, None] // per_chunk
    # [K, V + 1, F]: the last row is that of whatever has no class.
    tables = nnf.pad(weight.to(wide).permute(2, 1, 0), (0, 0, 0, 1))
    if bias is not None:  # every output takes one row of the first tap
        tables = torch.cat([tables[:1] + bias.to(wide), tables[1:]])
    total = weight.new_zeros((batch, outputs, filters), dtype=wide)
    for k, table in enumerate(tables):
        first = k * dilation
        rows = positions[:, first : first + (outputs - 1) * stride + 1 : stride]
        copies = table.expand(chunks, -1, -1).reshape(-1, filters)
        total = total + nnf.embedding(rows + chunk * (classes + 1), copies)
    return total.transpose(1, 2).contiguous().to(weight.dtype)


def _triton() -> Any:
    """The two ops on a GPU, and on the CPU under the interpreter."""
    from stib_fast.kernels import one_hot_conv1d

    return one_hot_conv1d


LIBRARY.impl("one_hot_conv1d", lambda *a: _triton().one_hot_conv1d(*a), "CUDA")
LIBRARY.impl("one_hot_conv1d_backward", lambda *a: _triton().one_hot_conv1d_backward(*a), "CUDA")
DISPATCHED = SimpleNamespace(
    one_hot_conv1d=torch.ops.stib_fast.one_hot_conv1d.default,
    one_hot_conv1d_backward=torch.ops.stib_fast.one_hot_conv1d_backward.default,
)


class _OneHotConv1d(torch.autograd.Function):
    """The compiled op in eager mode: a thinner boundary than the registered one's."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Any,
        ids: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *geometry: int | None,
    ) -> Tensor:
        with below_autograd():
            out = kernels.one_hot_conv1d(ids, weight, bias, *geometry)
        ctx.save_for_backward(ids)
        ctx.kernels = kernels
        ctx.sizes, ctx.geometry, ctx.has_bias = weight.shape[1:], geometry, bias is not None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        weight, bias = _Backward.apply(ctx.kernels, ids, grad, *ctx.sizes, *ctx.geometry)
        return None, None, weight, bias if ctx.has_bias else None, None, None, None, None


class _Backward(torch.autograd.Function):
    """The transpose of `_OneHotConv1d`."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Any,
        ids: Tensor,
        grad: Tensor,
        num_classes: int,
        kernel_size: int,
        *geometry: int | None,
    ) -> tuple[Tensor, Tensor]:
        with below_autograd():
            weight, bias = kernels.one_hot_conv1d_backward(
                ids, grad, num_classes, kernel_size, *geometry
            )
        ctx.save_for_backward(ids)
        ctx.kernels, ctx.geometry = kernels, geometry
        return weight, bias

    @staticmethod
    def backward(ctx: Any, weight: Tensor, bias: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        out = _OneHotConv1d.apply(ctx.kernels, ids, weight, bias, *ctx.geometry)
        return None, None, out, None, None, None, None, None, None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ids, weight, bias, *geometry = inputs
    ctx.save_for_backward(ids)
    ctx.sizes, ctx.geometry, ctx.has_bias = weight.shape[1:], geometry, bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (ids,) = ctx.saved_tensors
    op = torch.ops.stib_fast.one_hot_conv1d_backward
    weight, bias = op(ids, grad, *ctx.sizes, *ctx.geometry)
    return None, weight, bias if ctx.has_bias else None, None, None, None, None


def _setup_context_of_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ids, _, _, _, *geometry = inputs
    ctx.save_for_backward(ids)
    ctx.geometry = geometry


def _backward_of_backward(ctx: Any, weight: Tensor, bias: Tensor) -> tuple[Tensor | None, ...]:
    (ids,) = ctx.saved_tensors
    out = torch.ops.stib_fast.one_hot_conv1d(ids, weight, bias, *ctx.geometry)
    return None, out, None, None, None, None, None, None


torch.library.register_autograd(
    "stib_fast::one_hot_conv1d", _backward, setup_context=_setup_context, lib=LIBRARY
)
torch.library.register_autograd(
    "stib_fast::one_hot_conv1d_backward",
    _backward_of_backward,
    setup_context=_setup_context_of_backward,
    lib=LIBRARY,
)


def one_hot_conv1d(
    ids: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
    padding_idx: int | None,
) -> Tensor:
    """Convolution of checked arguments on the backend in force."""
    geometry = (stride, padding, dilation, padding_idx)
    chosen = backend_for(ids.device, ("cpp", "triton"))
    if chosen == "eager":
        refuse_ids_outside(ids, weight.shape[1])
        return one_hot_conv1d_eager(ids, weight, bias, *geometry)
    # Half precision is summed in float32 and rounded once: the Triton kernels do that themselves.
    wide = weight.dtype
    if chosen != "triton":
        wide = torch.promote_types(wide, torch.float32)
    arguments = (ids, weight.to(wide), None if bias is None else bias.to(wide), *geometry)
    if torch.compiler.is_compiling():
        return torch.ops.stib_fast.one_hot_conv1d(*arguments).to(weight.dtype)
    try:
        kernels = _triton() if chosen == "triton" else DISPATCHED
        return _OneHotConv1d.apply(kernels, *arguments).to(weight.dtype)
    except RuntimeError:
        refuse_ids_outside(ids, weight.shape[1])
        raise
