"""``stib train`` and ``stib resume``."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jsonargparse

from stib_fast.cli.parsers import Commands, command
from stib_fast.models import TITLES
from stib_fast.reports import table_of, write_report
from stib_fast.training import (
    MOLECULE_EXPERIMENTS,
    QM9,
    Artificial,
    ArtificialConfig,
    Execution,
    Interrupted,
    MoleculeExperiment,
    Optimisation,
    Processes,
    Run,
    Table,
    Trained,
    Zinc,
    experiment_of,
    job,
    joined_processes,
    may_restart,
    selected_model,
    train,
)
from stib_fast.training.run import plain

TABLES = ".csv, .csv.gz or .parquet file"
CONFIGS = Path(__file__).parents[1] / "configs"
PAPER_CONFIG = CONFIGS / "artificial_paper.yaml"
MODEL_CONFIGS: dict[tuple[str, str | None], Path] = {  # experiment, model
    (Artificial.name, "cvib"): CONFIGS / "artificial_cvib.yaml",
    **{(name, "cvib"): CONFIGS / "molecules_cvib.yaml" for name in MOLECULE_EXPERIMENTS},
}
MODEL = "--model"


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


def spelled_out(arguments: list[str]) -> list[str]:
    """Turn ``--paper`` and ``--model NAME`` into what they are short for.

    Their configuration files come first, so that typed options count, too; the model's name comes
    last, so that it counts before that in a file.

    Raises
    ------
    ValueError
        The authors' settings are asked for a model that they are not of.
    """
    if arguments[:1] != ["train"]:
        return arguments
    before, options = arguments[:2], arguments[2:]
    configs: list[Path] = []
    if before == ["train", "artificial"] and "--paper" in options:
        configs.append(PAPER_CONFIG)
        options = [option for option in options if option != "--paper"]
    options, kind = _without_model(options)
    if configs and kind not in (None, "stib"):
        raise ValueError(f"--paper has the authors' settings of STIB, not of {kind}: drop one")
    if (before[-1], kind) in MODEL_CONFIGS:
        configs.append(MODEL_CONFIGS[before[-1], kind])
    if kind is not None:
        options += [f"{MODEL}.kind", kind]
    return [*before, *(part for path in configs for part in ("--config", str(path))), *options]


def _without_model(options: list[str]) -> tuple[list[str], str | None]:
    """Part options from the value of ``--model NAME`` or ``--model=NAME``, if there is one."""
    rest, kind, remaining = [], None, iter(options)
    for option in remaining:
        if option == MODEL:
            kind = next(remaining, "")
        elif option.startswith(f"{MODEL}="):
            kind = option.removeprefix(f"{MODEL}=")
        else:
            rest.append(option)
    return rest, kind


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
    parser.add_argument("--batch", type=int, help="rows in a batch: optimisation.batch")
    parser.add_argument(
        "--micro-batch",
        dest="execution.micro_batch",
        type=int,
        help="rows of a batch that are in the networks at once; the step stays that of the batch",
    )
    for name, explanation in (
        ("amp", "matrix products in bfloat16"),
        ("compile", "compile the objective (torch.compile)"),
        ("cuda_graph", "replay the step as one CUDA graph"),
    ):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, dest=f"execution.{name}", action="store_true", help=explanation)
    parser.add_class_arguments(config, skip={"data", "execution"}, fail_untyped=False)
    for action in parser._actions:
        if MODEL in action.option_strings:  # which `spelled_out` turns into another option
            action.metavar = "NAME"
            action.help = f"{', '.join(TITLES)}; short for {MODEL}.kind"
    return parser


def _train(options: jsonargparse.Namespace) -> None:
    chosen = options[options.experiment]
    if may_restart() and not chosen.run:
        raise ValueError("torchrun --max-restarts needs --run: a restart could not find the folder")
    execution = Execution(**vars(chosen.execution)).resolved()
    optimisation = _optimisation(chosen)
    with joined_processes(execution) as processes:
        processes.share(optimisation.batch)  # before anything is read or written
        if chosen.run and processes.first(lambda: Run(chosen.run).is_of(job())):
            return _continue(Run(chosen.run), processes)
        with _told_once(processes):
            experiment = _experiment(
                options.experiment, _config(options.experiment, chosen, optimisation, execution)
            )
        folder = chosen.run or f"runs/{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        run = processes.first(lambda: _created(folder, experiment))
        _train_and_report(experiment, run, processes, resume=False)


def settings_of(arguments: Sequence[str]) -> dict[str, Any]:
    """What ``config.yaml`` would hold of a ``train`` command, but for what its data decide."""
    parser = _training_parser()
    training = parser.instantiate(parser.parse_args(spelled_out(list(arguments)))).train
    chosen = training[training.experiment]
    return plain(_config(training.experiment, chosen, _optimisation(chosen), Execution()))


@functools.cache
def _training_parser() -> jsonargparse.ArgumentParser:
    parser = command("Train.")
    add_to(parser.add_subcommands(required=True))
    return parser


def _optimisation(chosen: jsonargparse.Namespace) -> Optimisation:
    settings: Optimisation = chosen.optimisation
    return settings if chosen.batch is None else replace(settings, batch=chosen.batch)


def _config(
    name: str, chosen: jsonargparse.Namespace, optimisation: Optimisation, execution: Execution
) -> Any:
    if name == Artificial.name:
        select = chosen.select_by_validation
        return ArtificialConfig(chosen.model, optimisation, execution, select)
    kind = MOLECULE_EXPERIMENTS[name]
    molecules = chosen.molecules
    if issubclass(kind, Table):
        molecules = replace(
            molecules,
            smiles=chosen.smiles or molecules.smiles,
            targets=tuple(chosen.target or molecules.targets),
        )
    data = str(Path(chosen.data).resolve())
    return kind.config_type(data, molecules, chosen.model, optimisation, execution)


def _experiment(name: str, config: Any) -> Artificial | MoleculeExperiment:
    if name == Artificial.name:
        return Artificial(config)
    return MOLECULE_EXPERIMENTS[name].from_file(config)


def _told_once(processes: Processes) -> contextlib.AbstractContextManager[Any]:
    """What is told of the data on standard error, the first process tells alone."""
    if processes.is_first:
        return contextlib.nullcontext()
    return contextlib.redirect_stderr(io.StringIO())


def _created(folder: str, experiment: Artificial | MoleculeExperiment) -> Run:
    run = Run(folder)
    run.create(experiment, job())
    return run


def _resume(options: jsonargparse.Namespace) -> None:
    run = Run(options.run)
    execution = experiment_of(run, with_data=False).execution.resolved()
    with joined_processes(execution) as processes:
        _continue(run, processes)


def _continue(run: Run, processes: Processes) -> None:
    with _told_once(processes):
        experiment = experiment_of(run, with_data=True)
    resume = processes.first(run.checkpoint.exists)
    _train_and_report(experiment, run, processes, resume=resume)


def _train_and_report(
    experiment: Artificial | MoleculeExperiment, run: Run, processes: Processes, *, resume: bool
) -> None:
    try:
        model = train(experiment, run, resume=resume, processes=processes)
    except Interrupted as stop:
        raise Interrupted(f"{stop}; continue with `stib resume {run.folder}`") from stop
    if not processes.is_first:
        return
    selected = selected_model(run, experiment)
    if selected is not None:
        run.write_selected(selected[0], experiment.evaluate(selected[1]))
    run.write_evaluation(experiment.evaluate(model))
    written = write_report(run, Trained(model, experiment))
    print(table_of([run]))
    if run.resources.exists():  # not if the training was killed right after its last checkpoint
        print(_resources(run))
    print("written: " + ", ".join(str(path) for path in written))


def _resources(run: Run) -> str:
    took = json.loads(run.resources.read_text())
    several = f" by {took['processes']} processes" if took["processes"] > 1 else ""
    return (
        f"{took['steps']:,} steps in {took['seconds']:,.0f} s, "
        f"{took['rows_per_second']:,.0f} rows a second{several}; "
        f"peak memory {took['peak_memory_bytes'] / 1e9:.2f} GB"
    )


HANDLERS = {"train": _train, "resume": _resume}
