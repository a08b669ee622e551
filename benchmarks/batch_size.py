"""What a large batch buys: the invariance that STIB reaches against the rows in a batch.

The artificial experiment with its own settings but for 1,500 steps and the batch, which is the
shape; large ones are taken in micro-batches of 4,096 rows. Providers are features a side k of the
critic. The estimate that encoder and critic fight over is k²/2B nats too large on average: where
that is no longer small against what is left of the mutual information, the encoder fights noise.
What is reached is measured on 10,000 fresh points: mutual information of Z0 and Y in bits (sampled;
of the whitened active units), the R² of predicting Y from Z0, and the errors of X and Y.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import harness
from benchmarks.harness import Row
from stib_fast.training import (
    Artificial,
    ArtificialConfig,
    Execution,
    Optimisation,
    Run,
    VectorModel,
    train,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 1500
MICRO_BATCH = 4096
FEATURES = {"k = 8": 8, "k = 32": 32}
FIGURES = {
    "mi_bits_sampled": "MI sampled, bits",
    "mi_bits_whitened_active": "MI active units, bits",
    "probe_r2_sampled": "R² sampled",
    "probe_r2_active": "R² active units",
}


def measure(rows: int, names: Sequence[str], setting: harness.Setting) -> Iterator[Row]:
    """Train with each critic on batches of so many rows, and measure."""
    for name in names:
        yield trained(rows, name, 20 if setting.quick else STEPS, setting.device.type)


def trained(rows: int, name: str, steps: int, device: str) -> Row:
    k = FEATURES[name]
    micro_batch = MICRO_BATCH if rows > MICRO_BATCH else None
    experiment = Artificial(
        ArtificialConfig(
            replace(VectorModel(), feature_dim=k),
            Optimisation(steps=steps, batch=rows, evaluations=1),
            Execution(device, micro_batch=micro_batch),
        )
    )
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        run = Run(Path(folder) / "run")
        run.create(experiment)
        began = time.perf_counter()
        model = train(experiment, run)
        seconds = time.perf_counter() - began
    figures = experiment.evaluate(model)
    return {
        "batch": rows,
        "provider": name,
        "steps": steps,
        "bias_nats": k * k / (2 * rows),
        **{name: figures[name] for name in ("mae_x", "mae_y", *FIGURES)},
        "seconds": seconds,
    }


# ---- report --------------------------------------------------------------------------------------


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    """Draw what is left of Y in Z0 against the rows in a batch."""
    figure.set_size_inches(11, 4)
    panels = figure.subplots(1, 2, sharex=True)
    for axes, names in zip(panels, (list(FIGURES)[:2], list(FIGURES)[2:]), strict=True):
        for colour, provider in enumerate(dict.fromkeys(row["provider"] for row in rows)):
            chosen = [row for row in rows if row["provider"] == provider]
            for figure_name, style in zip(names, ("o-", "s--"), strict=True):
                axes.plot(
                    [row["batch"] for row in chosen],
                    [row[figure_name] for row in chosen],
                    style,
                    color=f"C{colour}",
                    label=f"{FIGURES[figure_name]}, {provider}",
                )
        axes.set_xscale("log", base=2)
        axes.set_xlabel("rows in a batch")
        axes.axhline(0, color="black", lw=0.8)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle("What is left of Y in Z0 after 1,500 steps of the artificial experiment")


BENCHMARK = harness.Benchmark(
    on={
        device: harness.On(
            backend=backend,
            tests=("tests/training/test_step.py",),
            providers=tuple(FEATURES),
            shapes={"all": ("64", "256", "1024", "4096", "16384")},
            quick=("64",),
        )
        for device, backend in (("cpu", "cpp"), ("cuda", "triton"))
    },
    parse=harness.parse_rows,
    measure=measure,
    table={
        "batch": "{:,}".format,
        "provider": str,
        "bias_nats": "{:.4f}".format,
        "mae_x": "{:.3f}".format,
        "mae_y": "{:.3f}".format,
        **dict.fromkeys(FIGURES, "{:.3f}".format),
        "seconds": "{:.0f}".format,
    },
    draw=draw,
    conclude=lambda rows: (),
)
