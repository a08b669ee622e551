"""`one_hot_conv1d` against the convolutions that a user would write, on the ids of ZINC.

Strings of 120 positions at atom level, K = 9 taps, padding 4, float32; shapes are strings x
filters. The ids are those of --strings, or ZINC's where STIB_FAST_DATA points to the molecule
files, else of strings made up of ZINC's tokens; the rows say which. Forward records what the
backward needs; backward takes a random gradient through a kept graph; both is what training does.

Baselines, eager and compiled: *one_hot + conv1d* (on a GPU also in TF32, as PyTorch comes);
*embedding sum*, one gather for each tap; and *EmbeddingBag*, all taps in one gather, eager.

The floor is the output written, or its gradient read, at the bandwidth of a copy. The limit is the
longer of the floor and of one addition for each output and tap, at the multiply-adds per second
of a matrix product: the windows of ZINC's padding are alike, and ours adds them up once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor

from benchmarks import harness, molecules, report
from benchmarks.harness import Row
from stib_fast import functional as F
from stib_fast.chem import SmilesTokenizer, Vocabulary

LENGTH, TAPS, PADDING = 120, 9, 4
MOST_SETS = 4  # each keeps a graph for each provider

Value = Callable[[Tensor, Tensor, Tensor], Tensor]


class Shape(NamedTuple):
    """Strings and filters."""

    batch: int
    filters: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read BxF."""
        if not re.fullmatch(r"\d+x\d+", text):
            raise ValueError(f"a shape is written BxF, as in 8192x9; got {text!r}")
        return cls(*map(int, text.split("x")))

    def __str__(self) -> str:
        return f"{self.batch}x{self.filters}"

    @property
    def bytes(self) -> int:
        """Of the output."""
        return 4 * self.batch * self.filters * LENGTH

    @property
    def additions(self) -> int:
        """One for each output and tap."""
        return self.batch * self.filters * LENGTH * TAPS


# ---- inputs --------------------------------------------------------------------------------------


