"""``stib train`` and ``stib resume``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jsonargparse

from stib_fast.cli.parsers import Commands, command
from stib_fast.reports import table_of, write_report
from stib_fast.training import (
    MOLECULE_EXPERIMENTS,
    QM9,
    Artificial,
    ArtificialConfig,
    Execution,
    Interrupted,
    MoleculeExperiment,
    Run,
    Table,
    Trained,
    Zinc,
    experiment_of,
    train,
)

TABLES = ".csv, .csv.gz or .parquet file"
PAPER_CONFIG = Path(__file__).parents[1] / "configs" / "artificial_paper.yaml"


def add_to(commands: Commands) -> None:
    """Add the commands."""
    training = command("Train a model in a run folder.")
    commands.add_subcommand("train", training)
    experiments = training.add_subcommands(required=True, dest="experiment")
    artificial = _training_command("The paper's artificial experiment.", ArtificialConfig)
    artificial.add_argument("--paper", action="store_true", help="start from the authors' settings")
    experiments.add_subcommand(Artificial.name, artificial)
    for kind, description, data in (
        (QM9, "QM9's molecules: gap and polarisability.", f"{TABLES}, or official .xyz.tar.bz2"),
        (Zinc, "ZINC250k: druglikeness, or other columns.", f"{TABLES}, or token cache"),
        (Table, "Any table of molecules with properties.", f"{TABLES}, or token cache"),
    ):
        molecules = _training_command(description, kind.config_type)
        molecules.add_argument("--data", type=str, required=True, help=data)
        if issubclass(kind, Table):
            molecules.add_argument("--smiles", type=str, help="column of the SMILES")
            molecules.add_argument(
                "--target", type=str, nargs="+", action="extend", help="columns to predict"
            )
        experiments.add_subcommand(kind.name, molecules)

    resume = command("Continue a run that was stopped.")
    resume.add_argument("run", type=str)
    commands.add_subcommand("resume", resume)


def with_paper_config(arguments: list[str]) -> list[str]:
    """Turn ``--paper`` into its configuration file, first, so that typed options count, too."""
    if arguments[:2] != ["train", "artificial"] or "--paper" not in arguments:
        return arguments
    rest = [argument for argument in arguments[2:] if argument != "--paper"]
    return [*arguments[:2], "--config", str(PAPER_CONFIG), *rest]


def _training_command(description: str, config: type) -> jsonargparse.ArgumentParser:
    parser = command(description)
    parser.add_argument("--config", action="config", help="YAML file with any of the options")
    parser.add_argument("--run", type=str, help="run folder; default: runs/ and the time")
    parser.add_argument(
        "--device",
        dest="execution.device",
        type=Literal["auto", "cpu", "cuda"],
        default="auto",
        help="auto: the GPU where one is usable",
    )
    for name, explanation in (
        ("amp", "matrix products in bfloat16"),
        ("compile", "compile the objective (torch.compile)"),
        ("cuda_graph", "replay the step as one CUDA graph"),
    ):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, dest=f"execution.{name}", action="store_true", help=explanation)
    parser.add_class_arguments(config, skip={"data", "execution"}, fail_untyped=False)
    return parser


def _train(options: jsonargparse.Namespace) -> None:
    name = options.experiment
    chosen = options[name]
    execution = Execution(**vars(chosen.execution)).resolved()
    experiment: Artificial | MoleculeExperiment
    if name == Artificial.name:
        experiment = Artificial(ArtificialConfig(chosen.model, chosen.optimisation, execution))
    else:
        kind = MOLECULE_EXPERIMENTS[name]
        data = str(Path(chosen.data).resolve())
        molecules = chosen.molecules
        if issubclass(kind, Table):
            molecules = replace(
                molecules,
                smiles=chosen.smiles or molecules.smiles,
                targets=tuple(chosen.target or molecules.targets),
            )
        experiment = kind.from_file(
            kind.config_type(data, molecules, chosen.model, chosen.optimisation, execution)
        )
    run = Run(chosen.run or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    run.create(experiment)
    _train_and_report(experiment, run, resume=False)


def _resume(options: jsonargparse.Namespace) -> None:
    run = Run(options.run)
    experiment = experiment_of(run, with_data=True)
    _train_and_report(experiment, run, resume=run.checkpoint.exists())


def _train_and_report(
    experiment: Artificial | MoleculeExperiment, run: Run, *, resume: bool
) -> None:
    try:
        model = train(experiment, run, resume=resume)
    except Interrupted as stop:
        raise Interrupted(f"{stop}; continue with `stib resume {run.folder}`") from stop
    run.write_evaluation(experiment.evaluate(model))
    written = write_report(run, Trained(model, experiment))
    print(table_of([run]))
    print("written: " + ", ".join(str(path) for path in written))


HANDLERS = {"train": _train, "resume": _resume}
