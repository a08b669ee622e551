"""`one_hot_conv1d` against the convolutions that a user would write, on the ids of ZINC.

    STIB_FAST_DATA=DIR python -m benchmarks.one_hot_conv1d [--quick] [--threads 1 2] [--out DIR]

Strings of 120 positions at atom level, K = 9 taps, padding 4, float32. The ids are ZINC's where
STIB_FAST_DATA points to the molecule files, else drawn with the frequencies of ZINC's tokens and as
long as its strings; the report says which. Forward runs without autograd; backward takes a random
gradient through a kept graph; forward + backward is what training does.

Baselines, eager and compiled: *one_hot + conv1d*; *embedding sum*, one gather for each tap; and
*EmbeddingBag*, all taps in one gather, eager.

The floor is the output written, or its gradient read, at the bandwidth of a copy. The roofline is
the longer of the floor and of one addition for each output and tap, at the multiply-adds per second
of a matrix product: the windows of ZINC's padding are alike, and ours adds them up once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._functorch.config
import torch.nn.functional as nnf
from matplotlib.figure import Figure
from torch import Tensor

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness
from stib_fast import functional as F
from stib_fast.chem import SmilesTokenizer, Vocabulary
from stib_fast.chem.files import read_batches

# torch.compile warns of its own deprecated calls.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
# The backward is timed through a graph that is kept, which this optimisation does not allow.
torch._functorch.config.donated_buffer = False

LENGTH, TAPS, PADDING = 120, 9, 4
MODES = ("forward", "backward", "forward + backward")
BACKEND = "cpp"  # of ours: where it is not usable there is nothing to measure
MOST_SETS = 4  # each keeps a graph for each provider

Row = harness.Row
Value = Callable[[Tensor, Tensor, Tensor], Tensor]


class Shape(NamedTuple):
    """Strings and filters."""

    batch: int
    filters: int

    def __str__(self) -> str:
        return f"B = {self.batch}, F = {self.filters}"

    @property
    def bytes(self) -> int:
        """Of the output."""
        return 4 * self.batch * self.filters * LENGTH

    @property
    def additions(self) -> int:
        """One for each output and tap."""
        return self.batch * self.filters * LENGTH * TAPS


SHAPES = (Shape(1024, 9), Shape(8192, 9), Shape(1024, 128))


# ---- ids -----------------------------------------------------------------------------------------


def source() -> str:
    """Say where the ids come from."""
    return "ZINC250k" if "STIB_FAST_DATA" in os.environ else "synthetic, ZINC's token statistics"


@cache
def all_ids() -> Tensor:
    """Ids [N, 120] of as many strings as any shape needs."""
    needed = MOST_SETS * max(shape.batch for shape in SHAPES)
    vocabulary = Vocabulary.preset("zinc250k")
    if "STIB_FAST_DATA" not in os.environ:
        return drawn_ids(vocabulary, needed)
    strings: list[str] = []
    for batch in read_batches(Path(os.environ["STIB_FAST_DATA"]) / "zinc250k.csv.gz", ["smiles"]):
        strings += batch.column(0).to_pylist()
        if len(strings) >= needed:
            break
    return SmilesTokenizer(vocabulary, LENGTH).encode(strings[:needed]).ids


def drawn_ids(vocabulary: Vocabulary, count: int) -> Tensor:
    """Tokens by their counts in ZINC; lengths of mean 39 and deviation 8, as ZINC's with eos."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.tensor(vocabulary.counts, dtype=torch.float32)
    drawn = torch.multinomial(weights, count * LENGTH, True, generator=generator)
    lengths = torch.empty(count, 1).normal_(39, 8, generator=generator).clamp_(9, 73)
    ids = drawn.view(count, LENGTH).masked_fill(torch.arange(LENGTH) >= lengths, 0)
    return ids.to(torch.uint8)


class Inputs(NamedTuple):
    """One set of arguments."""

    ids: Tensor
    weight: Tensor
    bias: Tensor
    grad: Tensor


def input_sets(shape: Shape, count: int) -> list[Inputs]:
    classes = len(Vocabulary.preset("zinc250k"))
    generator = torch.Generator().manual_seed(1)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    return [
        Inputs(
            ids,
            normal(shape.filters, classes, TAPS).requires_grad_(),
            normal(shape.filters).requires_grad_(),
            normal(shape.batch, shape.filters, LENGTH),
        )
        for ids in all_ids()[: count * shape.batch].split(shape.batch)
    ]


