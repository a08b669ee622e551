"""The two passes of the gaussian_mi family over its rows: moments, and rows of the gradient.

The parts of a sample are read in place, as if their columns stood side by side. Products are in
float64, on the tensor cores where a GPU has them for it.
"""

# Kernel arguments are pointers and numbers of the device.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_COLUMNS = 128  # past them rows are the vendor's matrix products
# Of moments: an H200 holds some 1,600 at a time, with as many registers as they have.
WARPS = 4096
PARTIALS = 2**21  # most entries of the scatters of all chunks: 16 MB
PROGRAMS = 1024  # of apply


@triton.jit
def column_pointers(parts, row_strides, column_strides, begin, column, SIZES):
    """Where each column is in row `begin`, an int64, and its step to the next row."""
    pointers = parts[0] + begin * row_strides[0] + column.to(tl.int64) * column_strides[0]
    steps = column * 0 + row_strides[0]
    for part in tl.static_range(1, len(SIZES)):
        column -= SIZES[part - 1]
        others = parts[part] + begin * row_strides[part]
        others += column.to(tl.int64) * column_strides[part]
        pointers = tl.where(column >= 0, others, pointers)
        steps = tl.where(column >= 0, row_strides[part], steps)
    return pointers, steps


@triton.jit
def tile_pointers(pointers, steps, row, INDEX):
    """Those of rows that are counted from where `pointers` are."""
    return pointers[None, :] + row.to(INDEX)[:, None] * steps.to(INDEX)[None, :]


@triton.jit
def typical_value(pointers, mask, weights):
    """A weighted mean of each column, in the dtype of the elements."""
    x = tl.load(pointers, mask=mask, other=0)
    total = tl.sum(weights, 0)
    mean = tl.sum(weights[:, None] * x.to(tl.float64), 0) / tl.where(total > 0, total, 1)
    if x.dtype != tl.float64:
        mean = mean.to(tl.float32)  # the interpreter makes no bfloat16 of float64
    return mean.to(x.dtype)


@triton.jit
def centered(x, origin, WIDE, PRODUCT):
    """The rows less the origin, a number of each column."""
    return (x.to(WIDE) - origin.to(WIDE)[None, :]).to(PRODUCT)


@triton.jit
def add_products(left, right, total):
    """`total` + left^T right: summed in float64 over tiles, in the dtype of both within one."""
    if left.dtype == tl.float64:
        return tl.dot(tl.trans(left), right, total, out_dtype=tl.float64)
    return total + tl.dot(tl.trans(left), right, input_precision="ieee").to(tl.float64)


@triton.jit
def about_mean(products, left, right, count):
    """Scatter about the mean, from products about an origin and sums of differences from it."""
    # Infinity may leave an infinite product of either sign: all is NaN, as with NaN.
    spoiled = (left - left)[:, None] + (right - right)[None, :]
    return products - left[:, None] * (right / count)[None, :] + spoiled


@triton.jit
def store_symmetric(matrix, i, j, values, D):
    """Entries [i, j] at or above the diagonal of [D, D], and their mirror images."""
    i = i[:, None]
    j = j[None, :]
    inside = (i <= j) & (j < D)
    tl.store(matrix + i * D + j, values, mask=inside)
    tl.store(matrix + j * D + i, values, mask=inside)


