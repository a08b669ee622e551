"""`gaussian_mi`, value and gradient, against what a user would write in PyTorch.

Baselines, in eager mode and compiled: *careful* centres the columns, takes one product, normalises
the d x d matrix and factorises it; *naive* standardises the columns and takes the `logdet` of their
product. Products in float32 lose what the gradient column shows; careful float64 converts the rows
first and is the baseline of equal accuracy for ours, careful float32 that of ours fast.

Passes: forward, backward, both, and the stages that a large batch goes through, `moments` and
`apply`, alone. The floor is their traffic at the bandwidth of a copy: moments reads the inputs,
apply reads them and writes the gradients. The limit is the longer of the floor and of the
arithmetic (half of the scatter, d (d + 1) / 2 multiply-adds a row in the precision of the products,
and d^2 in float32 for the gradient) at the rate of a matrix product. On a GPU the gradient's
products are three of TF32 on the tensor cores, so that where they dominate the share can pass 100%.

Small batches also get rows that show the boundary alone: the two ops called without autograd, and
an `autograd.Function` that computes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import harness, report
from benchmarks.harness import Row
from stib_fast import functional as F
from stib_fast.ops.moments import below_autograd

SHAPES = {
    "paper": ("60x2+2",),
    "zinc": ("4096x8+8", "4096x16+2", "65536x16+2"),
    "large": ("262144x16+16",),
}
GPU_SHAPES = SHAPES | {
    "large": ("262144x16+16", "4194304x16+2", "4194304x16+2:bfloat16", "4194304x32+32"),
}
NOISE = 0.1
HALF_TOLERANCE = 2.0**-7  # a gradient rounded to bfloat16 is off by up to 2**-9 of itself
BOUNDARY_ROWS = 1024  # shapes up to this many rows show the cost of the boundary
# Of the traffic of each pass, in sizes of the inputs.
TRAFFIC = {"forward": 1, "backward": 2, "both": 3, "moments": 1, "apply": 2}

Value = Callable[[Tensor, Tensor], Tensor]


class Shape(NamedTuple):
    """Rows, the columns of both sides, and the dtype."""

    rows: int
    n: int
    m: int
    dtype: torch.dtype = torch.float32

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read ROWSxN+M or ROWSxN+M:bfloat16."""
        found = re.fullmatch(r"(\d+)x(\d+)\+(\d+)(?::(bfloat16|float16|float32))?", text)
        if found is None:
            raise ValueError(
                f"a shape is written ROWSxN+M, as in 4096x8+8 or 4096x8+8:bfloat16; got {text!r}"
            )
        rows, n, m = map(int, found.groups()[:3])
        return cls(rows, n, m, getattr(torch, found[4] or "float32"))

    def __str__(self) -> str:
        suffix = "" if self.dtype == torch.float32 else f":{self.dtype}".replace("torch.", "")
        return f"{self.rows}x{self.n}+{self.m}{suffix}"

    @property
    def d(self) -> int:
        """Columns of both sides."""
        return self.n + self.m

    @property
    def bytes(self) -> int:
        """Of the inputs, and of their gradients."""
        return self.dtype.itemsize * self.rows * self.d

    def multiply_adds(self, pass_: str, products: torch.dtype) -> dict[torch.dtype, int]:
        """Of half the scatter, in the dtype of the products, and of the gradient, in float32."""
        counts = dict.fromkeys((products, torch.float32), 0)
        if pass_ in ("forward", "both", "moments"):
            counts[products] += self.rows * self.d * (self.d + 1) // 2
        if pass_ in ("backward", "both", "apply"):
            counts[torch.float32] += self.rows * self.d**2
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
    return (half_log_det(r[:n, :n]) + half_log_det(r[n:, n:]) - half_log_det(r)).float()


def naive(z: Tensor, y: Tensor) -> Tensor:
    n = z.shape[1]
    x = torch.cat([z, y], dim=1).float()
    x = (x - x.mean(0)) / x.std(0)
    r = x.mT @ x / (x.shape[0] - 1)
    return (torch.logdet(r[:n, :n]) + torch.logdet(r[n:, n:]) - torch.logdet(r)) / 2


def eager_backend(z: Tensor, y: Tensor) -> Tensor:
    with harness.exactly_backend("eager", z.device):
        return F.gaussian_mi(z, y)


