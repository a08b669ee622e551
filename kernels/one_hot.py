"""Dense one-hot encoding: as many bytes written as `fill_` writes, and only ids read.

The output is contiguous in both layouts, so it is written as one flat buffer or as whole planes,
never through masked rows of `num_classes` elements that begin where no wide store can.
"""

# Kernel arguments are pointers and numbers of the device.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

NO_PADDING = -1  # never equal to an id that counts
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


@triton.jit
def valid_ids(pointers, mask, classes, padding_idx):
    """Ids as int32; far below 0 where masked, for those outside [0, classes) and the padding id."""
    ids = tl.load(pointers, mask=mask, other=0)
    valid = mask & (ids.to(tl.uint64) < classes)  # before they are narrowed; below 0 is far above
    ids = ids.to(tl.int32)
    return tl.where(valid & (ids != padding_idx), ids, -(2**30))


@triton.jit
def one_hot_rows_kernel(
    ids,  # [rows]
    out,  # [units, UNIT] words: the rows of CLASSES elements, end to end
    rows,
    units,
    padding_idx,
    CLASSES: tl.constexpr,  # a division by a constant is a multiplication
    ONE: tl.constexpr,  # the bits of the number 1
    BITS: tl.constexpr,  # of an element
    PER_WORD: tl.constexpr,  # elements
    UNIT: tl.constexpr,  # words in a wide store
    BLOCK: tl.constexpr,
):
    """Layout [B, L, V]. A unit holds elements of one row, or of several where they end inside."""
    PER_UNIT: tl.constexpr = UNIT * PER_WORD
    ROWS: tl.constexpr = 1 if CLASSES % PER_UNIT == 0 else 2 + (PER_UNIT - 2) // CLASSES
    start = tl.program_id(0).to(tl.int64) * BLOCK
    first_row = start * PER_UNIT // CLASSES
    first_column = (start * PER_UNIT - first_row * CLASSES).to(tl.int32)
    unit = tl.arange(0, BLOCK)
    inside = unit < tl.minimum(units - start, BLOCK).to(tl.int32)
    element = (first_column + unit * PER_UNIT).to(tl.uint32)
    row = (element // CLASSES).to(tl.int32)
    column = element.to(tl.int32) - row * CLASSES
    word = tl.arange(0, UNIT)[None, :]
    value = tl.zeros([BLOCK, UNIT], dtype=out.dtype.element_ty)
    one = tl.full([BLOCK, UNIT], ONE, dtype=out.dtype.element_ty)
    for i in tl.static_range(ROWS):
        counts = inside
        if i > 0:
            counts &= first_row + row + i < rows
        token = valid_ids(ids + first_row + row + i, counts, CLASSES, padding_idx)
        place = (token + i * CLASSES - column)[:, None] - word * PER_WORD
        hit = place.to(tl.uint32) < PER_WORD
        if PER_WORD > 1:
            value = tl.where(hit, value | one << (place * BITS).to(one.dtype), value)
        else:
            value = tl.where(hit, one, value)
    tl.store(out + (start + unit)[:, None] * UNIT + word, value, mask=inside[:, None])


@triton.jit
def one_hot_planes_kernel(
    ids,  # [B, length]
    out,  # [B, classes, length], as integers
    classes,
    steps,  # length / ALIGNMENT: a product tells the compiler how rows are aligned
    padding_idx,
    ONE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    PART: tl.constexpr,  # classes a program writes
    BLOCK_V: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Layout [B, V, L]. The ids of a block stay in registers while its rows are written."""
    length = steps * ALIGNMENT
    blocks = tl.cdiv(length, BLOCK_L)
    parts = tl.cdiv(classes, PART)
    program = tl.program_id(0).to(tl.int64)
    batch = program // (parts * blocks)
    first = (program // blocks % parts).to(tl.int32) * PART
    position = (program % blocks).to(tl.int32) * BLOCK_L + tl.arange(0, BLOCK_L)
    inside = position < length
    token = valid_ids(ids + batch * length + position, inside, classes, padding_idx)
    for step in range(0, PART, BLOCK_V):
        row = first + step + tl.arange(0, BLOCK_V)
        value = tl.where(row[:, None] == token[None, :], ONE, 0).to(out.dtype.element_ty)
        pointers = out + (batch * classes + row)[:, None] * length + position[None, :]
        tl.store(pointers, value, mask=(row < classes)[:, None] & inside[None, :])


def one_hot(out: Tensor, ids: Tensor, classes_first: bool, padding_idx: int | None) -> None:
    """Write the one-hot rows of ids; zeros for `padding_idx` and for ids that are no class.

    Parameters
    ----------
    out : Tensor
        [B, L, V], or [B, V, L] where `classes_first`; contiguous, of at most 8 bytes an element.
    ids : Tensor
        [B, L] of any integer dtype, on a GPU (on the CPU under the interpreter).
    classes_first : bool
    padding_idx : int or None
    """
    if out.numel() == 0:
        return
    ids = ids.contiguous()
    size = out.element_size()
    one = int(torch.ones(1, dtype=out.dtype).view(INTEGERS[size]))
    padding = NO_PADDING if padding_idx is None else padding_idx
    with torch.cuda.device_of(ids):
        if classes_first:
            _, classes, length = out.shape
            alignment = math.gcd(length, 16)
            part = 128
            block = min(128, triton.next_power_of_2(length))
            programs = len(out) * triton.cdiv(classes, part) * triton.cdiv(length, block)
            one_hot_planes_kernel[(programs,)](
                ids,
                out.view(INTEGERS[size]),
                classes,
                length // alignment,
                padding,
                ONE=one,
                ALIGNMENT=alignment,
                PART=part,
                BLOCK_V=32,
                BLOCK_L=block,
                num_warps=4,
                enable_fp_fusion=False,
            )
        else:
            # A store is as wide as divides the whole and its place: 16 bytes unless they are odd.
            width = max(size, math.gcd(out.numel() * size, out.data_ptr(), 16))
            word = max(size, min(width, 4))
            units = out.numel() * size // width
            block = 1024  # 8 stores a thread: enough in flight, and few programs to start
            one_hot_rows_kernel[(triton.cdiv(units, block),)](
                ids,
                out.view(-1).view(INTEGERS[word]),
                ids.numel(),
                units,
                padding,
                CLASSES=out.shape[2],
                ONE=one,
                BITS=8 * size,
                PER_WORD=word // size,
                UNIT=width // word,
                BLOCK=block,
                num_warps=4,
                enable_fp_fusion=False,
            )
