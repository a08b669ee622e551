"""Moments of a stream of rows in one pass: `stream_moments` and `table_moments`.

Shapes are numbers of float32 rows of 16 + 2 columns, made a million at a time: normal numbers
rounded to 1/64, the first column with an offset of 1e4. Their sums are integers, so that their
scatter matrix is known exactly, and a provider's error is that of its arithmetic. Each provider
makes one pass over the same rows in batches of 65,536, which come from memory beyond the caches;
the time of making rows is measured apart. The baselines are

- sums of x and x xᵀ in float32, and in float64, from which the mean is subtracted at the end;
- centred batches merged by Chan's formula in float64, in plain PyTorch;
- scikit-learn's `StandardScaler.partial_fit`, which streams means and variances alone, and its
  `IncrementalPCA.partial_fit` with all components, whose covariance is the whole matrix (a singular
  value decomposition a batch; up to ten million rows).

scikit-learn computes in float32 where it is given float32. That the sums are integers flatters all
who add up values as they are.

The share of the read is against the bandwidth of a sum, and the limit is that or 171 multiply-adds
a row at the rate of a float64 matrix product, all measured in the same run. Rows in files, up to
ten million in Parquet and a million in CSV, are read by one worker; beside it the reading alone.
The files are warm: they were just written.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow
import torch
from pyarrow import csv, parquet
from sklearn.decomposition import IncrementalPCA
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks import harness, report
from benchmarks.harness import Row
from stib_fast import Moments
from stib_fast import functional as F
from stib_fast.data import stream_moments, table_moments
from stib_fast.data.columns import column_batches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZES = (16, 2)
D = sum(SIZES)
ROW_BYTES = 4 * D
GRID, OFFSET = 64, 1e4
BUFFER, BATCH = 2**20, 2**16
MOST_ROWS = {"IncrementalPCA": 10**7, "parquet": 10**7, "csv": 10**6}
MOST_ROWS_OF_PEAKS = 10**7  # of the baselines: a peak is that of the third pass
TOLERANCE = 1e-11
NAMES = [f"x{i}" for i in range(SIZES[0])], [f"y{i}" for i in range(SIZES[1])]

Batches = Iterator[tuple[Tensor, Tensor]]
Provider = Callable[[Batches], Moments]


# ---- rows ----------------------------------------------------------------------------------------


class Stream:
    """Rows in batches, the same in every pass, and the seconds that making them took."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.seconds = 0.0
        self._x, self._y = (torch.empty(min(rows, BUFFER), size) for size in SIZES)

    def buffers(self) -> Batches:
        """Make rows, `BUFFER` at a time, in the same memory."""
        generator = torch.Generator().manual_seed(0)
        self.seconds = 0.0
        for begin in range(0, self.rows, BUFFER):
            start = time.perf_counter()
            n = min(BUFFER, self.rows - begin)
            x, y = self._x[:n], self._y[:n]
            for side in (x, y):
                side.normal_(generator=generator).mul_(GRID).round_().div_(GRID)
            y += x[:, : SIZES[1]]
            x[:, 0] += OFFSET
            self.seconds += time.perf_counter() - start
            yield x, y

    def __iter__(self) -> Batches:
        for x, y in self.buffers():
            yield from zip(x.split(BATCH), y.split(BATCH), strict=True)


def exact_moments(rows: Stream) -> Moments:
    """Sums of integers: products stay below 2^53 in a buffer, and Python adds the buffers up."""
    products, sums = np.zeros((D, D), object), np.zeros(D, object)
    for sides in rows.buffers():
        grid = torch.cat(sides, dim=1).double()
        grid[:, 0] -= OFFSET
        grid *= GRID
        products += (grid.mT @ grid).long().numpy()
        sums += grid.sum(0).long().numpy()
    scatter = [
        [
            float(Fraction(rows.rows * p - a * b, rows.rows * GRID**2))
            for p, b in zip(line, sums, strict=True)
        ]
        for line, a in zip(products, sums, strict=True)
    ]
    mean = [float(Fraction(total, rows.rows * GRID)) for total in sums]
    mean[0] += OFFSET
    return moments_of(rows.rows, *(torch.tensor(v, dtype=torch.float64) for v in (mean, scatter)))


def moments_of(count: float, mean: Tensor, scatter: Tensor) -> Moments:
    wide = [torch.as_tensor(value, dtype=torch.float64) for value in (count, mean, scatter)]
    return Moments(*wide, sizes=SIZES, dtype=torch.float32)


# ---- providers -----------------------------------------------------------------------------------


def raw_sums(dtype: torch.dtype, batches: Batches) -> Moments:
    count, total, products = 0, torch.zeros(D, dtype=dtype), torch.zeros(D, D, dtype=dtype)
    for batch in batches:
        rows = torch.cat(batch, dim=1).to(dtype)
        count += len(rows)
        total += rows.sum(0)
        products += rows.mT @ rows
    mean = total / count
    return moments_of(count, mean, products - count * torch.outer(mean, mean))