@triton.jit
def moments_kernel(
    parts,
    row_strides,
    column_strides,
    weight,  # float64
    counts,  # [chunks], float64
    means,  # [chunks, D], float64
    scatters,  # [chunks, D, D], float64
    rows,
    chunk_rows,
    SIZES: tl.constexpr,  # columns of each part
    D: tl.constexpr,
    FIRST: tl.constexpr,  # columns of two blocks that cover all
    SECOND: tl.constexpr,
    TILED: tl.constexpr,  # a program has the products of two blocks alone
    ROWS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    WIDE: tl.constexpr,  # dtype in which rows are centred
    PRODUCT: tl.constexpr,  # and multiplied
    INDEX: tl.constexpr,
):
    """Moments of one chunk of rows.

    Products are about one origin, so that they carry no offset: the mean of a tile. What remains of
    it is taken off at the end; that costs at most a factor of the number of tiles in rounding.
    """
    chunk = tl.program_id(0).to(tl.int64)
    begin = chunk * chunk_rows
    rows = tl.minimum(rows - begin, chunk_rows).to(tl.int32)
    row = tl.arange(0, ROWS)
    if tl.program_id(1) > tl.program_id(2):
        return  # the mirror image of another tile
    first = tl.program_id(1) * FIRST + tl.arange(0, FIRST)
    first_inside = (first < D)[None, :]
    first_pointers, first_steps = column_pointers(
        parts, row_strides, column_strides, begin, first, SIZES
    )
    if SECOND > 0:
        second = (tl.program_id(2) if TILED else 1) * FIRST + tl.arange(0, SECOND)
        second_inside = (second < D)[None, :]
        second_pointers, second_steps = column_pointers(
            parts, row_strides, column_strides, begin, second, SIZES
        )

    start = 0
    inside = row < rows
    weights = inside.to(tl.float64)
    if WEIGHTED:  # rows of weight 0 may hold anything: the heaviest tile is the typical one
        weight += begin
        heaviest = tl.full([], 0, dtype=tl.float64)
        for tile in range(0, rows, ROWS):
            total = tl.sum(tl.load(weight + tile + row, mask=tile + row < rows, other=0), 0)
            start = tl.where(total > heaviest, tile, start)
            heaviest = tl.maximum(total, heaviest)
        inside = start + row < rows
        weights = tl.load(weight + start + row, mask=inside, other=0)
    inside = inside[:, None]
    at = tile_pointers(first_pointers, first_steps, start + row, INDEX)
    first_origin = typical_value(at, inside & first_inside, weights)
    if SECOND > 0:
        at = tile_pointers(second_pointers, second_steps, start + row, INDEX)
        second_origin = typical_value(at, inside & second_inside, weights)

    count = tl.zeros([ROWS], dtype=tl.float64)
    first_sums = tl.zeros([ROWS, FIRST], dtype=PRODUCT)
    first_products = tl.zeros([FIRST, FIRST], dtype=tl.float64)
    if SECOND > 0:
        second_sums = tl.zeros([ROWS, SECOND], dtype=PRODUCT)
        cross_products = tl.zeros([FIRST, SECOND], dtype=tl.float64)
        second_products = tl.zeros([SECOND, SECOND], dtype=tl.float64)
    # Each step reads the tile that the next one needs. Padding is at the origin: 0 once centred.
    inside = (row < rows)[:, None]
    at = tile_pointers(first_pointers, first_steps, row, INDEX)
    next_first = tl.load(at, mask=inside & first_inside, other=first_origin[None, :])
    if SECOND > 0:
        at = tile_pointers(second_pointers, second_steps, row, INDEX)
        next_second = tl.load(at, mask=inside & second_inside, other=second_origin[None, :])
    for start in range(0, rows, ROWS):
        x = centered(next_first, first_origin, WIDE, PRODUCT)
        if SECOND > 0:
            y = centered(next_second, second_origin, WIDE, PRODUCT)
        after = start + ROWS + row
        inside = (after < rows)[:, None]
        at = tile_pointers(first_pointers, first_steps, after, INDEX)
        next_first = tl.load(at, mask=inside & first_inside, other=first_origin[None, :])
        if SECOND > 0:
            at = tile_pointers(second_pointers, second_steps, after, INDEX)
            next_second = tl.load(at, mask=inside & second_inside, other=second_origin[None, :])

        weighted = x
        if WEIGHTED:
            weights = tl.load(weight + start + row, mask=start + row < rows, other=0)
            count += weights
            weighted = x * weights.to(PRODUCT)[:, None]
        first_sums += weighted
        if not TILED:
            first_products = add_products(weighted, x, first_products)
        if SECOND > 0:
            cross_products = add_products(weighted, y, cross_products)
            weighted = y
            if WEIGHTED:
                weighted = y * weights.to(PRODUCT)[:, None]
            second_sums += weighted
            if not TILED:
                second_products = add_products(weighted, y, second_products)

    total = tl.sum(count, 0) if WEIGHTED else rows.to(tl.float64)
    own = D
    if TILED:  # one of the programs that have a block of columns writes its mean: the same bits
        own = tl.where(tl.program_id(1) == tl.program_id(2), D, 0)
        tl.store(counts + chunk, total, mask=tl.program_id(2) == 0)
    else:
        tl.store(counts + chunk, total)
    safe_total = tl.where(total > 0, total, 1)
    means += chunk * D
    scatters += chunk * D * D
    first_sum = tl.sum(first_sums, 0).to(tl.float64)
    origin = tl.where(total > 0, first_origin.to(tl.float64), 0)
    tl.store(means + first, origin + first_sum / safe_total, mask=first < own)
    if not TILED:
        scatter = about_mean(first_products, first_sum, first_sum, safe_total)
        store_symmetric(scatters, first, first, scatter, D)
    if SECOND > 0:
        second_sum = tl.sum(second_sums, 0).to(tl.float64)
        if not TILED:
            origin = tl.where(total > 0, second_origin.to(tl.float64), 0)
            tl.store(means + second, origin + second_sum / safe_total, mask=second < D)
        scatter = about_mean(cross_products, first_sum, second_sum, safe_total)
        store_symmetric(scatters, first, second, scatter, D)
        if not TILED:
            scatter = about_mean(second_products, second_sum, second_sum, safe_total)
            store_symmetric(scatters, second, second, scatter, D)


