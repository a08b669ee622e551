"""`one_hot` against `fill_` on the same buffer, and against what a user would write.

Every output is far beyond any cache: [B, 120, 64] or [B, 64, 120], ids uint8, 126 MB on a CPU and
1 GB on a GPU. Shapes are dtype and layout. Providers named "into" write into a buffer that is
there, as `fill_` does; the others make a new tensor each time and, on a CPU, pay for its pages,
which the system clears first. The limit of the former is `fill_`, that of the latter `new tensor,
fill_`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from benchmarks import harness, report
from benchmarks.harness import Row
from stib_fast import functional as F

LENGTH, CLASSES = 120, 64
DTYPES = ("float32", "bfloat16", "uint8")
OUTPUT_BYTES = {"cpu": 4096 * LENGTH * CLASSES * 4, "cuda": 32768 * LENGTH * CLASSES * 4}

Step = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """What is written."""

    dtype: torch.dtype
    layout: F.OneHotLayout

    @classmethod
    def parse(cls, text: str) -> Case:
        """Read DTYPE-LAYOUT."""
        for dtype in DTYPES:
            for layout in get_args(F.OneHotLayout):
                if text == f"{dtype}-{layout}":
                    return cls(getattr(torch, dtype), layout)
        raise ValueError(f"a shape is written DTYPE-LAYOUT, as in uint8-BLV; got {text!r}")

    def __str__(self) -> str:
        return f"{self.dtype}-{self.layout}".removeprefix("torch.")

    @property
    def dim(self) -> int:
        """Of the classes."""
        return 2 if self.layout == "BLV" else 1

    def inputs(self, device: torch.device, part: int = 1) -> list[tuple[Tensor, Tensor]]:
        """Ids, twice, and the one buffer that they are written into."""
        rows = OUTPUT_BYTES[device.type] // (LENGTH * CLASSES * self.dtype.itemsize * part)
        generator = torch.Generator(device).manual_seed(0)
        sizes = (LENGTH, CLASSES) if self.layout == "BLV" else (CLASSES, LENGTH)
        out = torch.zeros(rows, *sizes, dtype=self.dtype, device=device)
        ids = torch.randint(
            CLASSES, (2, rows, LENGTH), dtype=torch.uint8, device=device, generator=generator
        )
        return [(each, out) for each in ids]


# ---- providers -----------------------------------------------------------------------------------


def ours_into(case: Case, ids: Tensor, out: Tensor) -> Tensor:
    return F.one_hot(ids, CLASSES, case.dtype, case.layout, out=out)


def ours_new(case: Case, ids: Tensor, out: Tensor) -> Tensor:
    return F.one_hot(ids, CLASSES, case.dtype, case.layout)


def eager_into(case: Case, ids: Tensor, out: Tensor) -> Tensor:
    with harness.exactly_backend("eager", ids.device):
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
    classes = torch.arange(CLASSES, dtype=torch.uint8, device=ids.device)
    if case.layout == "BLV":
        return (ids[..., None] == classes).to(case.dtype)
    return (ids[:, None] == classes[:, None]).to(case.dtype)


def rows_of_identity(case: Case, ids: Tensor, out: Tensor) -> Tensor:
    eye = torch.eye(CLASSES, dtype=case.dtype, device=ids.device)
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
OURS = {"into": "ours into", "new": "ours"}


def kind(provider: str) -> str:
    """Whether a provider writes into the buffer or makes a new tensor."""
    return "into" if provider.endswith("into") else "new"


def step_of(provider: str, case: Case) -> Step:
    step = partial((PROVIDERS | LIMITS)[provider], case)
    return torch.compile(step, fullgraph=True) if provider.endswith("compiled") else step


# ---- measurement ---------------------------------------------------------------------------------


def memory_step(case: Case, device: torch.device, name: str) -> Callable[[], object]:
    """Make a call whose memory is measured, in the process that measures it."""
    return partial(step_of(name, case), *case.inputs(device)[0])


def measure(case: Case, names: Sequence[str], setting: harness.Setting) -> Iterator[Row]:
    """Check every provider, time all of them in turns, and derive the columns."""
    torch._dynamo.reset()
    sets = case.inputs(setting.device, part=16 if setting.quick else 1)
    # `index_select` cannot put the classes first.
    names = [name for name in names if case.layout == "BLV" or "identity" not in name]
    steps = {name: step_of(name, case) for name in (*LIMITS, *names)}
    expected = torch_one_hot(case, *sets[0])
    for name in names:
        if not torch.equal(steps[name](*sets[0]), expected):
            raise harness.Disagreement(f"{name} is not the one-hot encoding; no times are reported")
    size = expected.nbytes
    del expected
    once = {name: partial(steps[name], *sets[0]) for name in names if case in WITH_MEMORY}
    peaks = harness.peak_memory(once, partial(memory_step, case, setting.device), setting)
    timings = harness.interleaved(steps, sets, 3 if setting.quick else 11, setting.device)
    limits = {kind(name): timings[name].median for name in LIMITS}
    scatter = timings.get("zero_ + scatter_ into")
    for name, timing in timings.items():
        yield {
            "provider": name,
            **timing.columns(),
            "gb_per_second": size / timing.median / 1e9,
            "share_of_fill": limits[kind(name)] / timing.median,
            "over_scatter": scatter.median / timing.median if scatter else None,
            "peak_extra_mb": peaks.get(name),
        }


def conclude(rows: Sequence[Row]) -> list[str]:
    """Cases lost to a baseline that makes a tensor of the same kind."""
    return [
        line
        for which, ours in OURS.items()
        for line in report.losses(
            rows,
            ours,
            [name for name in PROVIDERS if kind(name) == which and not name.startswith("ours")],
        )
    ]


SHAPES = {
    dtype: tuple(f"{dtype}-{layout}" for layout in get_args(F.OneHotLayout)) for dtype in DTYPES
}
WITH_MEMORY = {Case.parse(text) for text in SHAPES["float32"]}
BENCHMARK = harness.Benchmark(
    on={
        device: harness.On(
            backend=backend,
            tests=(tests,),
            providers=tuple(PROVIDERS),
            shapes=SHAPES,
            quick=SHAPES["float32"],
            kernels=("one_hot",),
        )
        for device, backend, tests in (
            ("cpu", "cpp", "tests/ops/test_one_hot.py"),
            ("cuda", "triton", "tests/kernels/on_device/one_hot.py"),
        )
    },
    parse=Case.parse,
    measure=measure,
    table={
        "provider": str,
        **report.TIMES,
        "gb_per_second": "{:.1f}".format,
        "share_of_fill": "{:.0%}".format,
        "over_scatter": "{:.1f}x".format,
        "peak_extra_mb": "{:.0f}".format,
    },
    draw=partial(
        report.draw_against_shape,
        ratio="over_scatter",
        ratio_label="times as fast as zero_ + scatter_",
        share="share_of_fill",
        share_label="share of the rate of fill_",
    ),
    conclude=conclude,
)
