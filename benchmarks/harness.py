"""What every benchmark shares: right answers, fair timing, what the device can do, and memory.

- Providers take turns in one process, in bursts of calls, so that a change of clock or a busy
  neighbour hits all of them. Each call takes the next of many input sets, which together exceed the
  last-level cache. Compilation and warm-up are not counted.
- A provider that disagrees with the float64 reference, or that would run on another backend than
  the one it names, ends the benchmark: there is no report without right answers.
- The bandwidth of a copy and the rate of a matrix product are measured in the same run, on the same
  device and with the same threads; limits are derived from them.
"""

from __future__ import annotations

import ctypes
import gc
import math
import multiprocessing
import os
import platform
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch._functorch.config
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import stib_fast
from stib_fast.backends import backend_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# torch.compile warns of its own deprecated calls.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
# Backwards are timed through graphs that are kept, which this optimisation does not allow.
torch._functorch.config.donated_buffer = False

# On a GPU more, for what a launch costs to vanish beside it.
COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}
BURST_SECONDS = {"cpu": 2e-3, "cuda": 1e-2}
KEPT_SETS = 64  # each keeps a graph for each provider while backwards are timed
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")

Call = Callable[..., object]
Row = dict[str, Any]


# ---- what a file of benchmarks says --------------------------------------------------------------


@dataclass(frozen=True)
class On:
    """A benchmark on one kind of device."""

    backend: str
    """That of ours: where it is not usable there is nothing to measure."""
    tests: Sequence[str]
    """Files; where they fail nothing is measured."""
    providers: Sequence[str]
    shapes: Mapping[str, Sequence[str]]
    """Named sets of them; all, where none is asked for."""
    quick: Sequence[str]
    """Shapes of a smoke test."""
    kernels: Sequence[str] = ()
    """Ops that must have a kernel for the device: Triton's or the compiled library's."""


@dataclass(frozen=True)
class Setting:
    """Where and how a case is measured."""

    device: torch.device
    backend: str
    machine: Machine
    quick: bool = False
    strings: Path | None = None


@dataclass(frozen=True)
class Benchmark:
    """What `python -m benchmarks` needs of an op."""

    on: Mapping[str, On]
    parse: Callable[[str], Any]
    """From the text of a shape; a ValueError says how it is written."""
    measure: Callable[[Any, Sequence[str], Setting], Iterator[Row]]
    """Of a shape and providers: check them, time them, give a row for each."""
    table: Mapping[str, Callable[[Any], str]]
    """How the columns that are printed are written."""
    draw: Callable[[Figure, Sequence[Row]], None]
    conclude: Callable[[Sequence[Row]], Sequence[str]]
    """Lines that end the report."""


def parse_rows(text: str) -> int:
    """Read a shape that is a number of rows.

    Raises
    ------
    ValueError
        Where it is none, or below 2.
    """
    if not text.isdecimal() or int(text) < 2:
        raise ValueError(f"a shape is a number of rows, as 1000; got {text!r}")
    return int(text)


# ---- correctness ---------------------------------------------------------------------------------


class Disagreement(RuntimeError):
    """A provider's result is not the reference's, so its time means nothing."""


class Fallback(RuntimeError):
    """Another backend would run than the one that is measured."""


