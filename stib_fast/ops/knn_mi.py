"""The ops of nearest-neighbour estimators: distances of neighbours and counts within them.

Everything is exact in the maximum norm: a distance is a difference rounded once, and its size and
maximum round nothing, so that every backend finds the same distances and counts, to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stib_fast.backends import LIBRARY, backend_for

# The rows in the order in which the other two take their points [n, columns].
LIBRARY.define("knn_order(Tensor points) -> Tensor")
# For the rows from begin to end. Variant 1: the distance to the k-th neighbour, twice. Variant 2:
# the largest distance in the first x_columns, and in the others, of the points that are not
# further than the k-th neighbour.
LIBRARY.define(
    "knn_radii(Tensor points, int x_columns, int k, int variant, int begin, int end)"
    " -> (Tensor x_radius, Tensor y_radius)"
)
# How many points are nearer than the radius of each row from begin to end, or as near where closed;
# the row itself is one of them where its distance, 0, is.
LIBRARY.define(
    "knn_counts(Tensor points, Tensor radius, bool closed, int begin, int end) -> Tensor"
)

# Distances that plain PyTorch holds at a time: on the CPU they stay in the cache.
BLOCK_DISTANCES_CPU = 2**17
BLOCK_DISTANCES_GPU = 2**26
# Without the library, scipy's tree is faster than plain PyTorch up to so many columns. One core,
# n = 20,000, k = 20, seconds for the radii at 8, 12, 16 columns: tree 1.1, 3.3, 5.4, PyTorch 4.1,
# 3.8, 4.6; for the counts at 2, 8, 10: tree 0.07, 2.7, 6.1, PyTorch 1.3, 2.5, 4.7. At n = 5,000 the
# lines cross at 11 and 6 columns. The compiled kernels are faster than both in every case.
TREE_COLUMNS_RADII = 12
TREE_COLUMNS_COUNTS = 8
BACKENDS = ("cpp", "triton")
# The compiled kernels insert into a list of k neighbours, in registers on a GPU. Beyond, the tree
# and plain PyTorch, which sort, are faster (one core, n = 5,000, k = 500: 0.8 s against 2.3 s).
MOST_NEIGHBOURS = 255
TREE_ROWS = 4096  # that the tree is asked for in a call
LEAF = 256  # rows that the compiled kernels look at together
# The first call of an op takes as many rows as it computes so many distances in a column for each
# thread, a tenth of a second without pruning; calls grow while they take less than RANGE_SECONDS.
FIRST_DISTANCES = 2 * 10**9
RANGE_SECONDS = 0.25

Pair = tuple[Tensor, Tensor]
# Is told of rows that are done.
Advance = Callable[[int], object]


@torch.library.register_fake("stib_fast::knn_order", lib=LIBRARY)
def _(points: Tensor) -> Tensor:
    return points.new_empty(points.shape[:1], dtype=torch.int64)


@torch.library.register_fake("stib_fast::knn_radii", lib=LIBRARY)
def _(points: Tensor, x_columns: int, k: int, variant: int, begin: int, end: int) -> Pair:
    return points.new_empty((end - begin,)), points.new_empty((end - begin,))


@torch.library.register_fake("stib_fast::knn_counts", lib=LIBRARY)
def _(points: Tensor, radius: Tensor, closed: bool, begin: int, end: int) -> Tensor:
    return points.new_empty((end - begin,), dtype=torch.int64)


def _register_triton() -> None:
    """Let the dispatcher reach the kernels, which are imported at the first call."""
    for name in ("knn_order", "knn_radii", "knn_counts"):

        def call(*arguments: Any, name: str = name) -> Any:
            return getattr(_kernels("triton"), name)(*arguments)

        LIBRARY.impl(name, call, "CUDA")


def _kernels(chosen: str) -> Any:
    """The namespace of the three ops on a backend that is not eager."""
    if chosen == "cpp":
        return torch.ops.stib_fast
    from stib_fast.kernels import knn_mi as kernels

    return kernels


_register_triton()


def neighbour_radii(points: Tensor, x_columns: int, k: int, variant: int, advance: Advance) -> Pair:
    """Radii of all rows [n] around checked points [n, columns], as `knn_radii` defines them."""
    chosen = backend_for(points.device, BACKENDS)
    if chosen == "eager" or k > MOST_NEIGHBOURS:
        if variant == 1 and _is_for_tree(points, TREE_COLUMNS_RADII):
            radius = _tree_radii(points, k, advance)
            return radius, radius
        return _eager_radii(points, x_columns, k, variant, advance)
    ops = _kernels(chosen)
    order = ops.knn_order(points)
    ordered = points[order]
    x_radius, y_radius = (points.new_empty(len(points)) for _ in range(2))
    for begin, end in ranges(points, advance):
        rows = order[begin:end]
        x_radius[rows], y_radius[rows] = ops.knn_radii(ordered, x_columns, k, variant, begin, end)
    return x_radius, y_radius


def neighbour_counts(points: Tensor, radius: Tensor, closed: bool, advance: Advance) -> Tensor:
    """Count the points within the radius [n] of each row, itself included: int64 [n]."""
    chosen = backend_for(points.device, BACKENDS)
    if chosen == "eager":
        if _is_for_tree(points, TREE_COLUMNS_COUNTS):
            return _tree_counts(points, radius, closed, advance)
        return _eager_counts(points, radius, closed, advance)
    ops = _kernels(chosen)
    order = ops.knn_order(points)
    ordered, radii = points[order], radius[order]
    counts = order.new_empty(len(points))
    for begin, end in ranges(points, advance):
        counts[order[begin:end]] = ops.knn_counts(ordered, radii[begin:end], closed, begin, end)
    return counts


def ranges(points: Tensor, advance: Advance) -> Iterator[tuple[int, int]]:
    """Divide the rows into calls after each of which the bar moves and Ctrl-C is heard.

    Every call prepares all points, so that they are to be few.
    """
    begin, rows = 0, len(points)
    size = (FIRST_DISTANCES // points.numel() // LEAF + 1) * LEAF * torch.get_num_threads()
    while begin < rows:
        end = min(begin + size, rows)
        start = time.perf_counter()
        yield begin, end
        if points.is_cuda:
            torch.cuda.synchronize(points.device)
        advance(end - begin)
        if time.perf_counter() - start < RANGE_SECONDS:
            size *= 2
        begin = end


# ---- plain PyTorch -------------------------------------------------------------------------------


def _blocks(points: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose distances to all points fit into the memory of a block."""
    on_cpu = points.device.type == "cpu"
    rows = max(1, (BLOCK_DISTANCES_CPU if on_cpu else BLOCK_DISTANCES_GPU) // len(points))
    for begin in range(0, len(points), rows):
        yield begin, min(begin + rows, len(points))


def _distances(columns: Tensor, begin: int, end: int) -> Tensor:
    """Distances [end - begin, n] of rows to all points, given as columns [columns, n]."""
    first, *others = columns
    far = (first[begin:end, None] - first).abs_()
    for column in others:
        torch.maximum(far, (column[begin:end, None] - column).abs_(), out=far)
    return far


def _eager_radii(points: Tensor, x_columns: int, k: int, variant: int, advance: Advance) -> Pair:
    columns = points.T.contiguous()
    x_radius, y_radius = (points.new_empty(len(points)) for _ in range(2))
    for begin, end in _blocks(points):
        far = _distances(columns, begin, end)
        # The row itself is the nearest of k + 1.
        radius = far.topk(k + 1, largest=False, sorted=False).values.amax(dim=1)
        if variant == 1:
            x_radius[begin:end] = y_radius[begin:end] = radius
        else:
            without = far > radius[:, None]
            for side, to in ((columns[:x_columns], x_radius), (columns[x_columns:], y_radius)):
                to[begin:end] = _distances(side, begin, end).masked_fill_(without, 0).amax(dim=1)
        advance(end - begin)
    return x_radius, y_radius


def _eager_counts(points: Tensor, radius: Tensor, closed: bool, advance: Advance) -> Tensor:
    columns = points.T.contiguous()
    counts = torch.empty(len(points), dtype=torch.int64, device=points.device)
    for begin, end in _blocks(points):
        limit = radius[begin:end, None]
        far = _distances(columns, begin, end)
        counts[begin:end] = ((far <= limit) if closed else (far < limit)).sum(dim=1)
        advance(end - begin)
    return counts


# ---- scipy's k-d tree ----------------------------------------------------------------------------


def _is_for_tree(points: Tensor, most_columns: int) -> bool:
    """Whether the tree is the faster one; it computes in float64."""
    on_cpu = points.device.type == "cpu"
    return on_cpu and points.dtype == torch.float64 and points.shape[1] <= most_columns


def _tree_radii(points: Tensor, k: int, advance: Advance) -> Tensor:
    def query(tree: Any, rows: Any, begin: int, end: int) -> Any:
        # The first neighbour found is the row itself (or an exact copy, at the same distance 0).
        return tree.query(rows, [k + 1], p=np.inf, workers=torch.get_num_threads())[0][:, 0]

    return _by_tree(points, query, points.dtype, advance)


def _tree_counts(points: Tensor, radius: Tensor, closed: bool, advance: Advance) -> Tensor:
    # The tree counts distances <= r: nearer than the radius is <= the last float64 before it.
    limit = radius.numpy() if closed else np.nextafter(radius.numpy(), -np.inf)

    def query(tree: Any, rows: Any, begin: int, end: int) -> Any:
        return tree.query_ball_point(
            rows, limit[begin:end], p=np.inf, workers=torch.get_num_threads(), return_length=True
        )

    return _by_tree(points, query, torch.int64, advance)


def _by_tree(
    points: Tensor, query: Callable[[Any, Any, int, int], Any], dtype: torch.dtype, advance: Advance
) -> Tensor:
    """What `query` finds for all rows, so many at a time that Ctrl-C is heard."""
    from scipy.spatial import cKDTree

    rows = points.numpy()
    tree = cKDTree(rows)
    found = torch.empty(len(rows), dtype=dtype)
    for begin in range(0, len(rows), TREE_ROWS):
        end = min(begin + TREE_ROWS, len(rows))
        found[begin:end] = torch.as_tensor(query(tree, rows[begin:end], begin, end))
        advance(end - begin)
    return found