@cache
def ids_of(path: Path | None, count: int) -> tuple[str, Tensor]:
    """Where strings are from, and the ids [count, 120] of the first, again from the start at need.

    Those of other tokens or longer than 120 are left out.
    """
    found = molecules.load(path, count)
    tokenizer = SmilesTokenizer(
        Vocabulary.preset("zinc250k"), LENGTH, on_unknown="drop", on_overflow="drop"
    )
    ids = tokenizer.encode(found.strings).ids
    return found.source, ids.repeat(-(-count // len(ids)), 1)[:count]


def input_sets(ids: Tensor, filters: int, count: int) -> list[tuple[Tensor, ...]]:
    """Ids, weight, bias and the gradient that comes in."""
    classes = len(Vocabulary.preset("zinc250k"))
    generator = torch.Generator(ids.device).manual_seed(1)
    normal = partial(torch.randn, generator=generator, device=ids.device)
    return [
        (
            part,
            normal(filters, classes, TAPS).requires_grad_(),
            normal(filters).requires_grad_(),
            normal(len(part), filters, LENGTH),
        )
        for part in ids.chunk(count)
    ]


# ---- providers -----------------------------------------------------------------------------------


def ours(ids: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.one_hot_conv1d(ids, weight, bias, padding=PADDING)


def eager_backend(ids: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with harness.exactly_backend("eager", ids.device):
        return ours(ids, weight, bias)


def dense(ids: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    one_hot = nnf.one_hot(ids.long(), weight.shape[1]).to(weight.dtype)
    return nnf.conv1d(one_hot.transpose(1, 2), weight, bias, padding=PADDING)


def dense_tf32(ids: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As PyTorch comes: cuDNN's products in TF32, in the backward too."""
    weight = weight.view_as(weight)
    weight.register_hook(lambda grad: allow_tf32(False))  # the last of the backward
    allow_tf32(True)
    out = dense(ids, weight, bias)
    allow_tf32(False)
    out.register_hook(lambda grad: allow_tf32(True))
    return out


def allow_tf32(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = allowed


def table_and_positions(ids: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [K, V + 1, F], the last of each tap zero, and ids with their padding as that row."""
    classes = weight.shape[1]
    table = nnf.pad(weight.permute(2, 1, 0), (0, 0, 0, 1))
    return table, nnf.pad(ids.long(), (PADDING, PADDING), value=classes)


def embedding_sum(ids: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    table, positions = table_and_positions(ids, weight)
    total = bias
    for k in range(TAPS):
        total = total + nnf.embedding(positions[:, k : k + LENGTH], table[k])
    return total.transpose(1, 2).contiguous()


def embedding_bag(ids: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    table, positions = table_and_positions(ids, weight)
    bags = positions.unfold(1, TAPS, 1) + torch.arange(TAPS, device=ids.device) * table.shape[1]
    total = nnf.embedding_bag(bags.reshape(-1, TAPS), table.flatten(0, 1), mode="sum") + bias
    return total.view(len(ids), LENGTH, -1).transpose(1, 2).contiguous()


@dataclass(frozen=True)
class Provider:
    """One way to get the output."""

    value: Value
    compiled: bool = False

    def make(self) -> Value:
        """Make the function, compiled afresh for the shape and threads it then meets."""
        if not self.compiled:
            return self.value
        return torch.compile(self.value, fullgraph=True, dynamic=False)


PROVIDERS: dict[str, Provider] = {
    "ours": Provider(ours),
    "ours compiled": Provider(ours, compiled=True),
    "ours, eager backend": Provider(eager_backend),
    "one_hot + conv1d": Provider(dense),
    "one_hot + conv1d compiled": Provider(dense, compiled=True),
    "one_hot + conv1d, TF32": Provider(dense_tf32),
    "embedding sum": Provider(embedding_sum),
    "embedding sum compiled": Provider(embedding_sum, compiled=True),
    "EmbeddingBag": Provider(embedding_bag),
}
BASELINES = [name for name in PROVIDERS if not name.startswith("ours")]
# Float32 sums of a gradient over a million outputs lose what only ours keeps.
TOLERANCE = {name: 1e-3 if name in BASELINES else 1e-5 for name in PROVIDERS}
TOLERANCE["one_hot + conv1d, TF32"] = 1e-2


# ---- measurement ---------------------------------------------------------------------------------


def memory_step(ids: Tensor, filters: int, name: str) -> Callable[[], object]:
    """Make a call whose memory is measured, in the process that measures it."""
    torch._dynamo.reset()
    (inputs,) = input_sets(ids, filters, 1)
    return partial(harness.both, PROVIDERS[name].make(), *inputs)


def reference(ids: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
    """Output and gradients of the dense convolution in float64, some strings at a time."""
    leaves = [p.detach().double().requires_grad_() for p in (weight, bias)]
    outs, gradients = [], [torch.zeros_like(leaf) for leaf in leaves]
    for part, part_grad in zip(ids.split(256), grad.split(256), strict=True):
        out = dense(part, *leaves)
        for total, new in zip(
            gradients, torch.autograd.grad(out, leaves, part_grad.double()), strict=True
        ):
            total += new
        outs.append(out.detach())
    return [torch.cat(outs), *gradients]


def measure(shape: Shape, names: Sequence[str], setting: harness.Setting) -> Iterator[Row]:
    """Check every provider, time all of them in turns in each pass, and derive the columns."""
    torch._dynamo.reset()
    device, machine = setting.device, setting.machine
    count = min(MOST_SETS, harness.rotation_size(shape.bytes, device))
    source, ids = ids_of(setting.strings, count * shape.batch)
    sets = input_sets(ids.to(device), shape.filters, count)
    values = {name: PROVIDERS[name].make() for name in names}
    expected = reference(*sets[0])
    errors = {}
    for name, value in values.items():
        errors[name] = harness.relative_error(harness.both(value, *sets[0]), expected)
        harness.require_agreement(name, errors[name], TOLERANCE[name])
    del expected
    once = {name: partial(harness.both, value, *sets[0]) for name, value in values.items()}
    peaks = harness.peak_memory(once, partial(memory_step, sets[0][0], shape.filters), setting)
    for pass_, calls, inputs in harness.passes(values, sets):
        timings = harness.interleaved(calls, inputs, 2 if setting.quick else REPETITIONS, device)
        times = 2 if pass_ == "both" else 1
        floor = times * shape.bytes
        limit = machine.limit(floor, {torch.float32: times * shape.additions})
        for name, timing in timings.items():
            over = {
                column: timings[baseline].median / timing.median if baseline in timings else None
                for column, baseline in RATIOS.items()
            }
            yield {
                "pass": pass_,
                "provider": name,
                **timing.columns(),
                **over,
                "share_of_floor": floor / machine.bandwidth / timing.median,
                "share_of_limit": limit / timing.median,
                "relative_error": errors[name],
                "peak_extra_mb": peaks.get(name) if pass_ == "both" else None,
                "ids": source,
            }


REPETITIONS = 3  # a call of a baseline takes seconds
RATIOS = {"over_one_hot": "one_hot + conv1d", "over_embedding": "embedding sum"}
SHAPES = {"few": ("1024x9", "8192x9"), "many": ("1024x128",)}
KERNELS = ("one_hot_conv1d", "one_hot_conv1d_backward")
BENCHMARK = harness.Benchmark(
    on={
        "cpu": harness.On(
            backend="cpp",
            tests=("tests/ops/test_one_hot_conv1d.py",),
            providers=[name for name in PROVIDERS if "TF32" not in name],
            shapes=SHAPES,
            quick=("1024x9",),
            kernels=KERNELS,
        ),
        "cuda": harness.On(
            backend="triton",
            tests=("tests/kernels/on_device/one_hot.py",),
            providers=tuple(PROVIDERS),
            shapes={"few": ("8192x9",), "many": ("8192x128",)},
            quick=("8192x9",),
            kernels=KERNELS,
        ),
    },
    parse=Shape.parse,
    measure=measure,
    table={
        "pass": str,
        "provider": str,
        **report.TIMES,
        "over_one_hot": "{:.2f}x".format,
        "over_embedding": "{:.2f}x".format,
        "share_of_floor": "{:.0%}".format,
        "share_of_limit": "{:.1%}".format,
        "relative_error": "{:.0e}".format,
        "peak_extra_mb": "{:.1f}".format,
    },
    draw=partial(
        report.draw_against_shape,
        ratio="over_embedding",
        ratio_label="forward + backward: times as fast as the embedding sum",
        share="share_of_limit",
        share_label="share of the limit",
    ),
    conclude=partial(report.losses, ours="ours", baselines=BASELINES),
)
