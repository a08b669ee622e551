"""Measure `stib encode` on a large file: rows a second, peak memory, and what the cache gives back.

The file holds the ZINC strings that STIB_FAST_DATA points to, again and again in new orders, or
made molecules. `stib encode` runs in a process of its own, once on a tenth of the rows and once on
all, so that a peak that grows with the file shows. Then one epoch of ids is read from the
memory-mapped cache, in order and as random batches of 1,024 rows; beside it the file is tokenised
anew in order, and its strings, kept in memory, as random batches. Ids that disagree end the
benchmark. The files are warm: they were just written.

    python -m benchmarks.token_cache [--rows 10000000] [--threads 1 2] [--quick]
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import torch
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import harness
from stib_fast import backends
from stib_fast.chem import SmilesTokenizer
from stib_fast.chem.files import read_batches
from stib_fast.data import TokenCache

ROWS = 10_000_000
QUICK_ROWS = 200_000
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


def molecules() -> list[str]:
    """ZINC's strings, or as many made ones of about their length."""
    if "STIB_FAST_DATA" in os.environ:
        path = Path(os.environ["STIB_FAST_DATA"]) / "zinc250k.csv.gz"
        with gzip.open(path, "rt", newline="") as file:
            return [row["smiles"].strip() for row in csv.DictReader(file)]
    parts = ["C", "O", "N", "Cl", "[nH]", "[C@@H]", "c1ccccc1", "(=O)", "(C)", "C=C", "S(=O)", "F"]
    chosen = numpy.random.default_rng(0).integers(len(parts), size=(250_000, 14))
    return ["C" + "".join(parts[i] for i in row) for row in chosen]


def write_smi(path: Path, rows: int) -> None:
    """Write molecules in a new order each time round."""
    strings = numpy.array(molecules(), dtype=object)
    order = numpy.random.default_rng(0)
    with path.open("w") as file:
        for begin in range(0, rows, len(strings)):
            order.shuffle(strings)
            file.write("\n".join(strings[: rows - begin]) + "\n")


def write_head(path: Path, rows: int, head: Path) -> None:
    with path.open("rb") as whole, head.open("wb") as part:
        part.writelines(line for line, _ in zip(whole, range(rows), strict=False))


def encode(source: Path, folder: Path, thread_count: int) -> dict[str, float]:
    """Run `stib encode` in a process of its own; seconds without its start, and peak memory."""
    settings = {"OMP_NUM_THREADS": str(thread_count), "STIB_FAST_BACKEND": "cpp"}
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


def measure(source: Path, head: Path, folder: Path, thread_count: int) -> Iterator[harness.Row]:
    def row(step: str, rows: int, seconds: float, **memory: float) -> harness.Row:
        size = head.stat().st_size if step == HEAD else source.stat().st_size
        return {
            "step": step,
            "threads": thread_count,
            "rows": rows,
            "seconds": seconds,
            "rows_per_second": rows / seconds,
            "megabytes_per_second": size / seconds / 1e6,
            "peak_megabytes": memory.get("peak", float("nan")) / 1e6,
            "imports_megabytes": memory.get("imports", float("nan")) / 1e6,
        }

    small = encode(head, folder / f"head{thread_count}", thread_count)
    yield row(HEAD, len(TokenCache(folder / f"head{thread_count}")), **small)
    whole = encode(source, folder / f"cache{thread_count}", thread_count)
    cache = TokenCache(folder / f"cache{thread_count}")
    yield row("stib encode", len(cache), **whole)
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


HEAD = "stib encode, a tenth"
TABLE: dict[str, Callable[[Any], str]] = {
    "step": str,
    "threads": str,
    "rows": "{:,}".format,
    "seconds": "{:.2f}".format,
    "rows_per_second": "{:,.0f}".format,
    "megabytes_per_second": "{:,.0f}".format,
    "peak_megabytes": "{:.0f}".format,
    "imports_megabytes": "{:.0f}".format,
}


def figure_of(rows: list[harness.Row]) -> Figure:
    """Draw the rates, and the peak memory beside what it may be."""
    figure = Figure(figsize=(12, 4.5), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    names = [f"{row['step']} ({row['threads']})" for row in rows]
    bars = left.barh(names, [row["rows_per_second"] / 1e6 for row in rows])
    left.bar_label(bars, fmt="%.2g", padding=3, fontsize=8)
    left.set_xscale("log")
    left.margins(x=0.1)
    left.set_xlabel("million rows a second (threads in brackets)")
    left.invert_yaxis()
    encoded = [row for row in rows if row["step"].startswith("stib encode")]
    labels = [f"{row['rows'] / 1e6:g} M ({row['threads']})" for row in encoded]
    right.bar(labels, [row["peak_megabytes"] for row in encoded], label="peak")
    right.bar(labels, [row["imports_megabytes"] for row in encoded], label="after the imports")
    right.axhline(LARGEST_PEAK / 1e6, color="black", lw=1, ls="--")
    right.set_ylim(0, 1.35 * LARGEST_PEAK / 1e6)
    right.set_ylabel("resident memory of stib encode, MB")
    right.set_xlabel("rows (threads)")
    right.tick_params(axis="x", labelsize=7)
    right.legend(fontsize=8, loc="upper left", ncols=2)
    return figure


def main() -> None:
    parser = harness.arguments("Measure stib encode on a large file, and reading its cache.")
    parser.add_argument("--rows", type=int, help=f"default: {ROWS}")
    options = parser.parse_args()
    if backends.smiles_unusable is not None:
        raise RuntimeError(f"the C++ tokeniser is not usable: {backends.smiles_unusable}")
    count = options.rows or (QUICK_ROWS if options.quick else ROWS)
    rows: list[harness.Row] = []
    with tempfile.TemporaryDirectory() as name, backends.backend("cpp"):
        source, head = Path(name) / "molecules.smi", Path(name) / "head.smi"
        write_smi(source, count)
        write_head(source, max(1, count // 10), head)
        for thread_count in options.threads:
            with harness.threads(thread_count):
                rows += measure(source, head, Path(name), thread_count)
    print(harness.markdown(rows, TABLE))
    peak = max(row["peak_megabytes"] for row in rows if row["step"] == "stib encode")
    state = "below" if peak * 1e6 < LARGEST_PEAK else "NOT below"
    print(f"\npeak memory at {count:,} rows: {peak:.0f} MB, {state} {LARGEST_PEAK / 1e6:.0f} MB")
    harness.write(options.out, "token_cache", rows, harness.environment(), figure_of(rows))


if __name__ == "__main__":
    main()
