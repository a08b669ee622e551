"""`gaussian_mi`, value and gradient, against what a user would write in PyTorch.

    python -m benchmarks.gaussian_mi [--quick] [--threads 1 2] [--shapes 4096x8+8 ...] [--out DIR]

Baselines, in eager mode and compiled: *careful* centres the columns, takes one product, normalises
the d x d matrix and factorises it; *naive* standardises the columns and takes the `logdet` of their
product. Products in float32 lose what the gradient column shows; careful float64 converts the rows
first and is the baseline of equal accuracy for ours, careful float32 that of ours fast.

The floor reads the inputs twice and writes the gradients once at the bandwidth of a copy. The
roofline is the longer of the floor and of the arithmetic (half of the scatter, d (d + 1) / 2
multiply-adds a row in the precision of the products, and d^2 in float32 for the gradient) at the
rate of a matrix product.

Small batches also get rows that show the boundary alone: the two ops called without autograd, and
an `autograd.Function` that computes nothing.
"""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness
from stib_fast import functional as F
from stib_fast.ops.moments import below_autograd

# torch.compile warns of its own deprecated calls.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch")

SHAPES = ("60x2+2", "4096x8+8", "65536x16+2", "262144x16+16")
NOISE = 0.1
BOUNDARY_ROWS = 1024  # shapes up to this many rows show the cost of the boundary

Row = harness.Row
Result = tuple[Tensor, Sequence[Tensor]]
Step = Callable[[Tensor, Tensor], Result]


