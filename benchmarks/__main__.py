"""Time an op of this library against what a user would write: `python -m benchmarks OP`."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from benchmarks import harness, report
from benchmarks.harness import Benchmark, On, Row

OPS = (
    "gaussian_mi",
    "training_step",
    "micro_batches",
    "batch_size",
    "processes",
    "smiles",
    "one_hot",
    "one_hot_conv1d",
    "token_cache",
    "moments",
    "knn_mi",
    "estimators",
)


class Parser(argparse.ArgumentParser):
    """Bad arguments are answered in a line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"benchmarks: {message}\n")


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def thread_counts(text: str) -> list[int]:
    most = os.cpu_count() or 1
    counts = words(text)
    if not all(count.isdecimal() and 1 <= int(count) <= most for count in counts):
        raise argparse.ArgumentTypeError(f"numbers from 1 to {most} are wanted; got {text!r}")
    return [int(count) for count in counts]


def parser() -> Parser:
    found = Parser(prog="python -m benchmarks", description=__doc__)
    found.add_argument("op", nargs="?", metavar="OP", help="without one they are listed")
    found.add_argument(
        "--providers",
        type=words,
        metavar="A,B",
        help="those whose names contain one of these words, as in ours,careful,compile",
    )
    found.add_argument(
        "--shapes", type=words, metavar="A,B", help="named sets, as zinc, or shapes, as 4096x8+8"
    )
    found.add_argument(
        "--threads",
        type=thread_counts,
        default=[count for count in (1, 2) if count <= (os.cpu_count() or 1)],
        metavar="N,M",
        help="of a CPU (default: 1 and 2)",
    )
    found.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    found.add_argument(
        "--quick",
        action="store_true",
        help="a smoke test: little, few times, nothing written without --out",
    )
    found.add_argument(
        "--tested", action="store_true", help="the op's tests have just passed: do not repeat them"
    )
    found.add_argument(
        "--strings",
        type=Path,
        metavar="PATH",
        help="molecules: a text file of one SMILES a line, or CSV with a column smiles",
    )
    found.add_argument(
        "--out", type=Path, metavar="DIR", help="default: benchmarks/results/<device>"
    )
    return found


def listing() -> str:
    """The ops, with the first lines of their files."""
    lines = ["python -m benchmarks OP [options], where OP is one of"]
    for op in OPS:
        text = ast.get_docstring(ast.parse(Path(__file__).with_name(f"{op}.py").read_text()))
        lines.append(f"  {op:16}{(text or '').splitlines()[0]}")
    return "\n".join(lines)


def chosen_providers(on: On, asked: Sequence[str]) -> list[str]:
    """Names that contain a word that was asked for.

    Raises
    ------
    ValueError
        Naming a word that none contains.
    """
    for word in asked:
        if not any(word in name for name in on.providers):
            raise ValueError(f"no provider {word!r}; there are {'; '.join(on.providers)}")
    return [name for name in on.providers if any(word in name for word in asked)]


def chosen_shapes(benchmark: Benchmark, on: On, asked: Sequence[str]) -> list[Any]:
    """Shapes of the named sets and those written out, each once.

    Raises
    ------
    ValueError
        Naming what is neither.
    """
    texts = [text for word in asked for text in on.shapes.get(word, (word,))]
    try:
        return [benchmark.parse(text) for text in dict.fromkeys(texts)]
    except ValueError as error:
        raise ValueError(f"{error}; sets of shapes: {', '.join(on.shapes)}") from None


