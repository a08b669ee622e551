"""Distances of nearest neighbours, and counts within them, in the maximum norm: all pairs.

A program keeps a block of rows and goes through all points, tile by tile. Points are columns
[columns, n], so that a tile loads whole lines. A distance is a difference rounded once; its size
and maximum round nothing, so that every backend finds the same radii and counts.
"""

# Kernel arguments are pointers and numbers of the device.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, POINTS = 32, 128  # of a tile: 16 distances a thread
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}


@triton.jit
def tile_distances(points, columns, n, row, point, ROWS: tl.constexpr, POINTS: tl.constexpr):
    """Distances [ROWS, POINTS] in `columns` columns; infinite to points past the last."""
    far = tl.zeros([ROWS, POINTS], dtype=points.dtype.element_ty)
    for _ in range(columns):
        x = tl.load(points + row)
        others = tl.load(points + point, mask=point < n, other=float("inf"))
        far = tl.maximum(far, tl.abs(x[:, None] - others[None, :]))
        points += n
    return far


@triton.jit
def any_nearer(distance, radius):
    """Whether a row has a distance below its radius."""
    return tl.max((tl.min(distance, axis=1) < radius).to(tl.int32), axis=0) > 0


@triton.jit(do_not_specialize=["columns", "begin", "end", "k"])
def knn_radii_kernel(
    points,  # [columns, n]
    radius,  # [end - begin]
    columns,
    n,
    begin,
    end,
    k,
    ROWS: tl.constexpr,
    POINTS: tl.constexpr,
    SLOTS: tl.constexpr,  # more than k
):
    """The distance to the k-th neighbour: the largest of the k + 1 least, the row's own 0 too."""
    place = begin + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(place, n - 1)
    slot = tl.arange(0, SLOTS)[None, :]
    empty = tl.where(slot <= k, float("inf"), -float("inf")).to(points.dtype.element_ty)
    nearest = tl.broadcast_to(empty, [ROWS, SLOTS])
    worst = tl.max(nearest, axis=1)
    for first in range(0, n, POINTS):
        point = first + tl.arange(0, POINTS)
        distance = tile_distances(points, columns, n, row, point, ROWS, POINTS)
        # Rarely entered after the first tiles: k ln(n / k) times a row.
        while any_nearer(distance, worst):
            least = tl.min(distance, axis=1)
            which = tl.argmin(distance, axis=1)
            out = tl.argmax(nearest, axis=1)
            replaced = (slot == out[:, None]) & (least < worst)[:, None]
            nearest = tl.where(replaced, least[:, None], nearest)
            worst = tl.max(nearest, axis=1)
            taken = tl.arange(0, POINTS)[None, :] == which[:, None]
            distance = tl.where(taken, float("inf"), distance)
    tl.store(radius + place - begin, worst, mask=place < end)


@triton.jit(do_not_specialize=["x_columns", "y_columns", "begin", "end"])
def knn_widths_kernel(
    x_points,  # [x_columns, n]
    y_points,  # [y_columns, n]
    radius,  # [end - begin]
    x_radius,
    y_radius,
    x_columns,
    y_columns,
    n,
    begin,
    end,
    ROWS: tl.constexpr,
    POINTS: tl.constexpr,
):
    """The largest distance on each side of the points not further than the radius."""
    place = begin + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = place < end
    row = tl.minimum(place, n - 1)
    limit = tl.load(radius + place - begin, mask=inside, other=0.0)[:, None]
    x_widest = tl.zeros([ROWS], dtype=x_points.dtype.element_ty)
    y_widest = tl.zeros([ROWS], dtype=x_points.dtype.element_ty)
    for first in range(0, n, POINTS):
        point = first + tl.arange(0, POINTS)
        x = tile_distances(x_points, x_columns, n, row, point, ROWS, POINTS)
        y = tile_distances(y_points, y_columns, n, row, point, ROWS, POINTS)
        near = tl.maximum(x, y) <= limit
        x_widest = tl.maximum(x_widest, tl.max(tl.where(near, x, 0.0), axis=1))
        y_widest = tl.maximum(y_widest, tl.max(tl.where(near, y, 0.0), axis=1))
    tl.store(x_radius + place - begin, x_widest, mask=inside)
    tl.store(y_radius + place - begin, y_widest, mask=inside)


