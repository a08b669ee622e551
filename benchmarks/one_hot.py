"""`one_hot` against `fill_` on the same buffer, and against what a user would write.

    python -m benchmarks.one_hot [--quick] [--threads 1 2] [--out DIR]

Every output holds 126 MB, beyond any cache: [B, 120, 64] or [B, 64, 120], ids uint8. Providers
named "into" write into a buffer that is there, as `fill_` does; the others make a new tensor each
time and pay for its pages, which the system clears first. The limit of the former is `fill_`, that
of the latter `new tensor, fill_`.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness
from stib_fast import functional as F

# torch.compile warns of its own deprecated calls.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch")

LENGTH, CLASSES = 120, 64
OUTPUT_BYTES = 4096 * LENGTH * CLASSES * 4
DTYPES = (torch.float32, torch.bfloat16, torch.uint8)
BACKEND = "cpp"  # of ours: where it is not usable there is nothing to measure

Row = harness.Row
Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """What is written."""

    dtype: torch.dtype
    layout: F.OneHotLayout
    quick: bool

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.layout}"

    @property
    def rows(self) -> int:
        """B."""
        return OUTPUT_BYTES // (LENGTH * CLASSES * self.dtype.itemsize) // (16 if self.quick else 1)

    @property
    def bytes(self) -> int:
        """Of the output."""
        return self.rows * LENGTH * CLASSES * self.dtype.itemsize

    @property
    def dim(self) -> int:
        """Of the classes."""
        return 2 if self.layout == "BLV" else 1

    def inputs(self) -> list[tuple[Tensor, Tensor]]:
        """Ids, twice, and the one buffer that they are written into."""
        torch.manual_seed(0)
        sizes = (LENGTH, CLASSES) if self.layout == "BLV" else (CLASSES, LENGTH)
        out = torch.zeros(self.rows, *sizes, dtype=self.dtype)
        ids = torch.randint(CLASSES, (2, self.rows, LENGTH), dtype=torch.uint8)
        return [(each, out) for each in ids]


# ---- providers -----------------------------------------------------------------------------------


def ours_into(case: Case, ids: Tensor, out: Tensor) -> Tensor:
    return F.one_hot(ids, CLASSES, case.dtype, case.layout, out=out)


def ours_new(case: Case, ids: Tensor, out: Tensor) -> Tensor:
    return F.one_hot(ids, CLASSES, case.dtype, case.layout)


def eager_into(case: Case, ids: Tensor, out: Tensor) -> Tensor:
    with harness.exactly_backend("eager"):
        return ours_into(case, ids, out)


def fill(case: Case, ids: Tensor, out: Tensor) -> Tensor:
    return out.fill_(1)


def new_fill(case: Case, ids: Tensor, out: Tensor) -> Tensor:
    return torch.empty_like(out).fill_(1)


def torch_one_hot(case: Case, ids: Tensor, out: Tensor) -> Tensor:
    dense = torch.nn.functional.one_hot(ids.long(), CLASSES).to(case.dtype)
    return dense if case.layout == "BLV" else dense.transpose(1, 2).contiguous()


def scatter_into(case: Case, ids: Tensor, out: Tensor) -> Tensor:
    return out.zero_().scatter_(case.dim, ids.long().unsqueeze(case.dim), 1)


def compare_new(case: Case, ids: Tensor, out: Tensor) -> Tensor:
    classes = torch.arange(CLASSES, dtype=torch.uint8)
    if case.layout == "BLV":
        return (ids[..., None] == classes).to(case.dtype)
    return (ids[:, None] == classes[:, None]).to(case.dtype)


def rows_of_identity(case: Case, ids: Tensor, out: Tensor) -> Tensor:
    eye = torch.eye(CLASSES, dtype=case.dtype)
    return torch.index_select(eye, 0, ids.flatten().int(), out=out.view(-1, CLASSES)).view_as(out)


LIMITS = {"fill_ into": fill, "new tensor, fill_": new_fill}
PROVIDERS = {
    "ours into": ours_into,
    "ours": ours_new,
    "ours, eager backend, into": eager_into,
    "zero_ + scatter_ into": scatter_into,
    "rows of the identity into": rows_of_identity,
    "F.one_hot .to": torch_one_hot,
    "F.one_hot .to compiled": torch_one_hot,
    "ids == arange .to": compare_new,
    "ids == arange .to compiled": compare_new,
}
BASELINES = [name for name in PROVIDERS if not name.startswith("ours")]
OURS = {"into": "ours into", "new": "ours"}


def kind(provider: str) -> str:
    """Whether a provider writes into the buffer or makes a new tensor."""
    return "into" if provider.endswith("into") else "new"


def step_of(provider: str, case: Case) -> Step:
    step = partial((PROVIDERS | LIMITS)[provider], case)
    return torch.compile(step, fullgraph=True) if provider.endswith("compiled") else step


def providers_of(case: Case) -> list[str]:
    """All but one that cannot put the classes first."""
    return [name for name in PROVIDERS if case.layout == "BLV" or "identity" not in name]


# ---- measurement ---------------------------------------------------------------------------------


def memory_step(provider: str, case: Case, index: int) -> Callable[[], object]:
    """Make a call whose memory is measured, in the process that measures it."""
    inputs, step = case.inputs()[0], step_of(provider, case)

    def call() -> None:
        with harness.exactly_backend(BACKEND):
            step(*inputs)

    return call


def measure(case: Case, memory: dict[str, float], repetitions: int) -> Iterator[Row]:
    """Check every provider, time all of them in turns, and derive the columns."""
    torch._dynamo.reset()
    sets = case.inputs()
    steps = {name: step_of(name, case) for name in (*LIMITS, *providers_of(case))}
    expected = torch_one_hot(case, *sets[0])
    for name, step in steps.items():
        if name not in LIMITS and not torch.equal(step(*sets[0]), expected):
            raise harness.Disagreement(f"{name} is not the one-hot encoding; no times are reported")
    del expected
    timings = harness.interleaved(steps, sets, repetitions)
    limits = {kind(name): timings[name].median for name in LIMITS}
    for name, timing in timings.items():
        yield {
            "case": str(case),
            "threads": torch.get_num_threads(),
            "provider": name,
            "ms": timing.median * 1e3,
            "ms_20": timing.low * 1e3,
            "ms_80": timing.high * 1e3,
            "gb_per_second": case.bytes / timing.median / 1e9,
            "share_of_fill": limits[kind(name)] / timing.median,
            "over_scatter": timings["zero_ + scatter_ into"].median / timing.median,
            "peak_extra_mb": memory.get(name),
        }


# ---- report --------------------------------------------------------------------------------------

TABLE: dict[str, Callable[[Any], str]] = {
    "provider": str,
    "ms": "{:.3g}".format,
    "ms_20": "{:.3g}".format,
    "ms_80": "{:.3g}".format,
    "gb_per_second": "{:.1f}".format,
    "share_of_fill": "{:.0%}".format,
    "over_scatter": "{:.1f}x".format,
    "peak_extra_mb": "{:.0f}".format,
}


def threads_text(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def case_text(row: Row) -> str:
    return f"{row['case']}, {threads_text(row['threads'])}"


def lost(rows: Sequence[Row]) -> list[str]:
    """Cases lost to a baseline that makes a tensor of the same kind."""
    return [
        line
        for which, ours in OURS.items()
        for line in harness.losses(
            rows, ours, [name for name in BASELINES if kind(name) == which], case_text
        )
    ]


def figure_of(rows: Sequence[Row]) -> Figure:
    """Draw gigabytes per second of each provider in a panel for each case, fill_ as lines."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    columns, lines = min(2, len(cases)), math.ceil(len(cases) / 2)
    figure = Figure(figsize=(6.5 * columns, 3.4 * lines), dpi=120, layout="constrained")
    for index, name in enumerate(cases):
        axes = figure.add_subplot(lines, columns, index + 1)
        here = [row for row in rows if row["case"] == name]
        labels = [p for p in dict.fromkeys(row["provider"] for row in here) if p not in LIMITS]
        counts = list(dict.fromkeys(row["threads"] for row in here))
        for k, count in enumerate(counts):
            rates = {
                row["provider"]: row["gb_per_second"] for row in here if row["threads"] == count
            }
            places = [i + 0.4 * (k - (len(counts) - 1) / 2) for i in range(len(labels))]
            axes.barh(
                places,
                [rates[label] for label in labels],
                height=0.36,
                color=f"C{k}",
                label=threads_text(count),
            )
            for limit, style in zip(LIMITS, ("--", ":"), strict=True):
                axes.axvline(
                    rates[limit],
                    color=f"C{k}",
                    linestyle=style,
                    label=f"{limit}, {threads_text(count)}",
                )
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("GB/s written")
        axes.set_title(name, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    handles, texts = axes.get_legend_handles_labels()
    figure.legend(handles, texts, fontsize=8, loc="outside upper center", ncols=len(texts))
    return figure


def main() -> None:
    options = harness.arguments("Time one_hot against fill_ and PyTorch baselines.").parse_args()
    repetitions = 3 if options.quick else 11
    cases = [
        Case(dtype, layout, options.quick)
        for dtype in (DTYPES[:1] if options.quick else DTYPES)
        for layout in ("BLV", "BVL")
    ]
    rows: list[Row] = []
    machines: dict[int, harness.Machine] = {}
    with harness.exactly_backend(BACKEND):
        for thread_count in options.threads:
            memory = {
                (name, case): harness.peak_memory(partial(memory_step, name, case), 1, thread_count)
                for case in cases[: 0 if options.quick else 2]
                for name in providers_of(case)
            }
            with harness.threads(thread_count):
                machines[thread_count] = machine = harness.measure_machine()
                print(f"\n{threads_text(thread_count)}: {machine.text()}", flush=True)
                for case in cases:
                    peaks = {n: value[0] / 1e6 for (n, c), value in memory.items() if c == case}
                    new = list(measure(case, peaks, repetitions))
                    rows += new
                    print(f"\n{case}, {threads_text(thread_count)}: {case.bytes / 1e6:.0f} MB\n")
                    print(harness.markdown(new, TABLE), flush=True)

    print("\nFaster than ours:", *(lost(rows) or ["none"]), sep="\n- ")
    environment = harness.environment() | {
        "machine": {count: machine.record() for count, machine in machines.items()}
    }
    harness.write(options.out, "one_hot", rows, environment, figure_of(rows))


if __name__ == "__main__":
    main()