def chan(batches: Batches) -> Moments:
    count, mean, scatter = 0, torch.zeros(D).double(), torch.zeros(D, D).double()
    for batch in batches:
        rows = torch.cat(batch, dim=1).double()
        n, new = len(rows), rows.mean(0)
        centred = rows - new
        step = new - mean
        scatter += centred.mT @ centred + torch.outer(step, step) * (count * n / (count + n))
        count += n
        mean += step * (n / count)
    return moments_of(count, mean, scatter)


def standard_scaler(batches: Batches) -> Moments:
    scaler = StandardScaler()
    with threadpool_limits(torch.get_num_threads()):
        for batch in batches:
            scaler.partial_fit(torch.cat(batch, dim=1).numpy())
    scatter = torch.full((D, D), math.nan).double()
    count = int(scaler.n_samples_seen_)
    scatter.diagonal().copy_(torch.from_numpy(np.asarray(scaler.var_)) * count)
    return moments_of(count, torch.from_numpy(np.asarray(scaler.mean_)), scatter)


def incremental_pca(batches: Batches) -> Moments:
    pca = IncrementalPCA(D)
    with threadpool_limits(torch.get_num_threads()):
        for batch in batches:
            pca.partial_fit(torch.cat(batch, dim=1).numpy(), check_input=False)
    count = int(pca.n_samples_seen_)
    covariance = torch.from_numpy(np.asarray(pca.get_covariance()))
    return moments_of(count, torch.from_numpy(np.asarray(pca.mean_)), covariance * (count - 1))


STREAMS: dict[str, Provider] = {
    "ours": stream_moments,
    "sums, float32": partial(raw_sums, torch.float32),
    "sums, float64": partial(raw_sums, torch.float64),
    "Chan's merge, float64": chan,
    "StandardScaler": standard_scaler,
    "IncrementalPCA": incremental_pca,
}
FILES = ("ours, parquet", "parquet, reading alone", "ours, csv", "csv, reading alone")
OURS = ("ours", "ours, parquet", "ours, csv")
# StandardScaler does less: only variances.
BASELINES = [name for name in STREAMS if name not in ("ours", "StandardScaler")]


