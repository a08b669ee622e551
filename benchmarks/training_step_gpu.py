"""Time a training step of STIB on a GPU: ours in its four forms against what a user would write.

    python -m benchmarks.training_step_gpu [--batches 60 1024 …] [--quick] [--out DIR]

Model and baselines are those of `benchmarks.training_step`. Ours runs op by op, compiled, replayed
as a CUDA graph, and both; and replayed with matrix products in bfloat16. CUDA events around calls
in turns; launches and peak memory are those of one more call. Batches lie on the GPU already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from matplotlib.figure import Figure
from torch.profiler import ProfilerActivity, profile

import stib_fast
from benchmarks import harness
from benchmarks.gpu import milliseconds
from benchmarks.training_step import BASELINES, Step, new_model, ours_step, same_gradients
from stib_fast.backends import backend_for
from stib_fast.data import sample
from stib_fast.models import STIB
from stib_fast.training import Execution
from stib_fast.training.step import WARM_UP

BACKEND = "triton"
FORMS = {
    "ours": Execution("cuda"),
    "ours compiled": Execution("cuda", compile=True),
    "ours captured": Execution("cuda", cuda_graph=True),
    "ours compiled, captured": Execution("cuda", compile=True, cuda_graph=True),
    "ours bfloat16, captured": Execution("cuda", amp=True, cuda_graph=True),
}
PROVIDERS: dict[str, Callable[[STIB], Step]] = {
    **{name: lambda model, form=form: ours_step(model, form) for name, form in FORMS.items()},
    **BASELINES,
}
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")
Row = harness.Row
Call = Callable[[], object]


def same_steps() -> None:
    """Refuse to time a captured step that does not train as the uncaptured one does."""
    x, y, _ = sample(1024, generator=torch.Generator("cuda").manual_seed(1))
    weights = []
    for name in ("ours captured", "ours"):
        model = new_model().cuda()
        step = PROVIDERS[name](model)
        torch.manual_seed(2)
        for _ in range(WARM_UP + 5):
            step(x, y)
        weights.append([p.detach() for p in model.parameters()])
    harness.require_agreement("ours captured", harness.relative_error(*weights), 1e-6)


def warmed_up(batch: int) -> dict[str, Call]:
    """A step of every provider that the memory holds, compiled and captured."""
    x, y, _ = sample(batch, generator=torch.Generator("cuda").manual_seed(0))
    torch._dynamo.reset()
    calls: dict[str, Call] = {}
    for name, make in PROVIDERS.items():
        step = make(new_model().cuda())
        try:
            for _ in range(WARM_UP + 2):
                step(x, y)
            torch.cuda.synchronize()
        except torch.cuda.OutOfMemoryError:
            print(f"B={batch}: {name} does not fit into memory")
            continue
        calls[name] = lambda step=step: step(x, y)
    return calls


def launches(call: Call) -> int:
    """Kernels, copies and graphs that the host starts in a call."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize()
    return sum(event.count for event in trace.key_averages() if event.key.startswith(LAUNCHES))


def peak_megabytes(call: Call) -> float:
    """What a call asks for beyond what was held before; a graph holds its memory all the time."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def measure(batch: int, repetitions: int) -> Iterator[Row]:
    calls = warmed_up(batch)
    times = milliseconds(calls, repetitions)
    for name, call in calls.items():
        yield {
            "batch": batch,
            "provider": name,
            "ms": times[name],
            "over_best_eager": times.get("best eager", math.nan) / times[name],
            "over_ours": times.get("ours", math.nan) / times[name],
            "launches": launches(call),
            "peak_mb": peak_megabytes(call),
        }


def figure_of(rows: list[Row]) -> Figure:
    """Draw time against batch."""
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name in PROVIDERS:
        chosen = [row for row in rows if row["provider"] == name]
        axes.loglog([r["batch"] for r in chosen], [r["ms"] for r in chosen], "o-", label=name)
    axes.set_xlabel("rows in a batch")
    axes.set_ylabel("training step, ms (median)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def main() -> None:
    parser = harness.arguments("Time a training step of STIB on a GPU.")
    parser.add_argument("--batches", type=int, nargs="+", default=None, metavar="B")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU is usable here")
    batches = options.batches or [60] + ([] if options.quick else [1024, 16_384, 65_536, 1_000_000])
    rows: list[Row] = []
    with stib_fast.backend(BACKEND):
        used = backend_for(torch.device("cuda"), (BACKEND,))
        if used != BACKEND:
            raise SystemExit(f"backend {BACKEND!r} was asked for but {used!r} would run")
        same_gradients("cuda")
        same_steps()
        for batch in batches:
            new = list(measure(batch, 3 if options.quick else 15))
            rows += new
            table = {"provider": str, "ms": "{:.3f}".format, "over_best_eager": "{:.2f}x".format}
            table |= {"over_ours": "{:.2f}x".format, "launches": str, "peak_mb": "{:.0f}".format}
            print(f"\nB={batch}\n\n{harness.markdown(new, table)}\n", flush=True)
            torch.cuda.empty_cache()
    record = harness.environment() | {"gpu": torch.cuda.get_device_name()}
    harness.write(options.out / "gpu", "training_step", rows, record, figure_of(rows))


if __name__ == "__main__":
    main()