class Shape(NamedTuple):
    """Rows and the columns of both sides."""

    rows: int
    n: int
    m: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read ROWSxN+M."""
        found = re.fullmatch(r"(\d+)x(\d+)\+(\d+)", text)
        if found is None:
            raise ValueError(f"a shape is written ROWSxN+M, as in 4096x8+8; got {text!r}")
        return cls(*map(int, found.groups()))

    def __str__(self) -> str:
        return f"{self.rows}x{self.n}+{self.m}"

    @property
    def d(self) -> int:
        """Columns of both sides."""
        return self.n + self.m

    @property
    def bytes(self) -> int:
        """Of the float32 inputs."""
        return 4 * self.rows * self.d

    @property
    def floor_bytes(self) -> int:
        """Inputs read twice, gradients written once."""
        return 3 * self.bytes

    def multiply_adds(self, products: torch.dtype) -> dict[torch.dtype, int]:
        """Of half the scatter, in the dtype of the products, and of the gradient, in float32."""
        counts = {torch.float32: self.rows * self.d**2}
        counts[products] = counts.get(products, 0) + self.rows * self.d * (self.d + 1) // 2
        return counts


# ---- baselines -----------------------------------------------------------------------------------


def half_log_det(matrix: Tensor) -> Tensor:
    return torch.linalg.cholesky(matrix).diagonal().log().sum()


def careful(z: Tensor, y: Tensor, products: torch.dtype) -> Tensor:
    n = z.shape[1]
    x = torch.cat([z, y], dim=1).to(products)
    x = x - x.mean(0)
    scatter = x.mT @ x
    scale = scatter.diagonal().rsqrt()
    r = scatter * scale * scale[:, None]
    return half_log_det(r[:n, :n]) + half_log_det(r[n:, n:]) - half_log_det(r)


def naive(z: Tensor, y: Tensor) -> Tensor:
    n = z.shape[1]
    x = torch.cat([z, y], dim=1)
    x = (x - x.mean(0)) / x.std(0)
    r = x.mT @ x / (x.shape[0] - 1)
    return (torch.logdet(r[:n, :n]) + torch.logdet(r[n:, n:]) - torch.logdet(r)) / 2


def eager_backend(z: Tensor, y: Tensor) -> Tensor:
    with harness.exactly_backend("eager"):
        return F.gaussian_mi(z, y)


class Empty(torch.autograd.Function):
    """What no `autograd.Function` of two inputs and one output can go below."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(z, y)
        return z.new_empty(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        z, y = ctx.saved_tensors
        return torch.empty_like(z), torch.empty_like(y)


def raw_ops(z: Tensor, y: Tensor) -> Result:
    """Both ops as the dispatcher runs them, without autograd."""
    ops = torch.ops.stib_fast
    with below_autograd():
        value, state = ops.gaussian_mi.default(z, y, None, 1e-9, False)
        grads = ops.gaussian_mi_backward.default(torch.ones_like(value), z, y, None, state)
    return value, grads


def differentiated(value: Callable[[Tensor, Tensor], Tensor], z: Tensor, y: Tensor) -> Result:
    mi = value(z, y)
    return mi, torch.autograd.grad(mi, (z, y))


# ---- providers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Provider:
    """One way to get the value and its gradient."""

    value: Callable[[Tensor, Tensor], Tensor]
    products: torch.dtype
    tolerance: float
    """Largest relative error of the gradient, here at noise 0.1."""
    eps: float = 0.0
    compiled: bool = False

    def step(self) -> Step:
        """Make the call to time, compiled afresh for the shape and threads it then meets."""
        if not self.compiled:
            return partial(differentiated, self.value)
        return partial(differentiated, torch.compile(self.value, fullgraph=True, dynamic=False))


# exact: what design promises; float32 products were seen at 1e-4 and are refused at 1e-2.
exact = partial(Provider, products=torch.float64, tolerance=1e-5)
single = partial(Provider, products=torch.float32, tolerance=1e-2)
PROVIDERS: dict[str, Provider] = {
    "ours": exact(F.gaussian_mi, eps=1e-9),
    "ours compiled": exact(F.gaussian_mi, eps=1e-9, compiled=True),
    "ours fast": single(partial(F.gaussian_mi, precision="fast"), eps=1e-4),
    "ours, eager backend": exact(eager_backend, eps=1e-9),
    "careful float64 eager": exact(partial(careful, products=torch.float64)),
    "careful float64 compiled": exact(partial(careful, products=torch.float64), compiled=True),
    "careful float32 eager": single(partial(careful, products=torch.float32)),
    "careful float32 compiled": single(partial(careful, products=torch.float32), compiled=True),
    "naive eager": single(naive),
    "naive compiled": single(naive, compiled=True),
}
BASELINES = [name for name in PROVIDERS if name.startswith(("careful", "naive"))]
BACKEND = "cpp"  # of ours: where it is not usable there is nothing to measure
BOUNDARY: dict[str, Step] = {
    "(both ops alone)": raw_ops,
    "(empty Function)": partial(differentiated, Empty.apply),
}


def input_sets(shape: Shape, count: int) -> list[tuple[Tensor, Tensor]]:
    """Draw samples of Y = a mixing of Z + noise, as leaves that ask for gradients."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(count, shape.rows, shape.n, generator=generator)
    mixing = torch.randn(shape.n, shape.m, generator=generator)
    y = torch.randn(count, shape.rows, shape.m, generator=generator).mul_(NOISE).add_(z @ mixing)
    leaves = ([part.detach().requires_grad_() for part in side.unbind()] for side in (z, y))
    return list(zip(*leaves, strict=True))


def reference(z: Tensor, y: Tensor, eps: float) -> Result:
    """Value and gradient in float64 by another road than anybody's: QR bases of both sides."""
    parts = [part.detach().double().requires_grad_() for part in (z, y)]
    bases = [torch.linalg.qr(part - part.mean(0)).Q for part in parts]
    k = (1 - eps) * bases[0].mT @ bases[1]
    identity = torch.eye(len(k), dtype=k.dtype)
    value = -torch.linalg.slogdet(identity - k @ k.mT).logabsdet / 2
    return value, torch.autograd.grad(value, parts)


# ---- measurement ---------------------------------------------------------------------------------


def memory_step(provider: str, shapes: Sequence[Shape], index: int) -> Callable[[], object]:
    """Make a call whose memory is measured, in the process that measures it."""
    torch._dynamo.reset()
    (inputs,) = input_sets(shapes[index], 1)
    step = PROVIDERS[provider].step()

    def call() -> None:
        with harness.exactly_backend(BACKEND):
            step(*inputs)

    return call


def gradient_error(name: str, step: Step, inputs: tuple[Tensor, Tensor]) -> float:
    """Relative error of a provider's gradient; raises where it or the value is wrong."""
    provider = PROVIDERS[name]
    value, gradients = step(*inputs)
    expected_value, expected = reference(*inputs, provider.eps)
    error = harness.relative_error(gradients, expected)
    value_error = harness.relative_error([value], [expected_value])
    harness.require_agreement(name, max(error, value_error), provider.tolerance)
    return error


def measure(
    shape: Shape, machine: harness.Machine, memory: dict[str, float], repetitions: int
) -> Iterator[Row]:
    """Check every provider, time all of them in turns, and derive the columns."""
    torch._dynamo.reset()
    sets = input_sets(shape, harness.rotation_size(shape.bytes))
    steps = {name: provider.step() for name, provider in PROVIDERS.items()}
    errors = {name: gradient_error(name, step, sets[0]) for name, step in steps.items()}
    if shape.rows <= BOUNDARY_ROWS:
        steps |= BOUNDARY
    timings = harness.interleaved(steps, sets, repetitions)
    for name, timing in timings.items():
        products = PROVIDERS[name].products if name in PROVIDERS else torch.float64
        roofline = machine.seconds(shape.floor_bytes, shape.multiply_adds(products))
        yield {
            "shape": str(shape),
            "threads": torch.get_num_threads(),
            "provider": name,
            "ms": timing.median * 1e3,
            "ms_20": timing.low * 1e3,
            "ms_80": timing.high * 1e3,
            "over_careful_float32": timings["careful float32 eager"].median / timing.median,
            "over_careful_float64": timings["careful float64 eager"].median / timing.median,
            "times_floor": timing.median * machine.bandwidth / shape.floor_bytes,
            "share_of_roofline": roofline / timing.median,
            "gradient_error": errors.get(name),
            "peak_extra_mb": memory.get(name),
        }


def measure_memory(
    providers: Sequence[str], shapes: Sequence[Shape], thread_count: int
) -> dict[str, list[float]]:
    """Peak extra megabytes (1e6 bytes) of each provider at each shape."""
    return {
        name: [
            peak / 1e6
            for peak in harness.peak_memory(
                partial(memory_step, name, shapes), len(shapes), thread_count
            )
        ]
        for name in providers
    }


# ---- report --------------------------------------------------------------------------------------

TABLE: dict[str, Callable[[Any], str]] = {
    "provider": str,
    "ms": "{:.3g}".format,
    "ms_20": "{:.3g}".format,
    "ms_80": "{:.3g}".format,
    "over_careful_float32": "{:.2f}x".format,
    "over_careful_float64": "{:.2f}x".format,
    "times_floor": "{:.1f}".format,
    "share_of_roofline": "{:.0%}".format,
    "gradient_error": "{:.0e}".format,
    "peak_extra_mb": "{:.1f}".format,
}


def threads_text(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def case(row: Row) -> str:
    return f"{row['shape']}, {threads_text(row['threads'])}"


def heading(shape: Shape, machine: harness.Machine, thread_count: int) -> str:
    floor = shape.floor_bytes / machine.bandwidth * 1e3
    gradients = shape.bytes / 1e6
    return (
        f"{shape}, {threads_text(thread_count)}: floor {floor:.3g} ms, "
        f"the gradients themselves {gradients:.1f} MB"
    )


def figure_of(rows: Sequence[Row], machines: dict[int, harness.Machine]) -> Figure:
    """Draw the times of each provider, with the floor, in a panel for each shape."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    columns, lines = min(2, len(shapes)), math.ceil(len(shapes) / 2)
    figure = Figure(figsize=(6.5 * columns, 3.9 * lines), dpi=120, layout="constrained")
    for index, shape in enumerate(shapes):
        axes = figure.add_subplot(lines, columns, index + 1)
        here = [row for row in rows if row["shape"] == shape]
        names = list(dict.fromkeys(row["provider"] for row in here))
        for k, (thread_count, machine) in enumerate(machines.items()):
            chosen = [row for row in here if row["threads"] == thread_count]
            times = [row["ms"] for row in chosen]
            below = [row["ms"] - row["ms_20"] for row in chosen]
            above = [row["ms_80"] - row["ms"] for row in chosen]
            places = [names.index(row["provider"]) + 0.2 * k for row in chosen]
            label = threads_text(thread_count)
            axes.errorbar(
                times, places, xerr=[below, above], fmt="o", color=f"C{k}", label=label, capsize=2
            )
            floor = Shape.parse(shape).floor_bytes / machine.bandwidth * 1e3
            if floor > min(times) / 100:
                axes.axvline(floor, color=f"C{k}", linestyle="--", label=f"floor, {label}")
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel("value and gradient, ms (median; 20 % to 80 %)")
        axes.set_title(f"B x n+m = {shape}", fontsize=10)
        axes.grid(which="both", alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def main() -> None:
    parser = harness.arguments("Time gaussian_mi, value and gradient, against PyTorch baselines.")
    parser.add_argument("--shapes", type=Shape.parse, nargs="+", metavar="BxN+M")
    options = parser.parse_args()
    shapes = options.shapes or [
        Shape.parse(text) for text in (SHAPES[:1] if options.quick else SHAPES)
    ]
    repetitions = 3 if options.quick else 15
    measured = ("ours", "careful float32 eager") if options.quick else tuple(PROVIDERS)

    rows: list[Row] = []
    machines: dict[int, harness.Machine] = {}
    with harness.exactly_backend(BACKEND):
        for thread_count in options.threads:
            memory = measure_memory(measured, shapes, thread_count)
            with harness.threads(thread_count):
                machines[thread_count] = machine = harness.measure_machine()
                print(f"\n{threads_text(thread_count)}: {machine.text()}", flush=True)
                for index, shape in enumerate(shapes):
                    peaks = {name: values[index] for name, values in memory.items()}
                    new = list(measure(shape, machine, peaks, repetitions))
                    rows += new
                    print(f"\n{heading(shape, machine, thread_count)}\n", flush=True)
                    print(harness.markdown(new, TABLE), flush=True)

    lost = harness.losses(rows, "ours", BASELINES, case)
    print("\nFaster than ours:", *(lost or ["none"]), sep="\n- ")
    environment = harness.environment() | {
        "machine": {count: machine.record() for count, machine in machines.items()}
    }
    harness.write(options.out, "gaussian_mi", rows, environment, figure_of(rows, machines))


if __name__ == "__main__":
    main()
