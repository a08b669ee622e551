"""What the units of an experiment took: time, memory, machine, versions, commands."""

from __future__ import annotations

import json
import shlex
from typing import Any

from stib_fast.reports.tables import markdown_table
from stib_fast.reproduction.experiment import Finished
from stib_fast.reproduction.units import Unit
from stib_fast.training import Run

VERSIONS = ("stib_fast", "python", "torch", "numpy", "scikit-learn", "rdkit")
LEGEND = (
    "ms a step, peak GB: of the last session of training; minutes: wall clock of all sessions,\n"
    "with loading, measuring and drawing, whatever else the machine did; CPU min: processor time\n"
    "of all threads; >: without sessions that were killed.\n"
)
_NO_FIGURE = "–"


def account(finished: Finished) -> list[dict[str, Any]]:
    """Collect what is known of each unit, as plain JSON values."""
    return [_of(unit, finished) for unit in finished.units]


def account_text(units: list[dict[str, Any]]) -> str:
    """Render what `account` collects: a table, machines and versions, and the commands."""
    header = ["run", "seed", "steps", "ms a step", "minutes", "CPU min", "peak GB"]
    body = [
        [
            unit["name"],
            _number(unit.get("seed"), "d"),
            _number(unit.get("steps"), ",d"),
            _number(unit.get("ms_per_step"), ".1f"),
            _minutes(unit["seconds"], unit),
            _minutes(unit["cpu_seconds"], unit),
            _number(unit.get("peak_gb"), ".2f"),
        ]
        for unit in units
    ]
    machines = "; ".join(dict.fromkeys(_machine(unit) for unit in units if "threads" in unit))
    commands = "\n".join(unit["command"] for unit in units)
    return (
        f"### What it took\n\n{markdown_table(header, body)}\n"
        f"{LEGEND}\nMachine: {machines}.\n\n"
        "Commands, in the folder of all results, with the data file in it:\n\n"
        f"```bash\n{commands}\n```\n"
    )


def _of(unit: Unit, finished: Finished) -> dict[str, Any]:
    record = finished.store.record(unit)
    assert record is not None  # the unit is done
    told: dict[str, Any] = {
        "name": unit.name,
        "command": shlex.join(["stib", *unit.arguments("runs", str(record.data))]),
        "seconds": round(record.seconds, 1),
        "cpu_seconds": record.cpu_seconds and round(record.cpu_seconds, 1),
        "lost_sessions": record.begun - record.counted,
        "processor": record.processor,
        "cores": record.cores,
    }
    folder = finished.store.of(unit)
    if unit.trains:
        return told | _of_training(Run(folder), record.gpu)
    return told | {"seed": json.loads((folder / "summary.json").read_text())["seed"]}


def _of_training(run: Run, gpu: str | None) -> dict[str, Any]:
    config = run.config()
    optimisation = config["optimisation"]
    versions = json.loads((run.folder / "run.json").read_text())
    told: dict[str, Any] = {
        "seed": optimisation["seed"],
        "steps": optimisation["steps"],
        "gpu": None if config["execution"]["device"] == "cpu" else gpu,
        "threads": versions["threads"],
        "versions": {name: versions[name] for name in VERSIONS},
    }
    if run.resources.exists():
        took = json.loads(run.resources.read_text())
        told["ms_per_step"] = round(1000 * took["seconds"] / took["steps"], 3)
        told["peak_gb"] = round(took["peak_memory_bytes"] / 1e9, 3)
    return told


def _machine(unit: dict[str, Any]) -> str:
    parts = [unit["gpu"]] if unit["gpu"] else []
    parts += [unit["processor"], f"{unit['cores']} cores", f"threads: {unit['threads']}"]
    parts += [f"{name} {version}" for name, version in unit["versions"].items()]
    return ", ".join(parts)


def _minutes(seconds: float | None, unit: dict[str, Any]) -> str:
    if seconds is None:
        return _NO_FIGURE
    return f"{'> ' if unit['lost_sessions'] else ''}{seconds / 60:.1f}"


def _number(value: float | None, form: str) -> str:
    return _NO_FIGURE if value is None else format(value, form)