@triton.jit
def merge_kernel(
    counts,  # [chunks]
    means,  # [chunks, D]
    scatters,  # [chunks, D * D]
    count,  # of all rows
    mean,  # [D]
    scatter,  # [D * D]
    chunks,
    D: tl.constexpr,
    CHUNKS: tl.constexpr,
    ENTRIES: tl.constexpr,  # of the scatter, a program
):
    """Moments of the union (Chan, Golub & LeVeque 1979), summed in one fixed order."""
    entry = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    entry_inside = (entry < D * D)[None, :]
    i = (entry // D)[None, :]
    j = (entry % D)[None, :]
    total = tl.zeros([CHUNKS], dtype=tl.float64)
    total_i = tl.zeros([CHUNKS, ENTRIES], dtype=tl.float64)
    total_j = tl.zeros([CHUNKS, ENTRIES], dtype=tl.float64)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        n = tl.load(counts + chunk, mask=chunk < chunks, other=0)
        total += n
        chunk = chunk[:, None]
        inside = (chunk < chunks) & entry_inside
        total_i += n[:, None] * tl.load(means + chunk * D + i, mask=inside, other=0)
        total_j += n[:, None] * tl.load(means + chunk * D + j, mask=inside, other=0)
    n = tl.sum(total, 0)
    safe_n = tl.where(n > 0, n, 1)
    mean_i = tl.sum(total_i, 0) / safe_n
    mean_j = tl.sum(total_j, 0) / safe_n
    total_ij = tl.zeros([CHUNKS, ENTRIES], dtype=tl.float64)
    for start in range(0, chunks, CHUNKS):
        chunk = start + tl.arange(0, CHUNKS)
        n_chunk = tl.load(counts + chunk, mask=chunk < chunks, other=0)
        chunk = chunk[:, None]
        inside = (chunk < chunks) & entry_inside
        from_i = tl.load(means + chunk * D + i, mask=inside, other=0) - mean_i[None, :]
        from_j = tl.load(means + chunk * D + j, mask=inside, other=0) - mean_j[None, :]
        within = tl.load(scatters + chunk * (D * D) + entry[None, :], mask=inside, other=0)
        total_ij += within + n_chunk[:, None] * (from_i * from_j)
    tl.store(scatter + entry, tl.sum(total_ij, 0), mask=entry < D * D)
    tl.store(mean + entry, mean_j, mask=entry < D)
    tl.store(count, n, mask=tl.program_id(0) == 0)


@triton.jit
def apply_kernel(
    parts,
    row_strides,
    column_strides,
    outs,  # contiguous
    weight,
    center,  # from here on float64
    scale,
    matrix,  # [D, D]
    shift,
    factor,  # one number
    rows,
    chunk_rows,
    SIZES: tl.constexpr,
    ONES: tl.constexpr,  # 1 for each part
    D: tl.constexpr,
    INNER: tl.constexpr,  # the power of two from D on
    OUTER: tl.constexpr,  # columns that a program writes
    ROWS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SHIFTED: tl.constexpr,
    SCALED: tl.constexpr,
    COMPUTE: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Rows w ((x - center) * scale) matrix * scale * factor + w shift."""
    begin = tl.program_id(0).to(tl.int64) * chunk_rows
    rows = tl.minimum(rows - begin, chunk_rows).to(tl.int32)
    row = tl.arange(0, ROWS)
    k = tl.arange(0, INNER)
    j = tl.program_id(1) * OUTER + tl.arange(0, OUTER)
    pointers, steps = column_pointers(parts, row_strides, column_strides, begin, k, SIZES)
    out_pointers, out_steps = column_pointers(outs, SIZES, ONES, begin, j, SIZES)
    # The mean in two pieces: with the first alone a large offset would cost digits in float32.
    whole = tl.load(center + k, mask=k < D, other=0)
    high = whole.to(COMPUTE)
    low = (whole - high.to(tl.float64)).to(COMPUTE)
    unit = tl.load(scale + k, mask=k < D, other=0).to(COMPUTE)
    entries = matrix + k[:, None] * D + j[None, :]
    right = tl.load(entries, mask=(k < D)[:, None] & (j < D)[None, :], other=0).to(COMPUTE)
    out_unit = tl.load(scale + j, mask=j < D, other=0)
    if SCALED:
        out_unit *= tl.load(factor).to(tl.float64)
    out_unit = out_unit.to(COMPUTE)
    if SHIFTED:
        offset = tl.load(shift + j, mask=j < D, other=0).to(COMPUTE)
    if WEIGHTED:
        weight += begin
    k_inside = (k < D)[None, :]
    source = tile_pointers(pointers, steps, row, INDEX)
    next_x = tl.load(source, mask=(row < rows)[:, None] & k_inside, other=0)
    for start in range(0, rows, ROWS):  # each step reads the tile that the next one needs
        x = next_x.to(COMPUTE)
        after = start + ROWS + row
        source = tile_pointers(pointers, steps, after, INDEX)
        next_x = tl.load(source, mask=(after < rows)[:, None] & k_inside, other=0)
        x = ((x - high[None, :]) - low[None, :]) * unit[None, :]
        if x.dtype == tl.float64:
            product = tl.dot(x, right, out_dtype=tl.float64)
        else:  # float32 to within a bit or two, on tensor cores
            product = tl.dot(x, right, input_precision="tf32x3")
        product *= out_unit[None, :]
        if SHIFTED:
            product += offset[None, :]
        if WEIGHTED:
            weights = tl.load(weight + start + row, mask=start + row < rows, other=0)
            product *= weights.to(COMPUTE)[:, None]
        target = tile_pointers(out_pointers, out_steps, start + row, INDEX)
        product = product.to(outs[0].dtype.element_ty)
        tl.store(target, product, mask=(start + row < rows)[:, None] & (j < D)[None, :])


def _cover(d: int) -> tuple[int, int]:
    """Two powers of two of columns that cover d with the fewest products."""
    sizes = (8, 16, 32)
    if d > 64:
        return 32, 32  # tiles; products of 64 x 64 do not compile for sm_100 in Triton 3.6
    covers = [(a, b) for a in sizes for b in (0, *sizes) if b <= a and a + b >= d]
    return min(covers, key=lambda cover: cover[0] ** 2 + cover[0] * cover[1] + cover[1] ** 2)


def _strides(parts: Sequence[Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(part.stride(0) for part in parts), tuple(part.stride(1) for part in parts)


def _index(parts: Sequence[Tensor], rows: int) -> Any:
    """The integers that reach every element of `rows` rows."""
    reach = max(rows * part.stride(0) + part.shape[1] * part.stride(1) for part in parts)
    return tl.int32 if reach < 2**31 else tl.int64


def moments(
    parts: Sequence[Tensor], weight: Tensor | None, fast: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean [d] and scatter [d, d] of parts with any strides, in float64.

    The cut of the rows depends on the shape alone: the same bits from run to run.
    """
    rows, sizes = len(parts[0]), tuple(part.shape[1] for part in parts)
    d = sum(sizes)
    new = partial(parts[0].new_empty, dtype=torch.float64)
    count, mean, scatter = new(()), new((d,)), new((d, d))
    if rows == 0:
        return count.zero_(), mean.zero_(), scatter.zero_()
    first, second = _cover(d)
    warps = 4 if first == 32 else 2 if second == 16 else 1
    tiles = triton.cdiv(d, first) if d > 64 else 1
    tile = 16
    programs = tiles * (tiles + 1) // 2 * warps
    chunks = min(WARPS // programs, PARTIALS // d**2)
    # At least so many rows that a program pays for its part of the merge.
    chunk_rows = max(128, triton.cdiv(rows, chunks * tile) * tile)
    chunks = triton.cdiv(rows, chunk_rows)
    partials = (count, mean, scatter)
    if chunks > 1:
        partials = new((chunks,)), new((chunks, d)), new((chunks, d, d))
    row_strides, column_strides = _strides(parts)
    narrow = parts[0].dtype != torch.float64
    with torch.cuda.device_of(mean):
        moments_kernel[(chunks, tiles, tiles)](
            tuple(parts),
            row_strides,
            column_strides,
            mean if weight is None else weight,
            *partials,
            rows,
            chunk_rows,
            SIZES=sizes,
            D=d,
            FIRST=first,
            SECOND=second,
            TILED=tiles > 1,
            ROWS=tile,
            WEIGHTED=weight is not None,
            WIDE=tl.float32 if fast and narrow else tl.float64,
            PRODUCT=tl.float32 if fast else tl.float64,
            INDEX=_index(parts, chunk_rows + tile),
            num_warps=warps,
            num_stages=1,
            enable_fp_fusion=False,
        )
        if chunks > 1:
            entries = 8 if d <= 32 else 64
            merge_kernel[(triton.cdiv(d * d, entries),)](
                *partials,
                count,
                mean,
                scatter,
                chunks,
                D=d,
                CHUNKS=1024 // entries,
                ENTRIES=entries,
                num_warps=4,
                enable_fp_fusion=False,
            )
    return count, mean, scatter


def apply(
    parts: Sequence[Tensor],
    weight: Tensor | None,
    center: Tensor,
    scale: Tensor,
    matrix: Tensor,
    shift: Tensor | None,
    factor: Tensor | None,
) -> list[Tensor]:
    """Rows w ((x - center) * scale) matrix * scale * factor + w shift, contiguous, for each part.

    In float32, or float64 for float64 parts; all but the parts and `factor` are float64.
    """
    rows, sizes = len(parts[0]), tuple(part.shape[1] for part in parts)
    outs = [part.new_empty(part.shape) for part in parts]
    if rows == 0:
        return outs
    d = sum(sizes)
    wide = parts[0].dtype == torch.float64
    inner = max(16, triton.next_power_of_2(d))
    outer = min(16 if d > 64 else 32 if wide else 64, inner)
    tile = 32 if wide else 64
    chunk_rows = tile * min(16, triton.cdiv(rows, PROGRAMS * tile))
    row_strides, column_strides = _strides(parts)
    with torch.cuda.device_of(center):
        apply_kernel[(triton.cdiv(rows, chunk_rows), triton.cdiv(d, outer))](
            tuple(parts),
            row_strides,
            column_strides,
            tuple(outs),
            center if weight is None else weight,
            center,
            scale,
            matrix,
            center if shift is None else shift,
            center if factor is None else factor,
            rows,
            chunk_rows,
            SIZES=sizes,
            ONES=(1,) * len(sizes),
            D=d,
            INNER=inner,
            OUTER=outer,
            ROWS=tile,
            WEIGHTED=weight is not None,
            SHIFTED=shift is not None,
            SCALED=factor is not None,
            COMPUTE=tl.float64 if wide else tl.float32,
            INDEX=_index(parts, chunk_rows + tile),
            num_warps=8 if d > 64 else 4,
            num_stages=1,
            enable_fp_fusion=False,
        )
    return outs
