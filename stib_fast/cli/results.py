"""``stib evaluate``, ``stib table`` and ``stib embed``: what a run has to tell."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import jsonargparse
import numpy

from stib_fast.cli.parsers import Commands, command
from stib_fast.data import read_table
from stib_fast.reports import table_of
from stib_fast.training import MoleculeExperiment, Run, load, read_arrays


def add_to(commands: Commands) -> None:
    """Add the commands."""
    evaluate = command("Measure a model; prints JSON.")
    evaluate.add_argument("run", type=str)
    evaluate.add_argument("--data", type=str, help="npz with x, y; or table of molecules")
    commands.add_subcommand("evaluate", evaluate)

    table = command("Set finished runs beside the paper's table.")
    table.add_argument("runs", nargs="+", type=str)
    commands.add_subcommand("table", table)

    embed = command("Write z0, z1 and the prediction, if any, of each row as CSV.")
    embed.add_argument("run", type=str)
    embed.add_argument("file", type=str, help="npz with x, or table with SMILES")
    embed.add_argument("--smiles", type=str, help="column of the SMILES")
    embed.add_argument("-o", "--output", type=str, help="default: FILE with .embedding.csv")
    commands.add_subcommand("embed", embed)


def _evaluate(options: jsonargparse.Namespace) -> None:
    trained = load(options.run, with_data=options.data is None)
    path = Path(options.data) if options.data else None
    print(json.dumps(trained.experiment.evaluate(trained.model, path), indent=2))


def _table(options: jsonargparse.Namespace) -> None:
    print(table_of([Run(folder) for folder in options.runs]), end="")


def _embed(options: jsonargparse.Namespace) -> None:
    trained = load(options.run)
    file = Path(options.file)
    if isinstance(trained.experiment, MoleculeExperiment):
        column = options.smiles or trained.experiment.config.molecules.smiles
        rows: Any = read_table(file, column, targets=()).smiles
        predictions = trained.experiment.predictions
    else:
        (rows,) = read_arrays(file, ("x",))
        predictions = ("y0", "y1")
    z0, z1 = trained.encode(rows)
    output = Path(options.output) if options.output else file.with_suffix(".embedding.csv")
    header = [
        *(f"z0_{i}" for i in range(z0.shape[1])),
        *(f"z1_{i}" for i in range(z1.shape[1])),
    ]
    columns = [z0, z1]
    if trained.predicts:
        header += predictions
        columns.append(trained.predict(rows))
    values = numpy.concatenate(columns, axis=1)
    with output.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(header)
        writer.writerows([f"{value:.7g}" for value in row] for row in values)
    print(f"{len(values)} rows written to {output}")


HANDLERS = {"evaluate": _evaluate, "table": _table, "embed": _embed}