# ---- measurement ---------------------------------------------------------------------------------


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second of a sum beyond the caches."""
    source = torch.ones(harness.COPY_BYTES[device.type] // 4, device=device)
    return source.nbytes / harness.best_of(source.sum, device)


def memory_step(rows: int, name: str) -> Callable[[], object]:
    """Make a pass whose memory is measured, in the process that measures it."""
    stream = Stream(rows)
    return lambda: STREAMS[name](iter(stream))


def file_step(path: Path, name: str) -> Callable[[], object]:
    """Likewise of a file."""
    return partial(read, name, path)


def errors(found: Moments, exact: Moments) -> Row:
    """Relative error of the worst variance, and that of the mutual information."""
    variances, reference = found.scatter.diagonal(), exact.scatter.diagonal()
    nats = F.gaussian_mi_of(found) - F.gaussian_mi_of(exact)
    return {
        "variance_error": ((variances - reference).abs() / reference).max().item(),
        "error_nats": nats.abs().item(),
    }


def measure(rows: int, names: Sequence[str], setting: harness.Setting) -> Iterator[Row]:
    """Let the providers take turns at one pass each, and derive the columns."""
    stream, bandwidth = Stream(rows), read_bandwidth(setting.device)
    exact = exact_moments(stream)
    names = [n for n in names if all(rows <= m for word, m in MOST_ROWS.items() if word in n)]
    streams = [name for name in names if name in STREAMS]
    passes: dict[str, list[float]] = {name: [] for name in streams}
    making: dict[str, list[float]] = {name: [] for name in streams}
    found = {name: STREAMS[name](iter(Stream(BATCH))) for name in streams}  # a warm-up
    for _ in range(min(5, max(1, 2 * 10**7 // rows))):
        for name in streams:
            start = time.perf_counter()
            found[name] = STREAMS[name](iter(stream))
            passes[name].append(time.perf_counter() - start - stream.seconds)
            making[name].append(stream.seconds)
    few = [n for n in streams if n == "ours" or rows <= MOST_ROWS_OF_PEAKS]
    calls = {name: partial(STREAMS[name], iter(stream)) for name in few}
    peaks = harness.peak_memory(calls, partial(memory_step, rows), setting)

    def row(name: str, seconds: float, moments: Moments | None) -> Row:
        told = {} if moments is None else errors(moments, exact)
        if name in OURS:
            harness.require_agreement(name, told["variance_error"], TOLERANCE)
        return {
            "provider": name,
            "ms": seconds * 1e3,
            "rows_per_second": rows / seconds,
            "gigabytes_per_second": rows * ROW_BYTES / seconds / 1e9,
            **told,
        }

    for name in streams:
        seconds, made = statistics.median(passes[name]), statistics.median(making[name])
        reading = rows * ROW_BYTES / bandwidth
        arithmetic = rows * D * (D + 1) / 2 / setting.machine.multiply_adds[torch.float64]
        yield row(name, seconds, found[name]) | {
            "share_of_read": reading / seconds,
            "share_of_limit": max(reading, arithmetic) / seconds,
            "rows_per_second_made_and_read": rows / (seconds + made),
            "peak_extra_mb": peaks.get(name),
        }
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("parquet", "csv"):
            if asked := [name for name in names if name in FILES and kind in name]:
                path = write(stream, Path(folder) / f"rows.{kind}")
                next(column_batches(path, NAMES[0]))  # imports what reads them
                calls = {name: file_step(path, name) for name in asked}
                peaks = harness.peak_memory(calls, partial(file_step, path), setting)
                for name in asked:
                    seconds, moments = read(name, path)
                    yield row(name, seconds, moments) | {
                        "file_megabytes_per_second": path.stat().st_size / seconds / 1e6,
                        "peak_extra_mb": peaks.get(name),
                    }


def write(stream: Stream, path: Path) -> Path:
    """Write the rows to a table; to text in float64, whose digits tell them exactly."""
    names = [name for side in NAMES for name in side]
    in_text = path.suffix == ".csv"
    kind = pyarrow.float64() if in_text else pyarrow.float32()
    schema = pyarrow.schema([(name, kind) for name in names])
    with (csv.CSVWriter if in_text else parquet.ParquetWriter)(path, schema) as writer:
        for sides in stream.buffers():
            rows = torch.cat(sides, dim=1).mT.contiguous()
            columns = list((rows.double() if in_text else rows).numpy())
            writer.write_table(pyarrow.table(columns, schema=schema))
    return path


def read(name: str, path: Path) -> tuple[float, Moments | None]:
    """Seconds to read a table, and its moments, if they are asked for."""
    start = time.perf_counter()
    if name in OURS:
        moments = table_moments(path, *NAMES).moments
        return time.perf_counter() - start, moments
    for _ in column_batches(path, [name for side in NAMES for name in side]):
        pass
    return time.perf_counter() - start, None


# ---- report --------------------------------------------------------------------------------------


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    """Draw the rates of the longest streams, the errors, and the memory against the rows."""
    figure.set_size_inches(16, 4.8)
    left, middle, right = figure.subplots(1, 3, width_ratios=[2, 1.3, 1.3])
    longest = {(row["provider"], row["threads"]): row for row in rows}
    names = [
        f"{provider}, {int(row['shape']) / 1e6:g} M ({threads})"
        for (provider, threads), row in longest.items()
    ]
    bars = left.barh(names, [row["rows_per_second"] / 1e6 for row in longest.values()])
    left.bar_label(bars, fmt="%.2g", padding=3, fontsize=8)
    left.set_xscale("log")
    left.margins(x=0.12)
    left.tick_params(axis="y", labelsize=7)
    left.set_xlabel("million rows a second (threads in brackets)")
    left.invert_yaxis()
    first = [row for row in rows if row["threads"] == rows[0]["threads"]]
    for axes, column, label in (
        (middle, "variance_error", "relative error of the worst variance"),
        (right, "peak_extra_mb", "peak extra memory, MB"),
    ):
        for k, name in enumerate(STREAMS):
            known = [r for r in first if r["provider"] == name and r.get(column)]
            sizes, values = [int(r["shape"]) for r in known], [r[column] for r in known]
            axes.plot(sizes, values, "os^vDP"[k] + "-", color=f"C{k}", label=name)
        if axes.has_data():
            axes.set_xscale("log")
        axes.set_xlabel("rows")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    middle.set_yscale("log")
    middle.legend(fontsize=7, loc="center left")


def conclude(rows: Sequence[Row]) -> list[str]:
    peaks = [
        f"{row['peak_extra_mb']:.1f} MB for {int(row['shape']):,} rows"
        for row in rows
        if row["provider"] == "ours" and row.get("peak_extra_mb") is not None
    ]
    told = [f"Peak extra memory of ours: {', '.join(peaks)}"] if peaks else []
    return [*report.losses(rows, "ours", BASELINES), *told]


BENCHMARK = harness.Benchmark(
    on={
        "cpu": harness.On(
            backend="cpp",
            tests=("tests/ops/test_moments.py", "tests/data/test_streaming.py"),
            providers=(*STREAMS, *FILES),
            shapes={"small": ("1000000",), "large": ("10000000",), "huge": ("100000000",)},
            quick=("100000",),
            kernels=("moments",),
        )
    },
    parse=harness.parse_rows,
    measure=measure,
    table={
        "provider": str,
        "ms": "{:.4g}".format,
        "rows_per_second": "{:,.0f}".format,
        "gigabytes_per_second": "{:.2f}".format,
        "share_of_read": "{:.0%}".format,
        "share_of_limit": "{:.0%}".format,
        "rows_per_second_made_and_read": "{:,.0f}".format,
        "file_megabytes_per_second": "{:.0f}".format,
        "variance_error": "{:.0e}".format,
        "error_nats": "{:.0e}".format,
        "peak_extra_mb": "{:.1f}".format,
    },
    draw=draw,
    conclude=conclude,
)
