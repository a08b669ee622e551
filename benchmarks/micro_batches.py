"""A training step of STIB in micro-batches: its memory, its time, and its gradient.

The model is that of `training_step`; a shape is rows in the batch x rows in a micro-batch. *Ours*
takes the step of the whole batch in two passes: moments, then gradients. *One pass* holds the
activations of all rows. *Accumulated* is what a user would write, the objective of each micro-batch
and the sum of the gradients: the step of another loss, whose mutual information is too large by
k²/2b nats for micro-batches of b rows and k features a side. Errors are those of the gradients of
encoder and critic against those of one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks import harness, report
from benchmarks.harness import Row
from benchmarks.training_step import INVARIANCE_WEIGHT, LAMBDA, SETTINGS, new_model
from stib_fast.data import sample
from stib_fast.models import STIB
from stib_fast.training import Execution, stib_objective
from stib_fast.training.step import TrainingStep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, ONE_PASS, ACCUMULATED = "ours", "one pass", "accumulated"
Step = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """Rows of a batch and of a micro-batch."""

    batch: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.micro_batch}"


def parse(text: str) -> Shape:
    """Read a shape such as 65536x2048."""
    batch, _, micro_batch = text.partition("x")
    if not (batch.isdecimal() and micro_batch.isdecimal() and 2 <= int(micro_batch) <= int(batch)):
        raise ValueError(f"a shape is BATCHxMICRO, as 65536x2048; got {text!r}")
    return Shape(int(batch), int(micro_batch))


# ---- what is measured ----------------------------------------------------------------------------


def data(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    x, y, _ = sample(shape.batch, generator=torch.Generator(device).manual_seed(1))
    return x, y


def new_step(name: str, shape: Shape, device: torch.device) -> tuple[STIB, Step]:
    """A model and its step on one batch."""
    model, (x, y) = new_model().to(device), data(shape, device)
    if name == ACCUMULATED:
        return model, partial(accumulate, model, x, y, shape.micro_batch)
    micro_batch = shape.micro_batch if name == OURS else None
    step = TrainingStep(model, SETTINGS, Execution(device.type, micro_batch=micro_batch))
    return model, lambda: step((x, y), 0)


def accumulate(model: STIB, x: Tensor, y: Tensor, size: int) -> None:
    """Add up the gradients of the micro-batches' own objectives; Adam's step is left out."""
    model.zero_grad(set_to_none=True)
    noise = model.noise(len(x))
    for parts in zip(x.split(size), y.split(size), noise.split(size), strict=True):
        rows, targets, drawn = parts
        terms = stib_objective(model, rows, targets, LAMBDA, INVARIANCE_WEIGHT, noise=drawn)
        (terms.loss * (len(rows) / len(x))).backward()


def gradients(name: str, shape: Shape, device: torch.device) -> dict[str, Tensor]:
    """Those of the first step, by the name of the parameter."""
    model, step = new_step(name, shape, device)
    torch.manual_seed(2)
    step()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors of the gradients of the encoder and of the critic, each as one vector."""

    def flat(gradients: dict[str, Tensor], prefix: str) -> list[Tensor]:
        return [torch.cat([g.flatten() for n, g in gradients.items() if n.startswith(prefix)])]

    return {
        f"{part}_error": harness.relative_error(flat(found, prefix), flat(expected, prefix))
        for part, prefix in (("encoder", "encoder."), ("critic", "critic.critic."))
    }


def make(shape: Shape, device: torch.device, name: str) -> Step:
    return new_step(name, shape, device)[1]


def measure(shape: Shape, names: Sequence[str], setting: harness.Setting) -> Iterator[Row]:
    """Compare gradients, then time the steps in turns."""
    device = setting.device
    expected = gradients(ONE_PASS, shape, device)
    wrong = {name: errors(gradients(name, shape, device), expected) for name in names}
    if OURS in wrong:
        # Sums of float32 rows in another order, times the condition of the d x d step.
        harness.require_agreement(OURS, wrong[OURS]["encoder_error"], 1e-4)
    del expected
    steps = {name: make(shape, device, name) for name in names}
    sets: list[tuple[()]] = [()]
    repetitions = 1 if setting.quick or shape.batch > 100_000 else 5
    timings = harness.interleaved(steps, sets, repetitions, device)
    peaks = harness.peak_memory(steps, partial(make, shape, device), setting)
    medians = {name: timing.median for name, timing in timings.items()}
    for name, timing in timings.items():
        yield {
            "batch": shape.batch,
            "micro_batch": shape.micro_batch,
            "provider": name,
            **timing.columns(),
            "over_one_pass": medians.get(ONE_PASS, float("nan")) / timing.median,
            "peak_extra_mb": peaks.get(name),
            **wrong[name],
        }


# ---- report --------------------------------------------------------------------------------------


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    """Draw memory and time against the rows of the batch."""
    rows = [row for row in rows if row["threads"] == rows[-1]["threads"]]
    figure.set_size_inches(10, 4)
    for axes, column, label in zip(
        figure.subplots(1, 2),
        ("peak_extra_mb", "ms"),
        ("peak extra memory of a step, MB", "step, ms (median)"),
        strict=True,
    ):
        for name in dict.fromkeys(row["provider"] for row in rows):
            chosen = [row for row in rows if row["provider"] == name and row[column] is not None]
            axes.plot(
                [row["batch"] for row in chosen], [row[column] for row in chosen], "o-", label=name
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("rows in the batch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)


BENCHMARK = harness.Benchmark(
    on={
        device: harness.On(
            backend=backend,
            tests=("tests/test_micro_batches.py",),
            providers=(OURS, ONE_PASS, ACCUMULATED),
            shapes={
                "large": ("4096x2048", "16384x2048", "65536x2048"),
                "huge": ("262144x4096", "1000000x4096"),
            },
            quick=("1024x256",),
            kernels=("gaussian_mi", "gaussian_mi_backward"),
        )
        for device, backend in (("cpu", "cpp"), ("cuda", "triton"))
    },
    parse=parse,
    measure=measure,
    table={
        "batch": "{:,}".format,
        "micro_batch": "{:,}".format,
        "provider": str,
        **report.TIMES,
        "over_one_pass": "{:.2f}x".format,
        "peak_extra_mb": "{:,.0f}".format,
        "encoder_error": "{:.1e}".format,
        "critic_error": "{:.1e}".format,
    },
    draw=draw,
    conclude=partial(report.losses, ours=OURS, baselines=(ONE_PASS, ACCUMULATED)),
)
