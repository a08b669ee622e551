"""`knn_mi` against scipy's tree, scikit-learn's estimator and NPEET's algorithm.

    python -m benchmarks.knn_mi [--quick] [--full-size] [--threads 1 2] [--out DIR]

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
limit above 100 %. A provider that takes long is timed once, and its memory is not measured.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from scipy.spatial import cKDTree
from sklearn.feature_selection._mutual_info import _compute_mi_cc
from sklearn.neighbors import BallTree, KDTree
from torch import Tensor

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness
from stib_fast import functional as F
from stib_fast.ops import knn_mi as ops

K = 20
SHAPES = ("10000x1+1", "10000x2+2", "20000x16+2")
QUICK_SHAPES = ("1000x1+1", "1000x2+2")
FULL_SIZE = "250000x16+1"
BACKEND = "cpp"  # of ours: where it is not usable there is nothing to measure
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
ONCE_SECONDS = 2.0  # what takes longer is timed once

Row = harness.Row
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
    with harness.exactly_backend("eager"):
        return ours(x, y)


def estimate(counts: Sequence[np.ndarray], rows: int) -> Tensor:
    """Eq. (8) of Kraskov et al. 2004 from counts that hold the row itself."""
    means = [torch.from_numpy(np.asarray(c, float)).digamma().mean() for c in counts]
    return torch.tensor([K, rows]).double().digamma().sum() - means[0] - means[1]


def scipy_tree(x: Tensor, y: Tensor) -> Tensor:
    both = {"p": np.inf, "workers": torch.get_num_threads()}
    joint = torch.cat([x, y], dim=1).numpy()
    radius = np.nextafter(cKDTree(joint).query(joint, k=[K + 1], **both)[0][:, 0], -np.inf)
    counts = [
        cKDTree(side).query_ball_point(side, radius, return_length=True, **both)
        for side in (x.numpy(), y.numpy())
    ]
    return estimate(counts, len(x))


def npeet(x: Tensor, y: Tensor) -> Tensor:
    def tree(points: np.ndarray) -> KDTree | BallTree:
        kind = BallTree if points.shape[1] >= 20 else KDTree
        return kind(points, metric="chebyshev")

    joint = torch.cat([x, y], dim=1).numpy()
    radius = tree(joint).query(joint, k=K + 1)[0][:, K] - 1e-15
    sides = (x.numpy(), y.numpy())
    return estimate([tree(s).query_radius(s, radius, count_only=True) for s in sides], len(x))


def scikit_learn(x: Tensor, y: Tensor) -> Tensor:
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
QUICK = ("ours float64", "ours float32", *BASELINES)


def providers_of(shape: Shape, quick: bool) -> list[str]:
    if str(shape) == FULL_SIZE:
        return ["ours float64", "ours float32"]
    names = QUICK if quick else PROVIDERS
    return [name for name in names if name != "scikit-learn" or shape.d == shape.m == 1]


# ---- the limit -----------------------------------------------------------------------------------


def distance_rate(dtype: torch.dtype) -> float:
    """Distances in one column per second where every box is looked into."""
    points = torch.rand(4096, 16, generator=torch.Generator().manual_seed(0), dtype=dtype)
    points = points[torch.ops.stib_fast.knn_order(points)]
    radius = torch.full((4096,), 0.5, dtype=dtype)
    seconds = harness.best_of(
        lambda: torch.ops.stib_fast.knn_counts(points, radius, False, 0, 4096), 9
    )
    return points.numel() * 4096 / seconds


# ---- measurement ---------------------------------------------------------------------------------


def memory_step(provider: str, shape: Shape, index: int) -> Callable[[], object]:
    """Make a call whose memory is measured, in the process that measures it."""
    call, dtype = PROVIDERS[provider]
    x, y = (side.to(dtype) for side in shape.sample())

    def step() -> None:
        with harness.exactly_backend(BACKEND):
            call(x, y)

    return step


def exact_rows(shape: Shape) -> None:
    """Compare radii and counts of some rows with plain PyTorch: for shapes no baseline can do."""
    x, y = (side.float() for side in shape.sample())
    points = torch.cat([x, y], dim=1)
    rows = torch.arange(0, shape.rows, shape.rows // 50)
    radius, _ = ops.neighbour_radii(points, shape.d, K, 1, lambda done: None)
    far = torch.stack([(points - points[row]).abs().amax(dim=1) for row in rows])
    counts = ops.neighbour_counts(x, radius, False, lambda done: None)
    far_x = torch.stack([(x - x[row]).abs().amax(dim=1) for row in rows])
    if not (
        torch.equal(far.sort(dim=1).values[:, K], radius[rows])
        and torch.equal((far_x < radius[rows, None]).sum(dim=1), counts[rows])
    ):
        raise harness.Disagreement(f"{shape}: radii or counts are not those of plain PyTorch")


def measure(shape: Shape, rates: dict[torch.dtype, float], options: Any) -> Iterator[Row]:
    """Check every provider, time the quick ones in turns, and derive the columns."""
    samples = {dtype: [side.to(dtype) for side in shape.sample()] for dtype in rates}
    names = providers_of(shape, options.quick)
    steps = {name: partial(PROVIDERS[name][0], *samples[PROVIDERS[name][1]]) for name in names}
    values, once = {}, {}
    for name, step in steps.items():
        start = time.perf_counter()
        values[name] = step()
        once[name] = time.perf_counter() - start
    reference = values.get("scipy's tree", values["ours float64"])
    if reference is values["ours float64"]:
        exact_rows(shape)
    errors = {name: float((value - reference).abs()) for name, value in values.items()}
    for name, error in errors.items():
        dtype = str(PROVIDERS[name][1]).removeprefix("torch.")
        harness.require_agreement(name, error, TOLERANCE[dtype])
    quick = {name: step for name, step in steps.items() if once[name] < ONCE_SECONDS}
    repetitions = 3 if options.quick else 11
    timings = {name: harness.summary([seconds]) for name, seconds in once.items()}
    timings |= harness.interleaved(quick, [()] * 2, repetitions) if quick else {}
    small = {name for name in quick if not options.quick}
    for name, timing in timings.items():
        dtype = PROVIDERS[name][1]
        memory = (
            harness.peak_memory(partial(memory_step, name, shape), 1, torch.get_num_threads())[0]
            if name in small
            else math.nan
        )
        scipy = timings.get("scipy's tree")
        yield {
            "shape": str(shape),
            "threads": torch.get_num_threads(),
            "provider": name,
            "dtype": str(dtype).removeprefix("torch."),
            "ms": timing.median * 1e3,
            "ms_20": timing.low * 1e3,
            "ms_80": timing.high * 1e3,
            "times_timed": repetitions if name in quick else 1,
            "over_scipy": scipy.median / timing.median if scipy else math.nan,
            "share_of_limit": shape.distances / rates[dtype] / timing.median,
            "nats": float(values[name]),
            "error_nats": errors[name],
            "peak_extra_mb": memory / 1e6,
        }


# ---- report --------------------------------------------------------------------------------------

TABLE: dict[str, Callable[[Any], str]] = {
    "provider": str,
    "dtype": str,
    "ms": "{:.4g}".format,
    "ms_20": "{:.4g}".format,
    "ms_80": "{:.4g}".format,
    "times_timed": str,
    "over_scipy": "{:.2f}x".format,
    "share_of_limit": "{:.0%}".format,
    "nats": "{:.6f}".format,
    "error_nats": "{:.0e}".format,
    "peak_extra_mb": "{:.1f}".format,
}


def threads_text(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def case(row: Row) -> str:
    return f"{row['shape']}, {threads_text(row['threads'])}"


def figure_of(rows: Sequence[Row]) -> Figure:
    """Draw the times of each provider, with the limit, in a panel for each shape."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    columns, lines = min(2, len(shapes)), math.ceil(len(shapes) / 2)
    figure = Figure(figsize=(6.5 * columns, 3.4 * lines), dpi=120, layout="constrained")
    for index, shape in enumerate(shapes):
        axes = figure.add_subplot(lines, columns, index + 1)
        here = [row for row in rows if row["shape"] == shape]
        names = list(dict.fromkeys(row["provider"] for row in here))
        for k, count in enumerate(dict.fromkeys(row["threads"] for row in here)):
            chosen = [row for row in here if row["threads"] == count]
            places = [names.index(row["provider"]) + 0.25 * k for row in chosen]
            seconds = [row["ms"] / 1e3 for row in chosen]
            axes.plot(seconds, places, "o", color=f"C{k}", label=threads_text(count))
            limits = {row["dtype"]: row["ms"] / 1e3 * row["share_of_limit"] for row in chosen}
            for dtype, style in (("float64", "--"), ("float32", ":")):
                label = f"limit in {dtype}, {threads_text(count)}"
                axes.axvline(limits[dtype], color=f"C{k}", linestyle=style, label=label)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        first, last = axes.get_xlim()  # a decade on each side of a power of ten is labelled
        axes.set_xlim(min(first, 10 ** math.floor(math.log10(last) - 1)), last)
        axes.set_xlabel("seconds")
        axes.set_title(f"n x d+m = {shape}", fontsize=10)
        axes.grid(which="both", alpha=0.3)
        handles, texts = axes.get_legend_handles_labels()
    figure.legend(handles, texts, fontsize=7, loc="outside lower center", ncols=3)
    return figure