def relative_error(found: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Largest ||found - reference|| / ||reference|| over the tensors, in float64."""
    pairs = zip(found, reference, strict=True)
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in pairs)


def require_agreement(provider: str, error: float, tolerance: float) -> None:
    """Refuse to go on with wrong results; NaN is wrong too."""
    if not error <= tolerance:
        raise Disagreement(
            f"{provider}: relative error {error:.2g} against float64 exceeds {tolerance:.0e}; "
            "no times are reported for wrong results"
        )


@contextmanager
def exactly_backend(name: str, device: torch.device, kernels: Sequence[str] = ()) -> Iterator[None]:
    """Run the ops of the block on one backend; a silent fallback is an error.

    `kernels` are ops that the dispatcher must know for the device: else a library that is not
    loaded, or an op that does not offer the backend, would go unseen.
    """
    with stib_fast.backend(name):
        try:
            used = name if name == "auto" else backend_for(device, (name,))
        except RuntimeError as error:
            raise Fallback(str(error)) from None
        if used != name:
            raise Fallback(f"backend {name!r} was asked for but {used!r} would run")
        for op in kernels:
            key = device.type.upper()
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"stib_fast::{op}", key):
                raise Fallback(
                    f"{op} has no kernel for {device}: `stib doctor` tells what is not built"
                )
        yield


# ---- timing --------------------------------------------------------------------------------------

# torch.utils.benchmark times one statement at a time and triton.testing.do_bench one call on one
# set of inputs, between which it clears the cache with a launch of its own that hides what a short
# call costs the host. Neither takes turns or rotates inputs. What they are made of, perf_counter
# and CUDA events, is used here.


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median and the 20 % and 80 % quantiles over the bursts."""

    median: float
    low: float
    high: float

    def columns(self) -> Row:
        """Milliseconds, as every table has them."""
        return {"ms": self.median * 1e3, "ms_20": self.low * 1e3, "ms_80": self.high * 1e3}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Give PyTorch's pool `count` threads for the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def last_level_cache(device: torch.device) -> int:
    """Bytes of a GPU's second-level cache, or of the first CPU's largest (64 MiB if unknown)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [
        int(path.read_text().strip().removesuffix("K")) * 2**10
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    return max(sizes, default=64 * 2**20)


def rotation_size(bytes_per_set: int, device: torch.device) -> int:
    """Count the input sets that fill the last-level cache twice; 2 at least."""
    return max(2, math.ceil(2 * last_level_cache(device) / bytes_per_set))


def elapsed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds from the beginning of a call to the end of all that it starts on the device."""
    if device.type == "cpu":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def timed_burst(
    call: Call, sets: Iterator[Sequence[Any]], calls: int, device: torch.device
) -> float:
    """Seconds per call over `calls` consecutive calls, after one that does not count.

    That one meets the allocator and the caches as the provider before left them.
    """
    first, *inputs = islice(sets, calls + 1)
    call(*first)

    def burst() -> None:
        for arguments in inputs:
            call(*arguments)

    return elapsed(burst, device) / calls


def interleaved(
    providers: Mapping[str, Call],
    sets: Sequence[Sequence[Any]],
    repetitions: int,
    device: torch.device,
) -> dict[str, Timing]:
    """Time every provider on input sets in rotation, a burst of each in turn.

    A burst is one call, or as many as fill `BURST_SECONDS`: one call of some microseconds would
    measure the clock, and on a GPU the wait for its first launch.
    """
    rotation = cycle(sets)
    calls = {}
    for name, call in providers.items():
        timed_burst(call, rotation, 2, device)  # compiles, fills pools and caches
        once = timed_burst(call, rotation, 2, device)
        calls[name] = max(1, round(BURST_SECONDS[device.type] / once))
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repetitions):
            for name, call in providers.items():
                seconds[name].append(timed_burst(call, rotation, calls[name], device))
    finally:
        gc.enable()
    return {name: summary(values) for name, values in seconds.items()}


def summary(seconds: Sequence[float]) -> Timing:
    """Median and the 20 % and 80 % quantiles."""
    if len(seconds) == 1:
        return Timing(seconds[0], seconds[0], seconds[0])
    fifths = statistics.quantiles(seconds, n=5, method="inclusive")
    return Timing(statistics.median(seconds), fifths[0], fifths[-1])


def launches(call: Callable[[], object], device: torch.device) -> int | None:
    """Kernels, copies and graphs that the host starts in a call; None where no tracer tells."""
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize()
    found = sum(event.count for event in trace.key_averages() if event.key.startswith(LAUNCHES))
    return found or None


# ---- forward and backward ------------------------------------------------------------------------


