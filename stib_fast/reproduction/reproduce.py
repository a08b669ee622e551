"""One experiment of the paper: its units performed, its products written."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from stib_fast.data.replacing import write_text
from stib_fast.data.token_cache import RECORD as CACHE_RECORD
from stib_fast.data.token_cache import file_digest
from stib_fast.reproduction.account import account, account_text
from stib_fast.reproduction.experiment import Experiment, Finished
from stib_fast.reproduction.units import (
    Runner,
    Settings,
    Unit,
    UnitStore,
    in_own_process,
    perform_all,
)

RUNS = "runs"
TABLE = "table.md"
RECORD = "experiment.json"


def reproduce(
    experiment: Experiment,
    out: Path,
    data: Path | None = None,
    *,
    steps: int | None = None,
    run: Runner = in_own_process,
    settings: Settings,
) -> list[Path]:
    """Perform what is not done of an experiment, and write its tables and figures.

    Parameters
    ----------
    experiment : Experiment
    out : Path
        Folder of the results of every experiment: ``runs/`` holds the units, which experiments
        share, and a folder of the experiment's name its table, figures and ``experiment.json``.
    data : Path, optional
        Its data file.
    steps : int, optional
        A trial: every training takes so many steps, and the table says so.
    run : callable
        Runs the command line of a unit.
    settings : callable
        What a training would be made with today: one made with other settings is refused.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    ValueError
        The data file is missing, or of no use; a folder in `out` was made in another way.
    Interrupted
        Stopped by Ctrl-C or SIGTERM; the same call continues.
    RuntimeError
        A unit failed, or another process is making it.
    """
    _check_data(experiment, data)
    if steps is not None and steps < 1:
        raise ValueError(f"--steps must be at least 1, not {steps}")
    units = shortened(experiment.units, steps)
    store = UnitStore(out / RUNS, data, settings=settings)
    perform_all(units, store, run, trial=steps is not None)

    folder = out / experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    finished = Finished(folder, units, store)
    products = experiment.write(finished)
    took = account(finished)
    trial = "" if steps is None else _trial(steps)
    write_text(folder / TABLE, f"{trial}{products.text}\n{account_text(took)}")
    content = {
        "experiment": experiment.name,
        "steps": steps,
        "data": data.name if data else None,
        "pictures": [asdict(picture) for picture in products.pictures],
        "units": took,
        "made_from": {
            path.relative_to(out).as_posix(): file_digest(path)
            for path in map(store.product, units)
        },
    }
    # Last: a folder without it is not finished.
    write_text(folder / RECORD, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return [folder / name for name in (TABLE, *(p.file for p in products.pictures), RECORD)]


def _trial(steps: int) -> str:
    return f"**A trial of {steps:,} steps a training: its figures mean nothing.**\n\n"


def shortened(units: tuple[Unit, ...], steps: int | None) -> tuple[Unit, ...]:
    """The units of an experiment, for a trial with so many steps a training."""
    if steps is None:
        return units
    return tuple(
        replace(unit, command=f"{unit.command} --optimisation.steps {steps}")
        if unit.trains
        else unit
        for unit in units
    )


def _check_data(experiment: Experiment, data: Path | None) -> None:
    if experiment.data is None and data is not None:
        raise ValueError(f"{experiment.name} draws its data: drop --data")
    if experiment.data is not None and data is None:
        raise ValueError(
            f"{experiment.name} needs --data, the file of {experiment.data}; "
            f"`stib data fetch {experiment.data}` gets it"
        )
    if data is not None and not data.exists():
        raise FileNotFoundError(f"--data {data}: there is no such file")
    if data is not None and data.is_dir() and not (data / CACHE_RECORD).is_file():
        raise ValueError(f"--data {data} is a folder, not a file or token cache")
