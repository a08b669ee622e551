"""The run folder: configuration, versions, metrics, checkpoint, figures."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
import yaml

import stib_fast
from stib_fast import backends

Figure = float | int | None


class Recorded(Protocol):
    """An experiment as a run folder records it."""

    @property
    def name(self) -> str:
        """Name on the command line."""
        ...

    @property
    def config(self) -> Any:
        """A dataclass of dataclasses, numbers, strings and tuples."""
        ...

    def save_into(self, folder: Path) -> None:
        """Write what else is needed to load the model."""
        ...


class Run:
    """A folder that holds all there is to know of a training run.

    ``config.yaml``, ``run.json`` (the experiment and the versions of everything), ``metrics.csv``,
    ``checkpoint.pt`` (with the model that was selected, if any), ``evaluation.json`` (the model of
    the last step), ``selected.json`` (the model that was selected, and its step),
    ``resources.json`` (time and memory of the last session of training), ``tensorboard/`` and
    whatever the experiment adds.

    Parameters
    ----------
    folder : str or Path
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.checkpoint = self.folder / "checkpoint.pt"
        self.metrics = self.folder / "metrics.csv"
        self.evaluation = self.folder / "evaluation.json"
        self.selected = self.folder / "selected.json"
        self.resources = self.folder / "resources.json"
        self.tensorboard = self.folder / "tensorboard"
        self._config = self.folder / "config.yaml"
        self._record = self.folder / "run.json"

    def create(self, experiment: Recorded, job: str | None = None) -> None:
        """Make the folder of a new run.

        Parameters
        ----------
        experiment : Recorded
        job : str, optional
            What starts the processes of the run, for `is_of`.

        Raises
        ------
        ValueError
            If the folder holds anything already, other than what an end in here left.
        """
        if self.exists():
            raise ValueError(
                f"{self.folder} is not empty: continue that run with `stib resume {self.folder}` "
                "or name another folder with --run"
            )
        if self.folder.exists() and any(self.folder.iterdir()) and not self._record.exists():
            raise ValueError(f"{self.folder} is not empty: name another folder with --run")
        content = json.dumps({"experiment": experiment.name, "job": job, **_versions()}, indent=2)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self._record, content + "\n")
        experiment.save_into(self.folder)
        # Last: a folder without it is no run.
        write_text(self._config, yaml.safe_dump(plain(experiment.config), sort_keys=False))

    def exists(self) -> bool:
        """Whether the folder is that of a run."""
        return self._config.is_file()

    def is_of(self, job: str | None) -> bool:
        """Whether it is a run that this job has created."""
        if job is None or not self.exists():
            return False
        return json.loads(self._record.read_text()).get("job") == job

    def experiment(self) -> str:
        """Read the name of the experiment.

        Raises
        ------
        ValueError
            If the folder is no run.
        """
        self.config()
        return json.loads(self._record.read_text())["experiment"]

    def config(self) -> dict[str, Any]:
        """Read the configuration.

        Raises
        ------
        ValueError
            If the folder is no run, or the file is damaged.
        """
        if not self.exists():
            raise ValueError(f"{self.folder} is not a run folder: it has no config.yaml")
        try:
            return dict(yaml.safe_load(self._config.read_text()))
        except (yaml.YAMLError, TypeError, ValueError) as error:
            raise ValueError(f"{self._config} is damaged: {error}") from error

    def write_evaluation(self, figures: Mapping[str, Figure]) -> None:
        """Keep the figures of the trained model."""
        write_text(self.evaluation, json.dumps(figures, indent=2) + "\n")

    def write_selected(self, step: int, figures: Mapping[str, Figure]) -> None:
        """Keep the figures of the model that was selected, and the step that it is of."""
        write_text(self.selected, json.dumps({"step": step, **figures}, indent=2) + "\n")

    def read_selected(self) -> dict[str, Figure] | None:
        """Read what `write_selected` wrote; None for a run that selects no model."""
        return _figures(self.selected) if self.selected.is_file() else None

    def write_resources(self, resources: Mapping[str, float]) -> None:
        """Keep what the training took."""
        write_text(self.resources, json.dumps(resources, indent=2) + "\n")

    def read_evaluation(self) -> dict[str, Figure]:
        """Read the figures of the trained model.

        Raises
        ------
        ValueError
            If the run has not finished, or the file is damaged.
        """
        if not self.evaluation.is_file():
            raise ValueError(
                f"{self.folder} has no evaluation: finish the run with `stib resume {self.folder}`"
            )
        return _figures(self.evaluation)


def _figures(path: Path) -> dict[str, Figure]:
    try:
        return dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it, and `stib resume {path.parent}` writes it"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place and move it there: never half a file."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text)
    os.replace(beside, path)


class MetricsFile:
    """``metrics.csv``: a row a step that was logged, with empty cells for what was not measured.

    Parameters
    ----------
    path : Path
    columns : sequence of str
        Beside ``step``.
    upto : int
        Rows of later steps, left by a run that was killed, are dropped.
    """

    def __init__(self, path: Path, columns: Sequence[str], upto: int) -> None:
        self.columns = ["step", *columns]
        kept: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= upto]
        text = io.StringIO(newline="")
        self._writer = csv.DictWriter(text, self.columns)
        self._writer.writeheader()
        self._writer.writerows(kept)
        write_text(path, text.getvalue())
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, self.columns)

    def write(self, step: int, values: Mapping[str, Figure]) -> None:
        """Append a row."""
        self._writer.writerow({"step": step, **values})
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def plain(config: Any) -> dict[str, Any]:
    """A configuration dataclass as ``config.yaml`` holds it."""
    return dict(_plain(asdict(config)))


def _plain(value: Any) -> Any:
    """Tuples as lists and paths as strings, which YAML has."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _versions() -> dict[str, str | int]:
    return {
        "stib_fast": stib_fast.__version__,
        "backend": "cpp" if backends.cpp_unusable is None else "eager",
        "STIB_FAST_BACKEND": os.environ.get("STIB_FAST_BACKEND", "auto"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": version("scipy"),
        "scikit-learn": version("scikit-learn"),
        "rdkit": version("rdkit"),
        "threads": torch.get_num_threads(),
    }
