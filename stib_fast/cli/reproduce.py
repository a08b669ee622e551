"""``stib reproduce`` and ``stib results``: the paper's experiments, and the page of all results."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from stib_fast.cli.parsers import Commands, command
from stib_fast.cli.train import settings_of
from stib_fast.reproduction import EXPERIMENTS, in_own_process, reproduce, write_page


def add_to(commands: Commands) -> None:
    """Add the commands."""
    reproducing = command(
        "Reproduce an experiment of the paper: its trainings, tables and figures. Stopped, the "
        "same command continues; trainings that experiments share are done once."
    )
    reproducing.add_argument("experiment", choices=list(EXPERIMENTS))
    reproducing.add_argument("--data", type=str, help="file of QM9's or ZINC's molecules")
    reproducing.add_argument(
        "--out", type=str, default="results", help="folder of all results; default: results"
    )
    reproducing.add_argument("--steps", type=int, help="a trial: so many steps a training")
    commands.add_subcommand("reproduce", reproducing)

    results = command("Write a page of all experiments that were reproduced, with their figures.")
    results.add_argument("folder", type=str, help="what `stib reproduce --out` named")
    results.add_argument("-o", "--output", type=str, required=True, help="Markdown file")
    commands.add_subcommand("results", results)


def _reproduce(options: jsonargparse.Namespace) -> None:
    written = reproduce(
        EXPERIMENTS[options.experiment],
        Path(options.out),
        None if options.data is None else Path(options.data),
        steps=options.steps,
        run=in_own_process,
        settings=settings_of,
    )
    print(written[0].read_text())
    print("written: " + ", ".join(str(path) for path in written))


def _results(options: jsonargparse.Namespace) -> None:
    written = write_page(Path(options.folder), Path(options.output), settings=settings_of)
    print("written: " + ", ".join(str(path) for path in written))


HANDLERS = {"reproduce": _reproduce, "results": _results}