def tests_pass(files: Sequence[str], device: str) -> bool:
    """Run the op's tests, on a GPU without Triton's interpreter; their output tells of failures."""
    print(f"testing first: {' '.join(files)}", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=short", "-p", "no:cacheprovider"]
    settings = {"STIB_FAST_BACKEND": "auto"}
    if device == "cuda":
        settings["TRITON_INTERPRET"] = "0"
    done = subprocess.run(
        [*command, *files],
        cwd=report.ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print("\n".join(done.stdout.splitlines()[-1 if done.returncode == 0 else -40 :]), flush=True)
    return done.returncode == 0


def measure(
    benchmark: Benchmark,
    shapes: Sequence[Any],
    providers: Sequence[str],
    options: argparse.Namespace,
) -> tuple[list[Row], dict[str, Row]]:
    """Rows of every shape, and what the device can do, for each number of threads."""
    device, on = torch.device(options.device), benchmark.on[options.device]
    origin, versions = {"device": report.device_name(device)}, report.versions()
    rows: list[Row] = []
    machines = {}
    counts = options.threads if device.type == "cpu" else [None]
    with harness.exactly_backend(on.backend, device, on.kernels):
        for threads in counts:
            with harness.threads(threads or torch.get_num_threads()):
                machine = harness.measure_machine(device)
                machines[report.where(threads)] = machine.record()
                print(f"\n{report.where(threads)}: {machine.text()}", flush=True)
                for shape in shapes:
                    setting = harness.Setting(
                        device, on.backend, machine, options.quick, options.strings
                    )
                    torch.cuda.empty_cache()
                    place = origin | {"shape": str(shape), "threads": threads}
                    print(f"\n{shape}, {report.where(threads)}\n", flush=True)
                    try:
                        new = [place | row for row in benchmark.measure(shape, providers, setting)]
                    except torch.cuda.OutOfMemoryError:
                        print("SKIPPED: it does not fit into memory")
                        continue
                    rows += [row | versions for row in new]
                    if new:
                        print(report.markdown(new, benchmark.table), flush=True)
    return rows, machines


def plan(command: Parser, options: argparse.Namespace) -> tuple[Benchmark, list[str], list[Any]]:
    """The benchmark asked for, its providers and its shapes; bad arguments end here."""
    if options.op not in OPS:
        command.error(f"no benchmark {options.op!r}; there are {', '.join(OPS)}")
    try:
        benchmark: Benchmark = importlib.import_module(f"benchmarks.{options.op}").BENCHMARK
    except ModuleNotFoundError as error:
        command.error(f"{options.op} needs {error.name}, which is not installed")
    if options.device not in benchmark.on:
        command.error(f"{options.op} has no benchmark on {options.device}")
    if options.device == "cuda" and not torch.cuda.is_available():
        command.error("--device cuda: no GPU is usable here")
    if options.strings is not None and not options.strings.is_file():
        command.error(f"--strings: no file {options.strings}")
    on = benchmark.on[options.device]
    try:
        providers = chosen_providers(on, options.providers or [""])
        shapes = chosen_shapes(
            benchmark, on, options.shapes or (on.quick if options.quick else list(on.shapes))
        )
    except ValueError as error:
        command.error(str(error))
    return benchmark, providers, shapes


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 1 where tests or checks fail, 2 for bad arguments."""
    command = parser()
    options = command.parse_args(arguments)
    if options.op is None:
        print(listing())
        return 0
    benchmark, providers, shapes = plan(command, options)
    device = torch.device(options.device)
    if options.tested:
        print("not testing first, as --tested says")
    elif not tests_pass(benchmark.on[device.type].tests, device.type):
        print(f"benchmarks: {options.op} is not reported: its tests fail", file=sys.stderr)
        return 1
    # Products on a GPU are of float32, as ours are, but where a provider asks for others.
    torch.backends.cudnn.allow_tf32 = False
    try:
        rows, machines = measure(benchmark, shapes, providers, options)
    except (harness.Disagreement, harness.Fallback) as error:
        print(f"benchmarks: {options.op} is not reported: {error}", file=sys.stderr)
        return 1
    if not rows:
        print("nothing was measured")
        return 0
    print("", *benchmark.conclude(rows), sep="\n")
    out = options.out or (None if options.quick else report.results_of(device))
    if out is not None:
        record = report.environment(device) | {"machine": machines, "tested": not options.tested}
        report.write(out, options.op, rows, record, benchmark.draw)
    return 0


if __name__ == "__main__":
    sys.exit(main())