class Empty(torch.autograd.Function):
    """What no `autograd.Function` of two inputs and one output can go below."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(z, y)
        return z.new_empty((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        z, y = ctx.saved_tensors
        return torch.empty_like(z), torch.empty_like(y)


def raw_ops(z: Tensor, y: Tensor, grad: Tensor) -> object:
    """Both ops as the dispatcher runs them, without autograd."""
    ops = torch.ops.stib_fast
    with below_autograd():
        _, state = ops.gaussian_mi.default(z, y, None, 1e-9, False)
        return ops.gaussian_mi_backward.default(grad, z, y, None, state)


def stages(z: Tensor, y: Tensor) -> dict[str, harness.Call]:
    """Calls of `moments` and `apply` alone; the numbers that rows are multiplied with are any."""
    ops = torch.ops.stib_fast
    with below_autograd():
        _, mean, scatter = ops.moments.default([z.detach(), y.detach()], None, False)
    scale, shift = scatter.diagonal().rsqrt(), torch.zeros_like(mean)

    def moments(z: Tensor, y: Tensor, grad: Tensor) -> object:
        with below_autograd():
            return ops.moments.default([z, y], None, False)

    def apply(z: Tensor, y: Tensor, grad: Tensor) -> object:
        with below_autograd():
            return ops.moments_apply.default([z, y], None, mean, scale, scatter, shift)

    return {"moments": moments, "apply": apply}


# ---- providers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Provider:
    """One way to get the value and its gradient."""

    value: Value
    products: torch.dtype
    tolerance: float
    """Largest relative error of the gradient, here at noise 0.1."""
    eps: float = 0.0
    compiled: bool = False

    def make(self) -> Value:
        """Make the function, compiled afresh for the shape and threads it then meets."""
        if not self.compiled:
            return self.value
        return torch.compile(self.value, fullgraph=True, dynamic=False)


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
BOUNDARY: dict[str, harness.Call] = {
    "(both ops alone)": raw_ops,
    "(empty Function)": partial(harness.both, Empty.apply),
}


def input_sets(shape: Shape, count: int, device: torch.device) -> list[tuple[Tensor, ...]]:
    """Draw Z and Y = a mixing of Z + noise, as leaves, and 1 as the gradient that comes in."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    z, mixing = normal(count, shape.rows, shape.n), normal(shape.n, shape.m)
    y = normal(count, shape.rows, shape.m).mul_(NOISE).add_(z @ mixing)
    leaves = (
        [part.detach().requires_grad_() for part in side.to(shape.dtype).unbind()]
        for side in (z, y)
    )
    return list(zip(*leaves, torch.ones(count, device=device).unbind(), strict=True))


def reference(z: Tensor, y: Tensor, eps: float) -> tuple[Tensor, ...]:
    """Value and gradient in float64 by another road than anybody's: QR bases of both sides."""
    parts = [part.detach().double().requires_grad_() for part in (z, y)]
    bases = [torch.linalg.qr(part - part.mean(0)).Q for part in parts]
    k = (1 - eps) * bases[0].mT @ bases[1]
    identity = torch.eye(len(k), dtype=k.dtype, device=k.device)
    value = -torch.linalg.slogdet(identity - k @ k.mT).logabsdet / 2
    return value.detach(), *torch.autograd.grad(value, parts)


# ---- measurement ---------------------------------------------------------------------------------


def memory_step(shape: Shape, device: torch.device, name: str) -> Callable[[], object]:
    """Make a call whose memory is measured, in the process that measures it."""
    torch._dynamo.reset()
    (inputs,) = input_sets(shape, 1, device)
    return partial(harness.both, PROVIDERS[name].make(), *inputs)


def gradient_errors(
    values: Mapping[str, Value], inputs: tuple[Tensor, ...], half: bool
) -> dict[str, float]:
    """Relative errors of the gradients of the providers that are right; raises where ours is not.

    A float32 baseline that its own rounding spoils is left out, and the terminal says so.
    """
    z, y, _ = inputs
    expected = cache(lambda eps: reference(z, y, eps))
    errors = {}
    for name, value in values.items():
        provider = PROVIDERS[name]
        found, *gradients = harness.both(value, *inputs)
        value_expected, *gradients_expected = expected(provider.eps)
        errors[name] = harness.relative_error(gradients, gradients_expected)
        worst = max(errors[name], harness.relative_error([found], [value_expected]))
        tolerance = max(provider.tolerance, HALF_TOLERANCE if half else 0)
        try:
            harness.require_agreement(name, worst, tolerance)
        except harness.Disagreement as wrong:
            if name.startswith("ours"):
                raise
            print(f"LEFT OUT: {wrong}", flush=True)
            del errors[name]
    return errors