# ---- providers -----------------------------------------------------------------------------------


def ours(ids: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.one_hot_conv1d(ids, weight, bias, padding=PADDING)


def eager_backend(ids: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with harness.exactly_backend("eager"):
        return ours(ids, weight, bias)


def dense(ids: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    one_hot = nnf.one_hot(ids.long(), weight.shape[1]).to(weight.dtype)
    return nnf.conv1d(one_hot.transpose(1, 2), weight, bias, padding=PADDING)


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
    bags = positions.unfold(1, TAPS, 1) + torch.arange(TAPS) * table.shape[1]
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
    "embedding sum": Provider(embedding_sum),
    "embedding sum compiled": Provider(embedding_sum, compiled=True),
    "EmbeddingBag": Provider(embedding_bag),
}
BASELINES = [name for name in PROVIDERS if not name.startswith("ours")]
# Float32 sums of a gradient over a million outputs lose what only ours keeps.
TOLERANCE = {name: 1e-3 if name in BASELINES else 1e-5 for name in PROVIDERS}


def parameters_gradient(out: Tensor, inputs: Inputs, keep: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, (inputs.weight, inputs.bias), inputs.grad, retain_graph=keep)


def both(value: Value, *inputs: Tensor) -> tuple[Tensor, ...]:
    arguments = Inputs(*inputs)
    out = value(*arguments[:3])
    return out.detach(), *parameters_gradient(out, arguments, keep=False)


def forward_call(value: Value, *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return value(*inputs[:3])


def backward_call(value: Value, sets: Sequence[Inputs]) -> Callable[..., object]:
    """The backward through graphs that are there, one for each set."""
    graphs = {id(inputs.grad): value(*inputs[:3]) for inputs in sets}

    def call(*inputs: Tensor) -> object:
        arguments = Inputs(*inputs)
        return parameters_gradient(graphs[id(arguments.grad)], arguments, keep=True)

    return call


# ---- measurement ---------------------------------------------------------------------------------


def memory_step(provider: str, shapes: Sequence[Shape], index: int) -> Callable[[], object]:
    """Make a call whose memory is measured, in the process that measures it."""
    torch._dynamo.reset()
    (inputs,) = input_sets(shapes[index], 1)
    value = PROVIDERS[provider].make()

    def call() -> None:
        with harness.exactly_backend(BACKEND):
            both(value, *inputs)

    return call


def reference(inputs: Inputs) -> list[Tensor]:
    """Output and gradients of the dense convolution in float64, some strings at a time."""
    leaves = [p.detach().double().requires_grad_() for p in (inputs.weight, inputs.bias)]
    outs = []
    for ids, grad in zip(inputs.ids.split(256), inputs.grad.split(256), strict=True):
        out = dense(ids, *leaves)
        out.backward(grad.double())
        outs.append(out.detach())
    return [torch.cat(outs), *(leaf.grad for leaf in leaves)]


def measure(
    shape: Shape, machine: harness.Machine, memory: dict[str, float], repetitions: int
) -> Iterator[Row]:
    """Check every provider, time all of them in turns in each mode, and derive the columns."""
    torch._dynamo.reset()
    sets = input_sets(shape, min(MOST_SETS, harness.rotation_size(shape.bytes)))
    values = {name: provider.make() for name, provider in PROVIDERS.items()}
    expected = reference(sets[0])
    errors = {}
    for name, value in values.items():
        errors[name] = harness.relative_error(both(value, *sets[0]), expected)
        harness.require_agreement(name, errors[name], TOLERANCE[name])
    calls: dict[str, dict[str, Callable[..., object]]] = {
        "forward": {name: partial(forward_call, value) for name, value in values.items()},
        "backward": {name: backward_call(value, sets) for name, value in values.items()},
        "forward + backward": {name: partial(both, value) for name, value in values.items()},
    }
    for mode in MODES:
        timings = harness.interleaved(calls.pop(mode), sets, repetitions)
        passes = 2 if mode == MODES[-1] else 1
        floor = passes * shape.bytes
        roofline = machine.seconds(floor, {torch.float32: passes * shape.additions})
        for name, timing in timings.items():
            yield {
                "shape": str(shape),
                "mode": mode,
                "threads": torch.get_num_threads(),
                "provider": name,
                "ms": timing.median * 1e3,
                "ms_20": timing.low * 1e3,
                "ms_80": timing.high * 1e3,
                "over_one_hot": timings["one_hot + conv1d"].median / timing.median,
                "over_embedding": timings["embedding sum"].median / timing.median,
                "times_floor": timing.median * machine.bandwidth / floor,
                "share_of_roofline": roofline / timing.median,
                "relative_error": errors[name],
                "peak_extra_mb": memory.get(name),
                "ids": source(),
            }


def measure_memory(
    providers: Sequence[str], shapes: Sequence[Shape], thread_count: int
) -> dict[str, list[float]]:
    """Peak extra megabytes (1e6 bytes) of forward + backward of each provider at each shape."""
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
    "over_one_hot": "{:.2f}x".format,
    "over_embedding": "{:.2f}x".format,
    "times_floor": "{:.1f}".format,
    "share_of_roofline": "{:.1%}".format,
    "relative_error": "{:.0e}".format,
    "peak_extra_mb": "{:.1f}".format,
}


def threads_text(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def case(row: Row) -> str:
    return f"{row['shape']}, {row['mode']}, {threads_text(row['threads'])}"


def figure_of(rows: Sequence[Row], machines: dict[int, harness.Machine]) -> Figure:
    """Draw the times of each provider, a panel for each shape and mode, with the floor."""
    shapes = [shape for shape in SHAPES if any(row["shape"] == str(shape) for row in rows)]
    figure = Figure(figsize=(15, 3.3 * len(shapes)), dpi=110, layout="constrained")
    figure.suptitle(f"one_hot_conv1d, L = {LENGTH}, K = {TAPS}; ids: {rows[0]['ids']}", fontsize=11)
    grid = figure.subplots(len(shapes), len(MODES), sharey=True, sharex="row", squeeze=False)
    names = list(PROVIDERS)
    for shape, line in zip(shapes, grid, strict=True):
        for mode, axes in zip(MODES, line, strict=True):
            here = [row for row in rows if row["shape"] == str(shape) and row["mode"] == mode]
            for k, (thread_count, machine) in enumerate(machines.items()):
                chosen = [row for row in here if row["threads"] == thread_count]
                times = [row["ms"] for row in chosen]
                below = [row["ms"] - row["ms_20"] for row in chosen]
                above = [row["ms_80"] - row["ms"] for row in chosen]
                places = [names.index(row["provider"]) + 0.2 * k for row in chosen]
                label = threads_text(thread_count)
                axes.errorbar(
                    times,
                    places,
                    xerr=[below, above],
                    fmt="o",
                    color=f"C{k}",
                    label=label,
                    capsize=2,
                )
                passes = 2 if mode == MODES[-1] else 1
                floor = passes * shape.bytes / machine.bandwidth * 1e3
                axes.axvline(floor, color=f"C{k}", linestyle="--", label=f"floor, {label}")
            axes.set_yticks(range(len(names)), names, fontsize=8)
            axes.set_xscale("log")
            axes.set_title(f"{mode}, {shape}", fontsize=10)
            axes.grid(which="both", alpha=0.3)
        line[0].invert_yaxis()
    for axes in grid[-1]:
        axes.set_xlabel("ms (median; 20 % to 80 %)")
    grid[0][0].legend(fontsize=7)
    return figure


def main() -> None:
    parser = harness.arguments("Time one_hot_conv1d against PyTorch baselines.")
    options = parser.parse_args()
    shapes = SHAPES[:1] if options.quick else SHAPES
    repetitions = 2 if options.quick else 3  # a call of a baseline takes seconds
    measured = ("ours", "embedding sum") if options.quick else tuple(PROVIDERS)

    rows: list[Row] = []
    machines: dict[int, harness.Machine] = {}
    print(f"ids: {source()}, {len(Vocabulary.preset('zinc250k'))} classes")
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
                    for mode in MODES:
                        print(f"\n{shape}, {mode}, {threads_text(thread_count)}\n")
                        chosen = [row for row in new if row["mode"] == mode]
                        print(harness.markdown(chosen, TABLE), flush=True)

    lost = harness.losses(rows, "ours", BASELINES, case)
    print("\nFaster than ours:", *(lost or ["none"]), sep="\n- ")
    environment = harness.environment() | {
        "ids": source(),
        "machine": {count: machine.record() for count, machine in machines.items()},
    }
    harness.write(options.out, "one_hot_conv1d", rows, environment, figure_of(rows, machines))


if __name__ == "__main__":
    main()