def both(value: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """A value and the gradients of its arguments; the last input is the gradient that comes in."""
    out = value(*inputs[:-1])
    return out.detach(), *_gradients(out, inputs, keep=False)


def passes(
    values: Mapping[str, Callable[..., Tensor]], sets: Sequence[Sequence[Tensor]]
) -> Iterator[tuple[str, dict[str, Call], Sequence[Sequence[Tensor]]]]:
    """Name each pass, with the providers' calls and the input sets for it.

    The forward records what the backward needs, as in training; the backward goes through graphs
    that are kept, for `KEPT_SETS` sets at most.
    """
    yield "forward", {name: partial(_forward, value) for name, value in values.items()}, sets
    kept = sets[:KEPT_SETS]
    yield "backward", {name: _backward(value, kept) for name, value in values.items()}, kept
    yield "both", {name: partial(both, value) for name, value in values.items()}, sets


def _forward(value: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return value(*inputs[:-1])


def _gradients(out: Tensor, inputs: Sequence[Tensor], keep: bool) -> tuple[Tensor, ...]:
    leaves = [x for x in inputs[:-1] if x.requires_grad]
    return torch.autograd.grad(out, leaves, inputs[-1], retain_graph=keep)


def _backward(value: Callable[..., Tensor], sets: Sequence[Sequence[Tensor]]) -> Call:
    graphs = {id(inputs[-1]): value(*inputs[:-1]) for inputs in sets}
    return lambda *inputs: _gradients(graphs[id(inputs[-1])], inputs, keep=True)


# ---- what the device can do ----------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """Rates of a device, measured; of a CPU with a given number of threads."""

    bandwidth: float
    """Bytes per second, read plus written, of a copy beyond the caches."""
    fill: float
    """Bytes per second written by `fill_`."""
    multiply_adds: Mapping[torch.dtype, float]
    """Multiply-adds per second of a matrix product."""

    def limit(self, bytes_moved: float, multiply_adds: Mapping[torch.dtype, float]) -> float:
        """Seconds below which nothing goes: the longer of the traffic and the arithmetic."""
        arithmetic = sum(count / self.multiply_adds[kind] for kind, count in multiply_adds.items())
        return max(bytes_moved / self.bandwidth, arithmetic)

    def text(self) -> str:
        """Say it in a line."""
        rates = (f"{rate / 1e9:.1f} G {kind}" for kind, rate in self.multiply_adds.items())
        return (
            f"copy {self.bandwidth / 1e9:.1f} GB/s, fill {self.fill / 1e9:.1f} GB/s; "
            f"multiply-adds per second {', '.join(rates)}"
        )

    def record(self) -> Row:
        """Give the rates as plain numbers, for JSON."""
        rates = {str(kind): rate for kind, rate in self.multiply_adds.items()}
        return {
            "copy_bytes_per_second": self.bandwidth,
            "fill_bytes_per_second": self.fill,
            "multiply_adds_per_second": rates,
        }


def measure_machine(device: torch.device) -> Machine:
    """Measure copy, fill, and float32 and float64 products with the threads in force."""
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.zeros_like(source)
    size = source.nbytes
    return Machine(
        bandwidth=2 * size / best_of(lambda: target.copy_(source), device),
        fill=size / best_of(lambda: target.fill_(1), device),
        multiply_adds={kind: product_rate(kind, device) for kind in (torch.float32, torch.float64)},
    )


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Multiply-adds per second of a square product that the library blocks well."""
    size = PRODUCT_SIZE[device.type]
    a, b = (torch.rand(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    return size**3 / best_of(lambda: torch.mm(a, b, out=out), device)


def best_of(call: Callable[[], object], device: torch.device, repetitions: int = 9) -> float:
    """Seconds of the fastest call: a capability of the machine is what it does undisturbed."""
    call()
    return min(elapsed(call, device) for _ in range(repetitions))


# ---- memory --------------------------------------------------------------------------------------


def peak_memory(
    calls: Mapping[str, Callable[[], object]],
    make: Callable[[str], Callable[[], object]],
    setting: Setting,
) -> dict[str, float]:
    """Measure the peak extra megabytes (1e6 bytes) of a call of each provider; none when quick.

    On a GPU it is the growth, during one of `calls`, of the memory that PyTorch's allocator holds,
    results included. On a CPU `make(name)`, picklable, makes the calls anew in a fresh process, and
    it is the growth of the peak resident set (VmHWM) during one warmed-up call: memory that is
    asked for but never touched does not count and what the call needed before its warm-up ended
    (code, compilers, thread pools, small scratch kept between calls) does not either. The kernel's
    counters are exact to about 0.2 MB a thread. NaN where the system has no VmHWM.
    """
    if setting.quick:
        return {}
    if setting.device.type == "cuda":
        return {name: allocator_growth(call) / 1e6 for name, call in calls.items()}
    names = list(calls)
    # Blocks of 64 KiB and more come from the system and go back to it: the step cannot reuse,
    # unseen, what the warm-up left in the heap. The setting is read when a process starts.
    count = torch.get_num_threads()
    settings = {"MALLOC_MMAP_THRESHOLD_": str(64 * 2**10), "OMP_NUM_THREADS": str(count)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            peaks = pool.submit(_peaks, make, names, setting.backend, count).result()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return {name: peak / 1e6 for name, peak in zip(names, peaks, strict=True)}


def _peaks(
    make: Callable[[str], Callable[[], object]], names: Sequence[str], backend: str, count: int
) -> list[float]:
    with threads(count), exactly_backend(backend, torch.device("cpu")):
        return [_resident_growth(make(name)) for name in names]


def allocator_growth(step: Callable[[], object]) -> int:
    """Bytes that a call takes beyond what was held before; a graph holds its own all the time."""
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _resident_growth(step: Callable[[], object]) -> float:
    if not Path("/proc/self/clear_refs").exists():
        return math.nan
    for _ in range(2):
        step()
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present size
    before = _status_bytes("VmRSS")
    step()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{field}:\s+(\d+) kB", status)[0]) * 1024
