"""Tables, files and figures of the benchmarks, and the record of what their figures depend on."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import stib_fast
from benchmarks.harness import Row, last_level_cache
from stib_fast.backends import PACKAGE, cuda_unusable
from stib_fast.machine import cpu_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
# Columns of `Timing`.
TIMES = dict.fromkeys(("ms", "ms_20", "ms_80"), "{:.4g}".format)


# ---- what the figures depend on ------------------------------------------------------------------


def environment(device: torch.device) -> Row:
    """Record it."""
    build = PACKAGE / "_build.json"
    record = {
        "device": device_name(device),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "last_level_cache_bytes": last_level_cache(device),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "STIB_FAST_CPU": os.environ.get("STIB_FAST_CPU"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "blas": re.findall(r"BLAS_INFO=(\w+)", torch.__config__.show()),
        "library": json.loads(build.read_text()) if build.exists() else None,
        **versions(),
        "uncommitted_changes": bool(answer_of_git("status", "--porcelain", "-uno")),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        record |= {
            "cuda": torch.version.cuda,
            "capability": f"{gpu.major}.{gpu.minor}",
            "multiprocessors": gpu.multi_processor_count,
            "memory_bytes": gpu.total_memory,
            "cuda_library": cuda_unusable or "loaded",
        }
    return record


def versions() -> Row:
    """Those that each row of a CSV file holds."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    return {
        "stib_fast": stib_fast.__version__,
        "torch": torch.__version__,
        "triton": triton,
        "commit": answer_of_git("rev-parse", "HEAD"),
    }


def answer_of_git(*arguments: str) -> str | None:
    """Ask git about this tree; None outside of one."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def results_of(device: torch.device) -> Path:
    """benchmarks/results/<device>: results of one kind of machine replace each other only."""
    name = device_name(device) + (f" {os.cpu_count()} cores" if device.type == "cpu" else "")
    return ROOT / "benchmarks" / "results" / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


# ---- tables --------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row], columns: Mapping[str, Callable[[Any], str]]) -> str:
    """Lay out a Markdown table; `columns` says how values are written. Empty ones are left out."""
    shown = {
        name: text
        for name, text in columns.items()
        if any(row.get(name) is not None for row in rows)
    }
    lines = [list(shown)]
    lines += ([cell(row.get(column), text) for column, text in shown.items()] for row in rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def cell(value: Any, text: Callable[[Any], str]) -> str:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "–" if missing else text(value)


def where(threads: int | None) -> str:
    """Name the threads of a row; a GPU has none that are counted."""
    return "GPU" if threads is None else f"{threads} thread{'s' if threads > 1 else ''}"


def case(row: Row) -> str:
    """Name what is compared in a row: all but the provider."""
    parts = (row["shape"], row.get("pass"), where(row["threads"]))
    return ", ".join(str(part) for part in parts if part is not None)


def losses(rows: Sequence[Row], ours: str, baselines: Collection[str]) -> list[str]:
    """List the rows of baselines that are faster than ours in the same case."""
    own = {case(row): row["ms"] for row in rows if row["provider"] == ours}
    lost = [
        f"- {case(row)}: {row['provider']} {row['ms']:.3g} ms, {ours} {own[case(row)]:.3g} ms"
        for row in rows
        if row["provider"] in baselines and row["ms"] < own.get(case(row), 0)
    ]
    return [f"Faster than {ours}:", *(lost or ["- none"])]


# ---- files ---------------------------------------------------------------------------------------


def write(
    folder: Path,
    name: str,
    rows: Sequence[Row],
    record: Row,
    draw: Callable[[Figure, Sequence[Row]], None],
) -> None:
    """Write the rows as CSV, what they depend on as JSON and the figure as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"\nwritten to {folder}: {name}.csv, {name}.json")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed")
        return
    figure = Figure(dpi=120, layout="constrained")
    draw(figure, rows)
    FigureCanvasAgg(figure).print_png(str(folder / f"{name}.png"))
    print(f"plot: {folder}/{name}.png")


# ---- figures -------------------------------------------------------------------------------------


def draw_against_shape(
    figure: Figure, rows: Sequence[Row], ratio: str, ratio_label: str, share: str, share_label: str
) -> None:
    """Draw a ratio and the share of a limit against the shapes, a line for each provider.

    The passes beside "both", and providers in brackets, are left to the table.
    """
    rows = [row for row in rows if row.get("pass", "both") == "both"]
    places = list(dict.fromkeys(row["threads"] for row in rows))
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure.set_size_inches(max(11.0, 2.5 * len(shapes) + 4), 4 * len(places) + 0.8)
    grid = figure.subplots(len(places), 2, squeeze=False, sharex=True)
    for line, threads in zip(grid, places, strict=True):
        here = [row for row in rows if row["threads"] == threads]
        for axes, column, label in zip(
            line, (ratio, share), (ratio_label, share_label), strict=True
        ):
            _draw_lines(axes, here, shapes, column)
            axes.set_title(f"{label}, {where(threads)}", fontsize=10)
        line[0].axhline(1, color="black", lw=1, ls=":")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=4)


def _draw_lines(axes: Axes, rows: Sequence[Row], shapes: Sequence[str], column: str) -> None:
    providers = [name for name in dict.fromkeys(row["provider"] for row in rows) if name[0] != "("]
    for k, name in enumerate(providers):
        known = [row for row in rows if row["provider"] == name and row.get(column) is not None]
        axes.plot(
            [shapes.index(row["shape"]) for row in known],
            [row[column] for row in known],
            "os^vDP*X"[k % 8] + "-",
            color=f"C{k}",
            label=name,
            lw=2 if name.startswith("ours") else 1,
        )
    axes.set_xticks(range(len(shapes)), shapes, rotation=20, fontsize=8)
    axes.set_yscale("log")
    axes.grid(which="both", alpha=0.3)
