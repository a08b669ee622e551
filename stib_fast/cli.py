"""The command ``stib``."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import numpy

from stib_fast import doctor
from stib_fast.data import read_csv
from stib_fast.reports import table_of, write_report
from stib_fast.training import (
    QM9,
    Artificial,
    ArtificialConfig,
    Interrupted,
    QM9Config,
    Run,
    Trained,
    experiment_of,
    load,
    read_arrays,
    train,
)

PAPER_CONFIG = Path(__file__).parent / "configs" / "artificial_paper.yaml"
USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(_parsed(arguments))
    except Interrupted as stop:
        print(f"stib: {stop}", file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print("stib: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`stib table … | head`): nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (jsonargparse.ArgumentError, ValueError, OSError, RuntimeError) as error:
        print(f"stib: {_one_line(error)}", file=sys.stderr)
        return USER_ERROR


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _parsed(arguments: list[str]) -> jsonargparse.Namespace:
    parser = _parser()
    if arguments[:2] == ["train", "artificial"] and "--paper" in arguments:
        # First, so that options typed before it count, too.
        rest = [argument for argument in arguments[2:] if argument != "--paper"]
        arguments = [*arguments[:2], "--config", str(PAPER_CONFIG), *rest]
    return parser.instantiate(parser.parse_args(arguments))


def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        prog="stib",
        description="Train and examine STIB, and see what works on this machine.",
        exit_on_error=False,
    )
    commands = parser.add_subcommands(required=True)

    training = _command("Train a model in a run folder.")
    commands.add_subcommand("train", training)
    experiments = training.add_subcommands(required=True, dest="experiment")
    artificial = _training_command(
        "The paper's artificial experiment.",
        ArtificialConfig,
    )
    artificial.add_argument("--paper", action="store_true", help="start from the authors' settings")
    experiments.add_subcommand(Artificial.name, artificial)
    qm9 = _training_command("C7H10O2 isomers of QM9: SMILES, gap, polarisability.", QM9Config)
    qm9.add_argument(
        "--data", type=str, required=True, help="CSV file, or the official .xyz.tar.bz2"
    )
    experiments.add_subcommand(QM9.name, qm9)

    resume = _command("Continue a run that was stopped.")
    resume.add_argument("run", type=str)
    commands.add_subcommand("resume", resume)

    evaluate = _command("Measure a model; prints JSON.")
    evaluate.add_argument("run", type=str)
    evaluate.add_argument("--data", type=str, help="npz with x, y (artificial), or molecules")
    commands.add_subcommand("evaluate", evaluate)

    table = _command("Set finished runs beside the paper's table.")
    table.add_argument("runs", nargs="+", type=str)
    commands.add_subcommand("table", table)

    embed = _command("Write z0, z1 and the prediction of each row as CSV.")
    embed.add_argument("run", type=str)
    embed.add_argument("file", type=str, help="npz with x, or CSV with SMILES")
    embed.add_argument("--smiles", type=str, help="column of the SMILES")
    embed.add_argument("-o", "--output", type=str, help="default: FILE with .embedding.csv")
    commands.add_subcommand("embed", embed)

    examine = _command("Tell which backends work here, and why the others do not.")
    examine.add_argument("--json", action="store_true", help="for programs")
    commands.add_subcommand("doctor", examine)
    return parser


def _command(description: str) -> jsonargparse.ArgumentParser:
    return jsonargparse.ArgumentParser(description=description, exit_on_error=False)


def _training_command(description: str, config: type) -> jsonargparse.ArgumentParser:
    parser = _command(description)
    parser.add_argument("--config", action="config", help="YAML file with any of the options")
    parser.add_argument("--run", type=str, help="run folder; default: runs/ and the time")
    parser.add_class_arguments(config, skip={"data"}, fail_untyped=False)
    return parser


def _dispatch(options: jsonargparse.Namespace) -> int:
    command = options.subcommand
    chosen = options[command]
    handlers = {
        "train": _train,
        "resume": _resume,
        "evaluate": _evaluate,
        "table": _table,
        "embed": _embed,
        "doctor": _doctor,
    }
    handlers[command](chosen)
    return 0


def _train(options: jsonargparse.Namespace) -> None:
    name = options.experiment
    chosen = options[name]
    experiment: Artificial | QM9
    if name == Artificial.name:
        experiment = Artificial(ArtificialConfig(chosen.model, chosen.optimisation))
    else:
        data = str(Path(chosen.data).resolve())
        experiment = QM9.from_file(
            QM9Config(data, chosen.molecules, chosen.model, chosen.optimisation)
        )
    run = Run(chosen.run or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    run.create(experiment)
    _train_and_report(experiment, run, resume=False)


def _resume(options: jsonargparse.Namespace) -> None:
    run = Run(options.run)
    experiment = experiment_of(run, with_data=True)
    _train_and_report(experiment, run, resume=run.checkpoint.exists())


def _train_and_report(experiment: Artificial | QM9, run: Run, *, resume: bool) -> None:
    try:
        model = train(experiment, run, resume=resume)
    except Interrupted as stop:
        raise Interrupted(f"{stop}; continue with `stib resume {run.folder}`") from stop
    run.write_evaluation(experiment.evaluate(model))
    written = write_report(run, Trained(model, experiment))
    print(table_of([run]))
    print("written: " + ", ".join(str(path) for path in written))


def _evaluate(options: jsonargparse.Namespace) -> None:
    trained = load(options.run, with_data=options.data is None)
    path = Path(options.data) if options.data else None
    print(json.dumps(trained.experiment.evaluate(trained.model, path), indent=2))


def _table(options: jsonargparse.Namespace) -> None:
    print(table_of([Run(folder) for folder in options.runs]), end="")


def _embed(options: jsonargparse.Namespace) -> None:
    trained = load(options.run)
    file = Path(options.file)
    if isinstance(trained.experiment, QM9):
        column = options.smiles or trained.experiment.config.molecules.smiles
        rows: Any = read_csv(file, column, targets={}).smiles
        predictions = ["gap_ev", "polarisability"]
    else:
        (rows,) = read_arrays(file, ("x",))
        predictions = ["y0", "y1"]
    z0, z1 = trained.encode(rows)
    output = Path(options.output) if options.output else file.with_suffix(".embedding.csv")
    header = [
        *(f"z0_{i}" for i in range(z0.shape[1])),
        *(f"z1_{i}" for i in range(z1.shape[1])),
        *predictions,
    ]
    values = numpy.concatenate([z0, z1, trained.predict(rows)], axis=1)
    with output.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(header)
        writer.writerows([f"{value:.7g}" for value in row] for row in values)
    print(f"{len(values)} rows written to {output}")


def _doctor(options: jsonargparse.Namespace) -> None:
    facts = doctor.report()
    print(json.dumps(facts, indent=2) if options.json else doctor.text(facts))


if __name__ == "__main__":
    sys.exit(main())
