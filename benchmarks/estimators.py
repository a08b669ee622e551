"""The estimators of mutual information on distributions whose value is known.

Every estimator gets the same float64 samples of each distribution of `benchmarks.distributions`,
one for each seed; shapes are numbers of rows. Nats. Bias is the mean of the estimates less the
truth, spread their standard deviation over the seeds (the standard error of the bias is spread /
sqrt(seeds)), ms the median of a call.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from benchmarks import harness
from benchmarks.distributions import DISTRIBUTIONS, Distribution
from benchmarks.harness import Row
from stib_fast import functional as F

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEDS = 10
CLIP = 0.3  # nats of bias at which the figure's colours end


@dataclass(frozen=True)
class Estimator:
    """A way to estimate I(x; y)."""

    name: str
    estimate: Callable[[Tensor, Tensor], Tensor]
    model: str | None = None
    """The one it assumes, of `Distribution.model_holds`; None if it assumes none."""


ESTIMATORS = (
    *(
        Estimator(f"k-NN {variant}, k = {k}", partial(F.knn_mi, k=k, variant=variant))
        for variant in (1, 2)
        for k in (5, 20)
    ),
    Estimator("Gaussian", partial(F.gaussian_mi, bias_correction=True), "gaussian"),
    Estimator("copula", F.gaussian_copula_mi, "copula"),
)


# ---- measurement ---------------------------------------------------------------------------------


def measure(rows: int, names: Sequence[str], setting: harness.Setting) -> Iterator[Row]:
    """Estimate on samples of every distribution."""
    chosen = [estimator for estimator in ESTIMATORS if estimator.name in names]
    for distribution in DISTRIBUTIONS:
        yield from estimates(distribution, chosen, rows, 2 if setting.quick else SEEDS)


def estimates(
    distribution: Distribution, estimators: Sequence[Estimator], rows: int, seeds: int
) -> Iterator[Row]:
    """Estimate on the same samples with each estimator."""
    samples = [distribution.sample(rows, seed) for seed in range(seeds)]
    for estimator in estimators:
        values, seconds = [], []
        for x, y in samples:
            start = time.perf_counter()
            values.append(estimator.estimate(x, y).item())
            seconds.append(time.perf_counter() - start)
        yield {
            "distribution": distribution.name,
            "rows": rows,
            "provider": estimator.name,
            "dtype": "float64",
            "seeds": seeds,
            "model_holds": estimator.model in distribution.model_holds if estimator.model else None,
            "truth": distribution.mi,
            "estimate": statistics.fmean(values),
            "bias": statistics.fmean(values) - distribution.mi,
            "spread": statistics.stdev(values),
            "ms": statistics.median(seconds) * 1e3,
        }


# ---- report --------------------------------------------------------------------------------------


def median_ms(rows: Mapping[tuple[str, str], Row], estimator: str) -> float:
    return statistics.median(row["ms"] for (_, name), row in rows.items() if name == estimator)


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    """Write the estimates in a panel for each number of rows, coloured by their bias."""
    rows = [row for row in rows if row["threads"] == rows[0]["threads"]]
    counts = list(dict.fromkeys(row["rows"] for row in rows))
    names = list(dict.fromkeys(row["distribution"] for row in rows))
    estimators = list(dict.fromkeys(row["provider"] for row in rows))
    width = max(9.0, 3.4 + 0.85 * len(estimators) * len(counts))
    figure.set_size_inches(width, 1.6 + 0.34 * len(names))
    panels = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    for axes, count in zip(panels, counts, strict=True):
        here = {(row["distribution"], row["provider"]): row for row in rows if row["rows"] == count}
        image = axes.imshow(
            [[here[name, estimator]["bias"] for estimator in estimators] for name in names],
            cmap="RdBu_r",
            vmin=-CLIP,
            vmax=CLIP,
            aspect="auto",
        )
        for (name, estimator), row in here.items():
            axes.text(
                estimators.index(estimator),
                names.index(name),
                f"{round(row['estimate'], 2) + 0.0:.2f}",  # no -0.00
                ha="center",
                va="center",
                fontsize=8,
                color="white" if abs(row["bias"]) > 0.7 * CLIP else "black",
                weight="bold" if row["model_holds"] else "normal",
            )
        labels = [
            f"{estimator.replace(', ', chr(10))}\n{median_ms(here, estimator):.2g} ms"
            for estimator in estimators
        ]
        axes.set_xticks(range(len(estimators)), labels, fontsize=8)
        axes.set_title(f"{count:,} rows", fontsize=10)
    truths = {row["distribution"]: row["truth"] for row in rows}
    panels[0].set_yticks(
        range(len(names)), [f"{name}:  {truths[name]:.2f}" for name in names], fontsize=8
    )
    bar = figure.colorbar(image, ax=panels, shrink=0.8, pad=0.01, extend="both")
    bar.set_label("bias, nats", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.suptitle(
        "Mutual information in nats: truth beside each distribution, mean estimates in the cells "
        "(bold: the model holds); below, the median time of a call",
        fontsize=10,
    )


BENCHMARK = harness.Benchmark(
    on={
        "cpu": harness.On(
            backend="cpp",
            tests=("tests/benchmarks/test_estimators.py",),
            providers=[estimator.name for estimator in ESTIMATORS],
            shapes={"all": ("1000", "10000")},
            quick=("1000",),
        )
    },
    parse=harness.parse_rows,
    measure=measure,
    table={
        "distribution": str,
        "rows": "{:,}".format,
        "provider": str,
        "truth": "{:.4f}".format,
        "estimate": "{:.4f}".format,
        "bias": "{:+.4f}".format,
        "spread": "{:.4f}".format,
        "ms": "{:.3g}".format,
    },
    draw=draw,
    conclude=lambda rows: (),
)