@triton.jit(do_not_specialize=["columns", "begin", "end"])
def knn_counts_kernel(
    points,  # [columns, n]
    radius,  # [end - begin]
    counts,  # [end - begin]
    columns,
    n,
    begin,
    end,
    CLOSED: tl.constexpr,
    ROWS: tl.constexpr,
    POINTS: tl.constexpr,
):
    """How many points are nearer than the radius, or as near where CLOSED."""
    place = begin + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = place < end
    row = tl.minimum(place, n - 1)
    limit = tl.load(radius + place - begin, mask=inside, other=0.0)[:, None]
    found = tl.zeros([ROWS, POINTS], dtype=tl.int32)
    for first in range(0, n, POINTS):
        point = first + tl.arange(0, POINTS)
        distance = tile_distances(points, columns, n, row, point, ROWS, POINTS)
        found += ((distance <= limit) if CLOSED else (distance < limit)).to(tl.int32)
    total = tl.sum(found.to(tl.int64), axis=1)
    tl.store(counts + place - begin, total, mask=inside)


def knn_order(points: Tensor) -> Tensor:
    """Any order will do where no pair is left out."""
    return torch.arange(len(points), device=points.device)


def knn_radii(
    points: Tensor, x_columns: int, k: int, variant: int, begin: int, end: int
) -> tuple[Tensor, Tensor]:
    """Radii of the rows from begin to end among points [n, columns] of float32 or float64.

    Variant 1: the distance to the k-th neighbour, twice; 2: the largest distance in the first
    `x_columns` columns, and in the others, of the points that are not further. A block
    of rows keeps its k + 1 distances in registers: k is at most 255.
    """
    n, columns = points.shape
    radius = points.new_empty(end - begin)
    if begin == end:
        return radius, radius.clone()
    turned = points.T.contiguous()
    slots = triton.next_power_of_2(k + 1)
    rows = ROWS if slots <= 64 else 16
    with torch.cuda.device_of(points):
        knn_radii_kernel[(triton.cdiv(end - begin, rows),)](
            turned,
            radius,
            columns,
            n,
            begin,
            end,
            k,
            ROWS=rows,
            POINTS=POINTS,
            SLOTS=slots,
            **OPTIONS,
        )
        if variant == 1:
            return radius, radius.clone()
        x_radius, y_radius = torch.empty_like(radius), torch.empty_like(radius)
        knn_widths_kernel[(triton.cdiv(end - begin, ROWS),)](
            turned,
            turned[x_columns:],
            radius,
            x_radius,
            y_radius,
            x_columns,
            columns - x_columns,
            n,
            begin,
            end,
            ROWS=ROWS,
            POINTS=POINTS,
            **OPTIONS,
        )
    return x_radius, y_radius


def knn_counts(points: Tensor, radius: Tensor, closed: bool, begin: int, end: int) -> Tensor:
    """Count the points [n, columns] within the radius [end - begin] of the rows: int64.

    The row itself is one of them where its distance, 0, is.
    """
    n, columns = points.shape
    counts = points.new_empty(end - begin, dtype=torch.int64)
    if begin == end:
        return counts
    with torch.cuda.device_of(points):
        knn_counts_kernel[(triton.cdiv(end - begin, ROWS),)](
            points.T.contiguous(),
            radius.contiguous(),
            counts,
            columns,
            n,
            begin,
            end,
            CLOSED=closed,
            ROWS=ROWS,
            POINTS=POINTS,
            **OPTIONS,
        )
    return counts
