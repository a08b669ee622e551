"""`knn_mi` against scipy's tree, scikit-learn's estimator and NPEET's algorithm.

Every provider estimates the same float64 or float32 sample of correlated Gaussians, k = 20, without
jitter; its dtype is in its row. The baselines, which know float64 only, are

- scipy's tree, as `knn_mi` used it before: cKDTree, on as many threads as ours;
- scikit-learn's estimator behind `mutual_info_regression`, called as it stands. It takes one column
  on each side, so that only the shape 1+1 has it; it runs on one thread;
- NPEET's published algorithm, written from its formula on the trees it uses, scikit-learn's; on
  one thread.

The limit is three operations (subtraction, size, maximum) a column and pair of rows, in two passes
(the joint space, and its two sides), at the rate of `knn_counts` on uniform points that fill every
box, where nothing is skipped, out of the cache. What is skipped elsewhere can take the share of the
limit above 100 %. On a GPU the rate is a third of the multiply-adds of a matrix product, which in
float64 the tensor cores make, and these can do no maximum: the share reads low there. A provider
that takes long is timed once, and its memory is not measured.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import harness, report
from benchmarks.harness import Row
from stib_fast import functional as F
from stib_fast.ops import knn_mi as ops

K = 20
SHAPES = {"small": ("10000x1+1", "10000x2+2"), "large": ("20000x16+2",)}
FULL_SIZE = "250000x16+1"  # by its name alone on a CPU: ours takes minutes, the others hours
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
ONCE_SECONDS = 2.0  # what takes longer is timed once

Call = Callable[[Tensor, Tensor], Tensor]


class Shape(NamedTuple):
    """Rows and the columns of both sides."""

    rows: int
    d: int
    m: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read ROWSxD+M."""
        found = re.fullmatch(r"(\d+)x(\d+)\+(\d+)", text)
        if found is None:
            raise ValueError(f"a shape is written ROWSxD+M, as in 20000x16+2; got {text!r}")
        return cls(*map(int, found.groups()))

    def __str__(self) -> str:
        return f"{self.rows}x{self.d}+{self.m}"

    @property
    def distances(self) -> int:
        """Distances in one column, of all pairs in two passes."""
        return 2 * self.rows**2 * (self.d + self.m)

    def sample(self) -> tuple[Tensor, Tensor]:
        """Draw X standard normal and Y = some of its columns + as much noise, in float64."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.rows, self.d, generator=generator, dtype=torch.float64)
        noise = torch.randn(self.rows, self.m, generator=generator, dtype=torch.float64)
        return x, x[:, : self.m] + noise


# ---- providers -----------------------------------------------------------------------------------


def ours(x: Tensor, y: Tensor) -> Tensor:
    return F.knn_mi(x, y, K, jitter=0)


def eager_backend(x: Tensor, y: Tensor) -> Tensor:
    with harness.exactly_backend("eager", x.device):
        return ours(x, y)


def estimate(counts: Sequence[np.ndarray], rows: int) -> Tensor:
    """Eq. (8) of Kraskov et al. 2004 from counts that hold the row itself."""
    means = [torch.from_numpy(np.asarray(c, float)).digamma().mean() for c in counts]
    return torch.tensor([K, rows]).double().digamma().sum() - means[0] - means[1]


def scipy_tree(x: Tensor, y: Tensor) -> Tensor:
    from scipy.spatial import cKDTree  # a GPU's benchmark does without it and scikit-learn

    workers = torch.get_num_threads()
    joint = torch.cat([x, y], dim=1).numpy()
    distances, _ = cKDTree(joint).query(joint, [K + 1], p=np.inf, workers=workers)
    radius = np.nextafter(np.asarray(distances)[:, 0], -np.inf)
    counts = [
        cKDTree(side).query_ball_point(side, radius, p=np.inf, workers=workers, return_length=True)
        for side in (x.numpy(), y.numpy())
    ]
    return estimate(counts, len(x))


def npeet(x: Tensor, y: Tensor) -> Tensor:
    from sklearn.neighbors import BallTree, KDTree

    def tree(points: np.ndarray) -> Any:
        kind = BallTree if points.shape[1] >= 20 else KDTree
        return kind(points, metric="chebyshev")

    joint = torch.cat([x, y], dim=1).numpy()
    radius = tree(joint).query(joint, k=K + 1)[0][:, K] - 1e-15
    sides = (x.numpy(), y.numpy())
    return estimate([tree(s).query_radius(s, radius, count_only=True) for s in sides], len(x))


def scikit_learn(x: Tensor, y: Tensor) -> Tensor:
    from sklearn.feature_selection._mutual_info import _compute_mi_cc

    return torch.tensor(_compute_mi_cc(x[:, 0].numpy(), y[:, 0].numpy(), K))


PROVIDERS: dict[str, tuple[Call, torch.dtype]] = {
    "ours float64": (ours, torch.float64),
    "ours float32": (ours, torch.float32),
    "ours, eager backend float64": (eager_backend, torch.float64),
    "ours, eager backend float32": (eager_backend, torch.float32),
    "scipy's tree": (scipy_tree, torch.float64),
    "scikit-learn": (scikit_learn, torch.float64),
    "NPEET's algorithm": (npeet, torch.float64),
}
BASELINES = ("scipy's tree", "scikit-learn", "NPEET's algorithm")


def providers_of(shape: Shape, names: Sequence[str]) -> list[str]:
    """Those that can do a shape."""
    names = [name for name in names if name != "scikit-learn" or shape.d == shape.m == 1]
    return [n for n in names if str(shape) != FULL_SIZE or n in ("ours float64", "ours float32")]


# ---- the limit -----------------------------------------------------------------------------------


@cache
def distance_rate(dtype: torch.dtype, threads: int) -> float:
    """Distances in one column per second of a CPU where every box is looked into."""
    points = torch.rand(4096, 16, generator=torch.Generator().manual_seed(0), dtype=dtype)
    points = points[torch.ops.stib_fast.knn_order(points)]
    radius = torch.full((4096,), 0.5, dtype=dtype)
    count = partial(torch.ops.stib_fast.knn_counts, points, radius, False, 0, 4096)
    return points.numel() * 4096 / harness.best_of(count, points.device)


def rate(dtype: torch.dtype, setting: harness.Setting) -> float:
    if setting.device.type == "cpu":
        return distance_rate(dtype, torch.get_num_threads())
    return setting.machine.multiply_adds[dtype] / 3


# ---- measurement ---------------------------------------------------------------------------------


def memory_step(shape: Shape, device: torch.device, name: str) -> Callable[[], object]:
    """Make a call whose memory is measured, in the process that measures it."""
    call, dtype = PROVIDERS[name]
    return partial(call, *(side.to(device, dtype) for side in shape.sample()))


def exact_rows(shape: Shape, device: torch.device) -> None:
    """Compare radii and counts of some rows with plain PyTorch: where no baseline is measured."""
    x, y = (side.to(device, torch.float32) for side in shape.sample())
    points = torch.cat([x, y], dim=1)
    rows = torch.arange(0, shape.rows, max(1, shape.rows // 50), device=device)
    radius, _ = ops.neighbour_radii(points, shape.d, K, 1, lambda done: None)
    far = torch.stack([(points - points[row]).abs().amax(dim=1) for row in rows])
    counts = ops.neighbour_counts(x, radius, False, lambda done: None)
    far_x = torch.stack([(x - x[row]).abs().amax(dim=1) for row in rows])
    if not (
        torch.equal(far.sort(dim=1).values[:, K], radius[rows])
        and torch.equal((far_x < radius[rows, None]).sum(dim=1), counts[rows])
    ):
        raise harness.Disagreement(f"{shape}: radii or counts are not those of plain PyTorch")


def measure(shape: Shape, names: Sequence[str], setting: harness.Setting) -> Iterator[Row]:
    """Check every provider, time the quick ones in turns, and derive the columns."""
    device, names = setting.device, providers_of(shape, names)
    sample = shape.sample()
    samples = {d: [side.to(device, d) for side in sample] for d in (torch.float32, torch.float64)}
    steps = {name: partial(PROVIDERS[name][0], *samples[PROVIDERS[name][1]]) for name in names}
    values: dict[str, float] = {}

    def first_call(name: str) -> None:
        values[name] = float(steps[name]())

    once = {name: harness.elapsed(partial(first_call, name), device) for name in names}
    reference = values.get("scipy's tree", math.nan)
    if math.isnan(reference):
        exact_rows(shape, device)
        reference = values.get("ours float64", next(iter(values.values())))
    errors = {name: abs(value - reference) for name, value in values.items()}
    for name, error in errors.items():
        harness.require_agreement(name, error, TOLERANCE[PROVIDERS[name][1]])
    quick = {name: step for name, step in steps.items() if once[name] < ONCE_SECONDS}
    repetitions = 3 if setting.quick else 11
    timings = {name: harness.summary([seconds]) for name, seconds in once.items()}
    timings |= harness.interleaved(quick, [()], repetitions, device)
    peaks = harness.peak_memory(quick, partial(memory_step, shape, device), setting)
    scipy = timings.get("scipy's tree")
    for name, timing in timings.items():
        dtype = PROVIDERS[name][1]
        yield {
            "provider": name,
            "dtype": str(dtype).removeprefix("torch."),
            **timing.columns(),
            "times_timed": repetitions if name in quick else 1,
            "over_scipy": scipy.median / timing.median if scipy else None,
            "share_of_limit": shape.distances / rate(dtype, setting) / timing.median,
            "nats": values[name],
            "error_nats": errors[name],
            "peak_extra_mb": peaks.get(name),
        }


def conclude(rows: Sequence[Row]) -> list[str]:
    kinds = ("ours float64", "ours float32")
    return [line for kind in kinds for line in report.losses(rows, kind, BASELINES)]


KERNELS = ("knn_order", "knn_radii", "knn_counts")
BENCHMARK = harness.Benchmark(
    on={
        "cpu": harness.On(
            backend="cpp",
            tests=("tests/ops/test_knn_mi.py",),
            providers=tuple(PROVIDERS),
            shapes=SHAPES,
            quick=("1000x1+1", "1000x2+2"),
            kernels=KERNELS,
        ),
        "cuda": harness.On(
            backend="triton",
            tests=("tests/kernels/on_device/knn_mi.py",),
            providers=[name for name in PROVIDERS if name.startswith("ours")],
            shapes={"large": SHAPES["large"], "full": (FULL_SIZE,)},
            quick=SHAPES["large"],
            kernels=KERNELS,
        ),
    },
    parse=Shape.parse,
    measure=measure,
    table={
        "provider": str,
        "dtype": str,
        **report.TIMES,
        "times_timed": str,
        "over_scipy": "{:.2f}x".format,
        "share_of_limit": "{:.0%}".format,
        "nats": "{:.6f}".format,
        "error_nats": "{:.0e}".format,
        "peak_extra_mb": "{:.1f}".format,
    },
    draw=partial(
        report.draw_against_shape,
        ratio="over_scipy",
        ratio_label="times as fast as scipy's tree",
        share="share_of_limit",
        share_label="share of the limit",
    ),
    conclude=conclude,
)
