"""Tables and figures of the experiments that generate molecules."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stib_fast.reports.generation import DROPPED, UNITS
from stib_fast.reports.molecule_figures import (
    Consistency,
    consistency_panels,
    molecules_figure,
)
from stib_fast.reports.tables import markdown_table
from stib_fast.reproduction.experiment import Finished, Picture, Products
from stib_fast.training import MoleculeExperiment, load

NEAREST = 2  # molecules drawn beside the one that the search began with


class _Point(NamedTuple):
    """What `stib generate` wrote of a point in Z1."""

    summary: dict[str, Any]
    molecules: list[dict[str, str]]  # rows of its table, the nearest first

    @property
    def label(self) -> str:
        """The wanted values with their units."""
        return ", ".join(_with_unit(name, value) for name, value in self.summary["target"].items())

    def differences(self, name: str) -> NDArray[np.float64]:
        """Prediction minus what was wanted."""
        return np.array([float(row[f"{name}_minus_wanted"]) for row in self.molecules])


def generation(finished: Finished) -> Products:
    """What was generated at each point, its self-consistency, and the two nearest molecules."""
    points = [_read(folder) for folder in finished.generations]
    names = list(points[0].summary["held_out"])
    held_out = _held_out(finished.trainings[0].folder)
    panels = [
        Consistency(_label(name), held_out[name], {p.label: p.differences(name) for p in points})
        for name in names
    ]
    consistency_panels(panels, finished.folder / "consistency.png")
    molecules_figure([_cells(point, names) for point in points], finished.folder / "molecules.png")
    text = f"{_counts(points)}\n### Self-consistency\n\n{_consistency(points, names)}"
    return Products(
        text,
        (
            Picture(
                "consistency.png",
                "Predicted minus wanted properties of the generated molecules; shaded: the "
                "model's mean absolute error on test molecules.",
            ),
            Picture(
                "molecules.png",
                "The molecule where the search in Z1 began, and the two generated molecules "
                "nearest to it in Z0, with the model's predictions.",
            ),
        ),
    )


def _read(folder: Path) -> _Point:
    with (folder / "molecules.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return _Point(json.loads((folder / "summary.json").read_text()), rows)


def _held_out(run: Path) -> dict[str, NDArray[np.float64]]:
    """Prediction minus data of the molecules that the model was not trained on."""
    trained = load(run, with_data=True)
    experiment = trained.experiment
    assert isinstance(experiment, MoleculeExperiment)
    data = experiment.encoded
    rows = data.evaluated_rows
    predicted = trained.predict(experiment.tokenizer.decode(data.ids[rows])).double()
    errors = (predicted - data.targets[rows]).numpy()
    return dict(zip(experiment.predictions, errors.T, strict=True))


def _counts(points: list[_Point]) -> str:
    body = [["decoded", *(f"{point.summary['sampled']:,}" for point in points)]]
    for stage, what in DROPPED.items():
        counts = [f"{point.summary['dropped'][stage]:,}" for point in points]
        body.append([f"dropped: {what}", *counts])
    body.append(["new molecules, kept", *(f"{point.summary['kept']:,}" for point in points)])
    return markdown_table(["strings", *(point.label for point in points)], body)


def _consistency(points: list[_Point], names: list[str]) -> str:
    header = ["property", "at", "MAE", "lower quartile", "median", "upper quartile", "model's MAE"]
    body = []
    for name in names:
        for point in points:
            error = point.summary["held_out"][name]["mae"]
            spread = point.summary["consistency"].get(name)
            figures = ("mae", "q1", "median", "q3")
            cells = [f"{spread[key]:.3f}" for key in figures] if spread else ["–"] * len(figures)
            body.append([_label(name), point.label, *cells, f"{error:.3f}"])
    return (
        f"{markdown_table(header, body)}\n"
        "Predicted minus wanted. The model's MAE: predicted minus data of test molecules.\n"
    )


def _cells(point: _Point, names: list[str]) -> list[tuple[str, str]]:
    wanted = point.summary["wanted"]
    first = f"start of the search; wanted:\n{_values(wanted, names)}"
    cells = [(point.summary["reference"], first)]
    for number, row in enumerate(point.molecules[:NEAREST], 1):
        which = "nearest" if number == 1 else "second nearest"
        cells.append((row["smiles"], f"{which}, predicted:\n{_values(row, names)}"))
    return cells


def _values(values: dict[str, Any], names: list[str]) -> str:
    return ", ".join(_with_unit(name, float(values[name])) for name in names)


def _label(name: str) -> str:
    plain, unit = UNITS.get(name, (name, ""))
    return f"{plain}, {unit}" if unit else plain


def _with_unit(name: str, value: float) -> str:
    """A value with its unit, or after its name where the unit is not known."""
    unit = UNITS.get(name, (name, ""))[1]
    return f"{value:#.4g} {unit}" if unit else f"{name} {value:#.3g}"
