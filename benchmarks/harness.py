"""What every benchmark shares: fair timing, what the machine can do, memory, and honest reports.

- Providers take turns in one process, in bursts of calls, so that a change of clock or a busy
  neighbour hits all of them. Each call takes the next of many input sets, which together exceed the
  last-level cache. Compilation and warm-up are not counted.
- A provider that disagrees with the float64 reference, or that would run on another backend than
  the one it names, ends the benchmark: there is no report without right answers.
- The bandwidth of a copy and the rate of a matrix product are measured in the same run with the
  same threads; floors are derived from them.
- Cases that are lost against a baseline are listed with the cases that are won.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import json
import math
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

import stib_fast
from stib_fast.backends import PACKAGE, backend_for

ROOT = Path(__file__).resolve().parents[1]
COPY_BYTES = 256 * 2**20
BURST_SECONDS = 2e-3

Call = Callable[..., object]
Row = dict[str, Any]


# ---- correctness ---------------------------------------------------------------------------------


class Disagreement(RuntimeError):
    """A provider's result is not the reference's, so its time means nothing."""


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
def exactly_backend(name: str) -> Iterator[None]:
    """Run the ops of the block on one backend; a silent fallback is an error."""
    with stib_fast.backend(name):
        used = backend_for(torch.device("cpu"))
        if used != name:
            raise RuntimeError(f"backend {name!r} was asked for but {used!r} would run")
        yield


# ---- timing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median and the 20 % and 80 % quantiles over the bursts."""

    median: float
    low: float
    high: float


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Give PyTorch's pool `count` threads for the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def last_level_cache() -> int:
    """Bytes of the largest cache of the first CPU; 64 MiB where the system does not tell."""
    sizes = [
        int(path.read_text().strip().removesuffix("K")) * 2**10
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    return max(sizes, default=64 * 2**20)


def rotation_size(bytes_per_set: int) -> int:
    """Count the input sets that fill the last-level cache twice; 2 at least."""
    return max(2, math.ceil(2 * last_level_cache() / bytes_per_set))


def timed_burst(call: Call, sets: Iterator[Sequence[Tensor]], calls: int) -> float:
    """Seconds per call over `calls` consecutive calls, after one that does not count.

    That one meets the allocator and the caches as the provider before left them.
    """
    first, *inputs = islice(sets, calls + 1)
    call(*first)
    start = time.perf_counter()
    for arguments in inputs:
        call(*arguments)
    return (time.perf_counter() - start) / calls


def interleaved(
    providers: Mapping[str, Call], sets: Sequence[Sequence[Tensor]], repetitions: int
) -> dict[str, Timing]:
    """Time every provider on input sets in rotation, a burst of each in turn.

    A burst is one call, or as many as fill `BURST_SECONDS`: one call of some microseconds would
    measure the clock.
    """
    rotation = cycle(sets)
    calls = {}
    for name, call in providers.items():
        timed_burst(call, rotation, 2)  # compiles, fills pools and caches
        once = timed_burst(call, rotation, 2)
        calls[name] = min(len(sets), max(1, round(BURST_SECONDS / once)))
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    gc.collect()
    gc.disable()
    try:
        for _ in range(repetitions):
            for name, call in providers.items():
                seconds[name].append(timed_burst(call, rotation, calls[name]))
    finally:
        gc.enable()
    return {name: summary(values) for name, values in seconds.items()}


def summary(seconds: Sequence[float]) -> Timing:
    """Median and the 20 % and 80 % quantiles."""
    if len(seconds) == 1:
        return Timing(seconds[0], seconds[0], seconds[0])
    fifths = statistics.quantiles(seconds, n=5, method="inclusive")
    return Timing(statistics.median(seconds), fifths[0], fifths[-1])


# ---- what the machine can do ---------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """Rates measured with a given number of threads."""

    bandwidth: float
    """Bytes per second, read plus written, of a 256 MB copy."""
    multiply_adds: Mapping[torch.dtype, float]
    """Multiply-adds per second of a matrix product."""

    def seconds(self, bytes_moved: float, multiply_adds: Mapping[torch.dtype, float]) -> float:
        """Return the roofline: the longer of the traffic's and the arithmetic's time."""
        arithmetic = sum(count / self.multiply_adds[kind] for kind, count in multiply_adds.items())
        return max(bytes_moved / self.bandwidth, arithmetic)

    def text(self) -> str:
        """Say it in a line."""
        rates = (f"{rate / 1e9:.1f} G {kind}" for kind, rate in self.multiply_adds.items())
        return f"copy {self.bandwidth / 1e9:.1f} GB/s; multiply-adds per second {', '.join(rates)}"

    def record(self) -> Row:
        """Give the rates as plain numbers, for JSON."""
        rates = {str(kind): rate for kind, rate in self.multiply_adds.items()}
        return {"copy_bytes_per_second": self.bandwidth, "multiply_adds_per_second": rates}


def measure_machine(repetitions: int = 9) -> Machine:
    """Measure the copy and float32 and float64 products with the threads in force."""
    return Machine(
        bandwidth=2 * COPY_BYTES / best_of(copy_call(), repetitions),
        multiply_adds={kind: product_rate(kind) for kind in (torch.float32, torch.float64)},
    )


def copy_call() -> Callable[[], object]:
    source = torch.ones(COPY_BYTES // 4)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def product_rate(dtype: torch.dtype, size: int = 1024, repetitions: int = 9) -> float:
    """Multiply-adds per second of a square product that the library blocks well."""
    a = torch.rand(size, size, dtype=dtype)
    b = torch.rand(size, size, dtype=dtype)
    out = torch.empty_like(a)
    return size**3 / best_of(lambda: torch.mm(a, b, out=out), repetitions)


def best_of(call: Callable[[], object], repetitions: int) -> float:
    """Seconds of the fastest call: a capability of the machine is what it does undisturbed."""
    call()
    best = math.inf
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


# ---- memory --------------------------------------------------------------------------------------


def peak_memory(steps: Call, count: int, thread_count: int) -> list[float]:
    """Measure the peak extra bytes of each of `count` steps in a fresh process.

    `steps(i)` returns the i-th step to call, with its inputs made; it must be picklable. The figure
    is the growth of the peak resident set (VmHWM) during one warmed-up call, results included, so
    memory that is asked for but never touched does not count and what the call needed before its
    warm-up ended (code, compilers, thread pools, small scratch kept between calls) does not either.
    The kernel's counters are exact to about 0.2 MB a thread. NaN where the system has no VmHWM.
    """
    # Blocks of 64 KiB and more come from the system and go back to it: the step cannot reuse,
    # unseen, what the warm-up left in the heap. The setting is read when a process starts.
    settings = {"MALLOC_MMAP_THRESHOLD_": str(64 * 2**10), "OMP_NUM_THREADS": str(thread_count)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_peaks, steps, count, thread_count).result()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _peaks(steps: Call, count: int, thread_count: int) -> list[float]:
    with threads(thread_count):
        return [_peak_growth(steps(i)) for i in range(count)]


def _peak_growth(step: Any) -> float:
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


# ---- reports -------------------------------------------------------------------------------------


def environment() -> Row:
    """Record what the figures depend on."""
    record = PACKAGE / "_build.json"
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "last_level_cache_bytes": last_level_cache(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "STIB_FAST_CPU": os.environ.get("STIB_FAST_CPU"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "blas": re.findall(r"BLAS_INFO=(\w+)", torch.__config__.show()),
        "stib_fast": stib_fast.__version__,
        "library": json.loads(record.read_text()) if record.exists() else None,
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def git(*arguments: str) -> str | None:
    """Ask git about this tree; None outside of one."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    named = re.search(r"model name\s*: (.+)", text)
    if named is None:
        return platform.processor() or platform.machine()
    # Virtual machines hide the name: the family and model say which generation it is.
    numbers = [re.search(rf"{key}\s*: (\d+)", text) for key in ("cpu family", "model")]
    detail = ", ".join(
        f"{key} {found.group(1)}"
        for key, found in zip(("family", "model"), numbers, strict=True)
        if found
    )
    return f"{named.group(1).strip()} ({detail})"


def default_out() -> Path:
    """benchmarks/results/<device>: results of one kind of machine replace each other only."""
    device = re.sub(r"[^a-z0-9]+", "-", f"{cpu_name()} {os.cpu_count()} cores".lower()).strip("-")
    return ROOT / "benchmarks" / "results" / device


def arguments(description: str) -> argparse.ArgumentParser:
    """Make the parser of the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    available = os.cpu_count() or 1
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        choices=range(1, available + 1),
        default=[count for count in (1, 2) if count <= available],
        help="numbers of threads (default: 1 and 2)",
        metavar="N",
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test: little, few times")
    parser.add_argument(
        "--out", type=Path, default=default_out(), help="folder of the CSV, JSON and PNG files"
    )
    return parser


def markdown(rows: Sequence[Row], columns: Mapping[str, Callable[[Any], str]]) -> str:
    """Lay out a Markdown table; `columns` says how the values of each column are written."""
    lines = [list(columns)]
    lines += ([cell(row[column], text) for column, text in columns.items()] for row in rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def cell(value: Any, text: Callable[[Any], str]) -> str:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "–" if missing else text(value)


def losses(
    rows: Sequence[Row], ours: str, baselines: Collection[str], case: Callable[[Row], str]
) -> list[str]:
    """List the rows of baselines that are faster than ours in the same case."""
    own = {case(row): row["ms"] for row in rows if row["provider"] == ours}
    return [
        f"{case(row)}: {row['provider']} {row['ms']:.3g} ms, {ours} {own[case(row)]:.3g} ms"
        for row in rows
        if row["provider"] in baselines and row["ms"] < own[case(row)]
    ]


def write(folder: Path, name: str, rows: Sequence[Row], record: Row, figure: Figure) -> None:
    """Write the rows as CSV, what they depend on as JSON and the figure as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    FigureCanvasAgg(figure).print_png(str(folder / f"{name}.png"))
    print(f"\nwritten to {folder}/{name}.csv, .json, .png")
