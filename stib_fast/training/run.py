"""The run folder: configuration, versions, metrics, checkpoint, figures."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch
import yaml

import stib_fast
from stib_fast.backends import backend_for

Figure = float | int | None


class Run:
    """A folder that holds all there is to know of a training run.

    ``config.yaml``, ``versions.json``, ``metrics.csv``, ``checkpoint.pt``, ``evaluation.json``,
    ``tensorboard/`` and whatever the experiment adds.

    Parameters
    ----------
    folder : str or Path
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.checkpoint = self.folder / "checkpoint.pt"
        self.metrics = self.folder / "metrics.csv"
        self.evaluation = self.folder / "evaluation.json"
        self.tensorboard = self.folder / "tensorboard"
        self._config = self.folder / "config.yaml"

    def create(self, experiment: str, config: Any) -> None:
        """Make the folder of a new run of `config`, a dataclass.

        Raises
        ------
        ValueError
            If the folder holds anything already.
        """
        if self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(
                f"{self.folder} is not empty: continue that run with `stib resume {self.folder}` "
                "or name another folder with --run"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"experiment": experiment, **_plain(asdict(config))}
        self._config.write_text(yaml.safe_dump(content, sort_keys=False))
        self._write_json("versions.json", _versions())

    def config(self) -> dict[str, Any]:
        """Read the configuration.

        Raises
        ------
        ValueError
            If the folder is no run.
        """
        if not self._config.is_file():
            raise ValueError(f"{self.folder} is not a run folder: it has no config.yaml")
        content = yaml.safe_load(self._config.read_text())
        if not isinstance(content, dict) or "experiment" not in content:
            raise ValueError(f"{self._config} does not name its experiment")
        return content

    def write_evaluation(self, figures: Mapping[str, Figure]) -> None:
        """Keep the figures of the trained model."""
        self._write_json(self.evaluation.name, figures)

    def read_evaluation(self) -> dict[str, Figure]:
        """Read the figures of the trained model.

        Raises
        ------
        ValueError
            If the run has not finished.
        """
        if not self.evaluation.is_file():
            raise ValueError(
                f"{self.folder} has no evaluation: finish the run with `stib resume {self.folder}`"
            )
        return json.loads(self.evaluation.read_text())

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        (self.folder / name).write_text(json.dumps(content, indent=2) + "\n")


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
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, self.columns)
        self._writer.writeheader()
        self._writer.writerows(kept)
        self._file.flush()

    def write(self, step: int, values: Mapping[str, Figure]) -> None:
        """Append a row."""
        self._writer.writerow({"step": step, **values})
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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
        "backend": backend_for(torch.device("cpu")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": version("scipy"),
        "scikit-learn": version("scikit-learn"),
        "rdkit": version("rdkit"),
        "threads": torch.get_num_threads(),
    }
