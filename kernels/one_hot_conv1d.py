"""Convolution of one-hot encoded ids without the one-hot encoding.

`out[b, f, t] = bias[f] + sum_k weight[f, ids[b, t stride - padding + k dilation], k]`: a sum of
rows of a table. Its gradient is a matrix product with the one-hot matrix, which is made in
registers. Positions outside the sequence, `padding_idx` and ids outside [0, V) contribute 0.
"""

# Kernel arguments are pointers and numbers of the device.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from stib_fast.kernels.one_hot import NO_PADDING, valid_ids


@triton.jit
def one_hot_conv1d_kernel(
    ids,
    table,  # [TAPS, classes + 1, WIDTH]: the row past the last class is zero
    bias,
    out,  # [B, filters, outputs]
    batch,
    length,
    outputs,
    filters,
    classes,
    ids_stride_b,
    ids_stride_l,
    stride,
    padding,
    dilation,
    padding_idx,
    TAPS: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """A block of outputs of one sequence."""
    blocks = tl.cdiv(outputs, BLOCK_T)
    program = tl.program_id(0).to(tl.int64)
    # The filters' block changes slowest: its part of the table stays in the first-level cache.
    filter_block = program // (batch * blocks)
    b = program // blocks % batch
    t = (program % blocks).to(tl.int32) * BLOCK_T + tl.arange(0, BLOCK_T)
    f = filter_block.to(tl.int32) * BLOCK_F + tl.arange(0, BLOCK_F)
    total = tl.zeros([BLOCK_T, BLOCK_F], dtype=ACCUMULATE)
    if HAS_BIAS:
        total += tl.load(bias + f, mask=f < filters, other=0).to(ACCUMULATE)[None, :]
    for k in range(TAPS):
        position = t * stride - padding + k * dilation
        inside = (position >= 0) & (position < length)
        pointers = ids + b * ids_stride_b + position.to(tl.int64) * ids_stride_l
        token = valid_ids(pointers, inside, classes, padding_idx)
        row = k * (classes + 1) + tl.where(token < 0, classes, token)
        total += tl.load(table + row[:, None] * WIDTH + f[None, :]).to(ACCUMULATE)
    pointers = out + (b * filters + f)[None, :] * outputs + t[:, None]
    tl.store(pointers, total, mask=(t < outputs)[:, None] & (f < filters)[None, :])


@triton.jit
def one_hot_conv1d_weight_gradient_kernel(
    ids,
    grad,
    partial,  # [chunks, TAPS, filters, classes], float64
    batch,
    length,
    output_steps,  # outputs / ALIGNMENT: products tell the compiler how rows are aligned
    filters,
    classes,
    steps,  # blocks of outputs a program takes
    ids_stride_b,
    ids_stride_l,
    grad_steps_b,  # stride / ALIGNMENT
    grad_steps_f,
    grad_stride_t,
    stride,
    padding,
    dilation,
    padding_idx,
    TAPS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """One tile of grad [filters, outputs] times the one-hot ids [outputs, V] that one tap sees.

    A float32 gradient is the sum of two parts of 11 significant bits, so that the tensor cores
    multiply it by 0 and 1 with an error of at most one unit in its last place; each block of
    outputs is added up in float64. No atomics: a chunk's sum has one order.
    """
    outputs = output_steps * ALIGNMENT
    filter_tiles = tl.cdiv(filters, BLOCK_F)
    class_tiles = tl.cdiv(classes, BLOCK_V)
    blocks = tl.cdiv(outputs, BLOCK_T)
    # The programs that read the same part of grad run side by side: it stays in the cache.
    program = tl.program_id(0).to(tl.int64)
    tap = (program % TAPS).to(tl.int32)
    v = (program // TAPS % class_tiles).to(tl.int32) * BLOCK_V + tl.arange(0, BLOCK_V)
    program = program // (TAPS * class_tiles)
    f = (program % filter_tiles).to(tl.int32) * BLOCK_F + tl.arange(0, BLOCK_F)
    chunk = program // filter_tiles
    rows = tl.minimum(f, filters - 1).to(INDEX) * grad_steps_f * ALIGNMENT
    total = tl.zeros([BLOCK_F, BLOCK_V], dtype=tl.float64)
    for step in range(chunk * steps, tl.minimum((chunk + 1) * steps, batch * blocks)):
        b = step // blocks
        t = (step % blocks).to(tl.int32) * BLOCK_T + tl.arange(0, BLOCK_T)
        position = t * stride - padding + tap * dilation
        inside = (t < outputs) & (position >= 0) & (position < length)
        pointers = ids + b * ids_stride_b + position.to(tl.int64) * ids_stride_l
        token = valid_ids(pointers, inside, classes, padding_idx)
        hot = token[:, None] == v[None, :]
        offsets = rows[:, None] + t.to(INDEX)[None, :] * grad_stride_t
        row = grad + b * grad_steps_b * ALIGNMENT
        g = tl.load(row + offsets, mask=(t < outputs)[None, :], other=0)
        if g.dtype == tl.float64:
            total += tl.dot(g, hot.to(tl.float64), input_precision="ieee", out_dtype=tl.float64)
        elif g.dtype == tl.float32:
            hot = hot.to(tl.float32)
            high = ((g.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
            product = tl.dot(g - high, hot, input_precision="tf32")
            product = tl.dot(high, hot, product, input_precision="tf32")
            total += product.to(tl.float64)
        else:  # half precision: at most 11 significant bits
            product = tl.dot(g.to(tl.float32), hot.to(tl.float32), input_precision="tf32")
            total += product.to(tl.float64)
    pointers = partial + ((chunk * TAPS + tap) * filters + f)[:, None] * classes + v[None, :]
    tl.store(pointers, total, mask=(f < filters)[:, None] & (v < classes)[None, :])


def _block(size: int, most: int) -> int:
    """A power of two from 16, the least a product of tiles takes, to `most`."""
    return min(most, max(16, triton.next_power_of_2(size)))


def _padded_least(size: int, blocks: tuple[int, ...]) -> int:
    """The block whose multiples exceed `size` least; the largest of those."""
    return min(blocks, key=lambda block: (triton.cdiv(size, block) * block, -block))


def one_hot_conv1d(
    ids: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
    padding_idx: int | None,
) -> Tensor:
    """`conv1d` of the one-hot rows of ids [B, L] with weight [F, V, K], any strides.

    Returns
    -------
    Tensor
        [B, F, (L + 2 padding - dilation (K - 1) - 1) // stride + 1] of the weight's dtype, summed
        in float32, or float64 for float64.
    """
    batch, length = ids.shape
    filters, classes, taps = weight.shape
    outputs = (length + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    out = weight.new_empty((batch, filters, outputs))
    if out.numel() == 0:
        return out
    block_f = _block(filters, 32)
    width = triton.cdiv(filters, block_f) * block_f
    table = weight.new_zeros((taps, classes + 1, width))
    table[:, :classes, :filters] = weight.permute(2, 1, 0)
    wide = weight.dtype == torch.float64
    block_t = _padded_least(outputs, (32, 64) if wide else (32, 64, 128))
    grid = width // block_f * batch * triton.cdiv(outputs, block_t)
    with torch.cuda.device_of(ids):
        one_hot_conv1d_kernel[(grid,)](
            ids,
            table,
            table if bias is None else bias.contiguous(),
            out,
            batch,
            length,
            outputs,
            filters,
            classes,
            *ids.stride(),
            stride,
            padding,
            dilation,
            NO_PADDING if padding_idx is None else padding_idx,
            TAPS=taps,
            WIDTH=width,
            HAS_BIAS=bias is not None,
            ACCUMULATE=tl.float64 if wide else tl.float32,
            BLOCK_T=block_t,
            BLOCK_F=block_f,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return out


def one_hot_conv1d_backward(
    ids: Tensor,
    grad: Tensor,
    num_classes: int,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    padding_idx: int | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of `one_hot_conv1d` from `grad` [B, F, L'], any strides.

    Returns
    -------
    weight : Tensor
        [F, V, K] of the gradient's dtype, summed in float64 and rounded once; the same bits from
        run to run. NaN or infinity in `grad` makes NaN of the classes of its filter and tap.
    bias : Tensor
        [F], likewise.
    """
    batch, length = ids.shape
    _, filters, outputs = grad.shape
    if grad.numel() == 0:
        return grad.new_zeros((filters, num_classes, kernel_size)), grad.new_zeros((filters,))
    wide = grad.dtype == torch.float64
    if wide:
        ids = ids.long()  # Triton 3.6 has no float64 product of what loads of fewer bits made
    # One size for float64: with others Triton 3.6 or 3.9 spills registers.
    block_f = 32 if wide else _block(filters, 64)
    block_v = 32 if wide else _block(num_classes, 64)
    block_t = 16 if wide else 32
    tiles = triton.cdiv(filters, block_f) * triton.cdiv(num_classes, block_v) * kernel_size
    total_steps = batch * triton.cdiv(outputs, block_t)
    # About 1024 programs: several for each processor of any GPU, whatever their number, and each
    # with work enough to pay for its partial sum.
    steps = max(64, triton.cdiv(total_steps * tiles, 1024))
    chunks = triton.cdiv(total_steps, steps)
    partial = grad.new_empty((chunks, kernel_size, filters, num_classes), dtype=torch.float64)
    stride_b, stride_f, stride_t = grad.stride()
    alignment = math.gcd(outputs, stride_b, stride_f, 16)
    extent = filters * stride_f + outputs * stride_t
    with torch.cuda.device_of(ids):
        one_hot_conv1d_weight_gradient_kernel[(chunks * tiles,)](
            ids,
            grad,
            partial,
            batch,
            length,
            outputs // alignment,
            filters,
            num_classes,
            steps,
            *ids.stride(),
            stride_b // alignment,
            stride_f // alignment,
            stride_t,
            stride,
            padding,
            dilation,
            NO_PADDING if padding_idx is None else padding_idx,
            TAPS=kernel_size,
            ALIGNMENT=alignment,
            INDEX=tl.int32 if extent < 2**31 else tl.int64,
            BLOCK_F=block_f,
            BLOCK_V=block_v,
            BLOCK_T=block_t,
            # 16 rows of a tensor core's tile each: Triton lays the warps along the filters.
            num_warps=block_f // 16,
            enable_fp_fusion=False,
        )
    weight = partial.sum(0).permute(1, 2, 0)
    bias = grad.sum((0, 2), dtype=torch.float64)
    return weight.to(grad.dtype).contiguous(), bias.to(grad.dtype)