def measure(shape: Shape, names: Sequence[str], setting: harness.Setting) -> Iterator[Row]:
    """Check every provider, time all of them in turns in each pass, and derive the columns."""
    torch._dynamo.reset()
    device, repetitions = setting.device, 3 if setting.quick else 15
    sets = input_sets(shape, harness.rotation_size(shape.bytes, device), device)
    values = {name: PROVIDERS[name].make() for name in names}
    errors = gradient_errors(values, sets[0], shape.dtype.itemsize < 4)
    values = {name: values[name] for name in errors}
    once = {name: partial(harness.both, value, *sets[0]) for name, value in values.items()}
    peaks = harness.peak_memory(once, partial(memory_step, shape, device), setting)
    for pass_, calls, inputs in harness.passes(values, sets):
        last = pass_ == "both"
        if last and shape.rows <= BOUNDARY_ROWS:
            calls |= BOUNDARY
        timings = harness.interleaved(calls, inputs, repetitions, device)
        for name, timing in timings.items():
            yield row_of(shape, pass_, name, timing, timings, setting.machine) | {
                "gradient_error": errors.get(name),
                "peak_extra_mb": peaks.get(name) if last else None,
                "launches": harness.launches(partial(calls[name], *inputs[0]), device)
                if last
                else None,
            }
        del calls  # and the graphs of the backward
    if "ours" in names:
        calls = stages(*sets[0][:2])
        for stage, timing in harness.interleaved(calls, sets, repetitions, device).items():
            yield row_of(shape, stage, "ours", timing, {}, setting.machine)


def row_of(
    shape: Shape,
    pass_: str,
    name: str,
    timing: harness.Timing,
    timings: Mapping[str, harness.Timing],
    machine: harness.Machine,
) -> Row:
    products = PROVIDERS[name].products if name in PROVIDERS else torch.float64
    floor = TRAFFIC[pass_] * shape.bytes
    limit = machine.limit(floor, shape.multiply_adds(pass_, products))
    careful = {
        f"over_careful_{dtype}": timings[f"careful {dtype} eager"].median / timing.median
        for dtype in ("float32", "float64")
        if f"careful {dtype} eager" in timings
    }
    return {
        "pass": pass_,
        "provider": name,
        **timing.columns(),
        "over_careful_float32": None,
        "over_careful_float64": None,
        **careful,
        "share_of_floor": floor / machine.bandwidth / timing.median,
        "share_of_limit": limit / timing.median,
    }


KERNELS = ("gaussian_mi", "gaussian_mi_backward", "moments", "moments_apply")
TESTS = tuple(f"tests/ops/test_{name}.py" for name in ("gaussian_mi", "moments"))
BENCHMARK = harness.Benchmark(
    on={
        "cpu": harness.On(
            backend="cpp",
            tests=TESTS,
            providers=tuple(PROVIDERS),
            shapes=SHAPES,
            quick=SHAPES["paper"],
            kernels=KERNELS,
        ),
        "cuda": harness.On(
            backend="triton",
            tests=("tests/kernels/on_device/gaussian_mi.py",),
            providers=tuple(PROVIDERS),
            shapes=GPU_SHAPES,
            quick=("60x2+2", "4096x16+2"),
            kernels=(*KERNELS, "gaussian_mi_finalize"),
        ),
    },
    parse=Shape.parse,
    measure=measure,
    table={
        "pass": str,
        "provider": str,
        **report.TIMES,
        "over_careful_float32": "{:.2f}x".format,
        "over_careful_float64": "{:.2f}x".format,
        "share_of_floor": "{:.0%}".format,
        "share_of_limit": "{:.0%}".format,
        "gradient_error": "{:.0e}".format,
        "peak_extra_mb": "{:.1f}".format,
        "launches": str,
    },
    draw=partial(
        report.draw_against_shape,
        ratio="over_careful_float32",
        ratio_label="value and gradient: times as fast as careful float32 eager",
        share="share_of_limit",
        share_label="share of the limit",
    ),
    conclude=partial(report.losses, ours="ours", baselines=BASELINES),
)