def main() -> None:
    parser = harness.arguments("Time knn_mi against trees.")
    parser.add_argument("--shapes", type=Shape.parse, nargs="+", metavar="NxD+M")
    parser.add_argument("--full-size", action="store_true", help=f"also {FULL_SIZE}, ours only")
    options = parser.parse_args()
    texts = QUICK_SHAPES if options.quick else SHAPES
    shapes = options.shapes or [Shape.parse(text) for text in texts]
    if options.full_size:
        shapes.append(Shape.parse(FULL_SIZE))

    rows: list[Row] = []
    machines: dict[int, Row] = {}
    with harness.exactly_backend(BACKEND):
        for thread_count in options.threads:
            with harness.threads(thread_count):
                rates = {dtype: distance_rate(dtype) for dtype in (torch.float32, torch.float64)}
                machines[thread_count] = {str(dtype): rate for dtype, rate in rates.items()}
                told = ", ".join(f"{rate / 1e9:.1f}e9 {dtype}" for dtype, rate in rates.items())
                print(f"\n{threads_text(thread_count)}: distances in a column a second: {told}")
                for shape in shapes:
                    new = list(measure(shape, rates, options))
                    rows += new
                    print(f"\n{shape}, {threads_text(thread_count)}\n", flush=True)
                    print(harness.markdown(new, TABLE), flush=True)

    for kind in ("ours float64", "ours float32"):
        lost = harness.losses(rows, kind, BASELINES, case)
        print(f"\nFaster than {kind}:", *(lost or ["none"]), sep="\n- ")
    environment = harness.environment() | {"distances_in_a_column_a_second": machines}
    harness.write(options.out, "knn_mi", rows, environment, figure_of(rows))


if __name__ == "__main__":
    main()
