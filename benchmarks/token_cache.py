"""Measure `stib encode` on a large file: rows a second, peak memory, and what the cache gives back.

Shapes are numbers of rows. The file holds the strings of --strings, or ZINC's that STIB_FAST_DATA
points to, or made-up ones, again and again in new orders. `stib encode` runs in a process of its
own, once on a tenth of the rows and once on all, so that a peak that grows with the file shows.
Then one epoch of ids is read from the memory-mapped cache, in order and as random batches of 1,024
rows; beside it the file is tokenised anew in order, and its strings, kept in memory, as random
batches. Ids that disagree end the benchmark. The files are warm: they were just written.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import pyarrow
import torch
from torch import Tensor

from benchmarks import harness, molecules
from benchmarks.harness import Row
from stib_fast.chem import SmilesTokenizer
from stib_fast.chem.files import read_batches
from stib_fast.data import TokenCache

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 1024
LARGEST_PEAK = 1e9

# The peak since the process began, of which the imports are a part.
ENCODE = """
import json, re, sys, time
from pathlib import Path
from stib_fast.cli import main

def peak():
    return int(re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024

imports = peak()
start = time.perf_counter()
code = main(["encode", *sys.argv[1:]])
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak": peak(), "imports": imports}))
sys.exit(code)
"""


def write_smi(path: Path, strings: list[str], rows: int) -> None:
    """Write molecules in a new order each time round."""
    shuffled = numpy.array(strings, dtype=object)
    order = numpy.random.default_rng(0)
    with path.open("w") as file:
        for begin in range(0, rows, len(shuffled)):
            order.shuffle(shuffled)
            file.write("\n".join(shuffled[: rows - begin]) + "\n")


def write_head(path: Path, rows: int, head: Path) -> None:
    with path.open("rb") as whole, head.open("wb") as part:
        part.writelines(line for line, _ in zip(whole, range(rows), strict=False))


def encode(source: Path, folder: Path) -> dict[str, float]:
    """Run `stib encode` in a process of its own; seconds without its start, and peak memory."""
    settings = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "STIB_FAST_BACKEND": "cpp"}
    answer = subprocess.run(
        [sys.executable, "-c", ENCODE, str(source), "-o", str(folder)],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    print(answer.stdout)
    return json.loads(answer.stdout.splitlines()[-1])


def ids_in_order(cache: TokenCache) -> Iterator[Tensor]:
    for shard in cache.shards:
        for ids in shard.ids.split(BATCH):
            yield ids.clone()


def ids_at_random(cache: TokenCache, order: Tensor) -> Iterator[Tensor]:
    for rows in order.split(BATCH):
        yield cache[rows].ids


def ids_anew_in_order(source: Path, tokenizer: SmilesTokenizer) -> Iterator[Tensor]:
    for batch in read_batches(source, ["smiles"]):
        yield tokenizer.encode_each(batch.column(0)).ids


def ids_anew_at_random(
    strings: pyarrow.StringArray, tokenizer: SmilesTokenizer, order: Tensor
) -> Iterator[Tensor]:
    for rows in order.split(BATCH):
        yield tokenizer.encode_each(strings.take(pyarrow.array(rows.numpy()))).ids


def epoch(batches: Iterator[Tensor]) -> tuple[float, int]:
    """Seconds to go through an epoch, and the sum of its ids; summing does not count."""
    seconds, total = 0.0, 0
    while True:
        start = time.perf_counter()
        ids = next(batches, None)
        seconds += time.perf_counter() - start
        if ids is None:
            return seconds, total
        total += int(ids.sum(dtype=torch.int64))


def measure(rows: int, names: Sequence[str], setting: harness.Setting) -> Iterator[Row]:
    """Write a file of so many rows, encode it and read it back."""
    with tempfile.TemporaryDirectory() as name:
        source, head = Path(name) / "molecules.smi", Path(name) / "head.smi"
        write_smi(source, molecules.load(setting.strings).strings, rows)
        write_head(source, max(1, rows // 10), head)
        yield from steps_of(source, head, Path(name))


def steps_of(source: Path, head: Path, folder: Path) -> Iterator[Row]:
    def row(step: str, rows: int, seconds: float, **memory: float) -> Row:
        size = head.stat().st_size if step == HEAD else source.stat().st_size
        return {
            "provider": step,
            "rows": rows,
            "seconds": seconds,
            "rows_per_second": rows / seconds,
            "megabytes_per_second": size / seconds / 1e6,
            "peak_megabytes": memory.get("peak", float("nan")) / 1e6,
            "imports_megabytes": memory.get("imports", float("nan")) / 1e6,
        }

    small = encode(head, folder / "head")
    yield row(HEAD, len(TokenCache(folder / "head")), **small)
    whole = encode(source, folder / "cache")
    cache = TokenCache(folder / "cache")
    yield row(WHOLE, len(cache), **whole)
    tokenizer = SmilesTokenizer(cache.vocabulary, cache.max_length)
    strings = pyarrow.concat_arrays([b.column(0) for b in read_batches(source, ["smiles"])])
    order = torch.randperm(len(cache))
    epochs = {
        "cache, in order": ids_in_order(cache),
        "cache, random batches": ids_at_random(cache, order),
        "file tokenised anew, in order": ids_anew_in_order(source, tokenizer),
        "strings in memory tokenised anew, random batches": ids_anew_at_random(
            strings, tokenizer, order
        ),
    }
    sums = set()
    for name, batches in epochs.items():
        seconds, total = epoch(batches)
        sums.add(total)
        yield row(name, len(cache), seconds)
    if len(sums) != 1:
        raise harness.Disagreement(f"the ids of the epochs add up to {sums}")


HEAD, WHOLE = "stib encode, a tenth", "stib encode"


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    """Draw the rates, and the peak memory beside what it may be."""
    figure.set_size_inches(12, 4.5)
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    names = [f"{row['provider']} ({row['threads']})" for row in rows]
    bars = left.barh(names, [row["rows_per_second"] / 1e6 for row in rows])
    left.bar_label(bars, fmt="%.2g", padding=3, fontsize=8)
    left.set_xscale("log")
    left.margins(x=0.1)
    left.set_xlabel("million rows a second (threads in brackets)")
    left.invert_yaxis()
    encoded = [row for row in rows if row["provider"].startswith("stib encode")]
    labels = [f"{row['rows'] / 1e6:g} M ({row['threads']})" for row in encoded]
    right.bar(labels, [row["peak_megabytes"] for row in encoded], label="peak")
    right.bar(labels, [row["imports_megabytes"] for row in encoded], label="after the imports")
    right.axhline(LARGEST_PEAK / 1e6, color="black", lw=1, ls="--")
    right.set_ylim(0, 1.35 * LARGEST_PEAK / 1e6)
    right.set_ylabel("resident memory of stib encode, MB")
    right.set_xlabel("rows (threads)")
    right.tick_params(axis="x", labelsize=7)
    right.legend(fontsize=8, loc="upper left", ncols=2)


def conclude(rows: Sequence[Row]) -> list[str]:
    peak = max(row["peak_megabytes"] for row in rows if row["provider"] == WHOLE)
    state = "below" if peak * 1e6 < LARGEST_PEAK else "NOT below"
    return [f"peak memory of stib encode: {peak:.0f} MB, {state} {LARGEST_PEAK / 1e6:.0f} MB"]


BENCHMARK = harness.Benchmark(
    on={
        "cpu": harness.On(
            backend="cpp",
            tests=("tests/data/test_token_cache.py", "tests/test_cli_encode.py"),
            providers=(WHOLE,),
            shapes={"large": ("10000000",)},
            quick=("200000",),
        )
    },
    parse=harness.parse_rows,
    measure=measure,
    table={
        "provider": str,
        "rows": "{:,}".format,
        "seconds": "{:.2f}".format,
        "rows_per_second": "{:,.0f}".format,
        "megabytes_per_second": "{:,.0f}".format,
        "peak_megabytes": "{:.0f}".format,
        "imports_megabytes": "{:.0f}".format,
    },
    draw=draw,
    conclude=conclude,
)
