"""The table and the figures of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from stib_fast.models import TITLES, kl_per_dimension
from stib_fast.reports.figures import LatentSpace, latent_figure, training_figure
from stib_fast.reports.tables import (
    ARTIFICIAL_LIMIT,
    ARTIFICIAL_PAPER,
    QM9_PAPER,
    ZINC_PAPER,
    artificial_table,
    molecule_table,
    qm9_table,
)
from stib_fast.training import (
    QM9,
    Artificial,
    MoleculeExperiment,
    Run,
    Trained,
    Zinc,
    data_report,
    evaluation_points,
)
from stib_fast.training.run import Figure

_SELECTED = (
    "Step …: selected by validation, as the last measurement at which neither MAE was above that\n"
    "of the model selected before (the paper's code selects so on its test points).\n"
)


def write_report(run: Run, trained: Trained) -> list[Path]:
    """Write ``table.md`` and the figures of a run into its folder; returns what was written."""
    table = run.folder / "table.md"
    table.write_text(table_of([run]))
    training = run.folder / "training.png"
    if not isinstance(trained.experiment, Artificial):
        _molecule_figure(run, trained.experiment, training)
        return [table, training]
    model = model_of(run)
    # The limit of MAE(Y) is that of the points of the evaluation, not of those followed along.
    limit = {name: value for name, value in ARTIFICIAL_LIMIT.items() if name != "mae_y"}
    training_figure(run.metrics, training, model=model, paper=ARTIFICIAL_PAPER[model], limit=limit)
    latent = run.folder / "latent.png"
    points = evaluation_points()
    panel = latent_space(trained, points.x, f"Figure 4: latent space of {model}")
    latent_figure([panel], points.t, latent)
    return [table, training, latent]


def model_of(run: Run) -> str:
    """The paper's name of a run's model."""
    return TITLES[run.config()["model"]["kind"]]


def latent_space(trained: Trained, x: Tensor, title: str) -> LatentSpace:
    """Choose the two dimensions of a model's Z that the paper's Figure 4 shows of some points."""
    part = trained.model.invariant_part(x)
    # The KL divergence switches dimensions off: those in use are the ones to look at.
    order = kl_per_dimension(*part).argsort(descending=True)
    across = part.mean[:, order[0]]
    z0, z1 = trained.encode(x)
    if z0.numel() and z1.numel():
        return LatentSpace(title, across, z1)
    labels = ("Z, most active dimension", "Z, second most active dimension")
    return LatentSpace(title, across, part.mean[:, order[:2][-1]], labels)


def table_of(runs: Sequence[Run]) -> str:
    """Set the evaluations of finished runs beside the paper's table.

    Raises
    ------
    ValueError
        If the runs are of different experiments, or one is not finished.
    """
    experiments = {run.experiment() for run in runs}
    if len(experiments) > 1:
        raise ValueError(
            f"the runs are of different experiments ({', '.join(sorted(experiments))})"
        )
    names = [run.folder.resolve().name for run in runs]
    labels = [
        name if names.count(name) == 1 else str(run.folder)
        for run, name in zip(runs, names, strict=True)
    ]
    results = {}
    for run, label in zip(runs, labels, strict=True):
        figures, selected = run.read_evaluation(), run.read_selected()
        name = f"{model_of(run)} ({label})"
        if selected is not None:
            results[f"{name}, step {selected['step']:,}"] = selected
            name += ", last step"
        results[name] = figures
        train = training_part(figures)
        if train:
            results[f"on training part ({label})"] = train
    (experiment,) = experiments
    if experiment == Artificial.name:
        table = artificial_table(results)
        return table if all(run.read_selected() is None for run in runs) else table + _SELECTED
    if experiment == QM9.name:
        table = qm9_table(results)
    else:
        chosen = [run.config()["molecules"]["targets"] for run in runs]
        targets = list(dict.fromkeys(target for row in chosen for target in row))
        # The paper's MI is between Z0 and QED: it stands beside nothing else.
        beside_paper = experiment == Zinc.name and targets == ["qed"]
        table = molecule_table(results, targets, ZINC_PAPER if beside_paper else None)
    return table + "".join(
        data_account(run, label) for run, label in zip(runs, labels, strict=True)
    )


def training_part(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """Pick the figures of the training part out of an evaluation, under the names of the others."""
    return {
        name.removeprefix("train_"): value
        for name, value in figures.items()
        if name.startswith("train_")
    }


def _molecule_figure(run: Run, experiment: MoleculeExperiment, path: Path) -> None:
    model = model_of(run)
    if isinstance(experiment, QM9):
        training_figure(run.metrics, path, model=model, paper=QM9_PAPER[model], limit={})
        return
    panels = {"token_accuracy": "SMILES accuracy", "string_accuracy": "whole strings"}
    for target in experiment.predictions:
        panels |= {
            f"mae_{target}": f"MAE({target})",
            f"r2_{target}": f"{target}: variance explained",
        }
    paper = ZINC_PAPER[model] if isinstance(experiment, Zinc) else {}
    training_figure(run.metrics, path, model=model, paper=paper, limit={}, panels=panels)


def data_account(run: Run, label: str) -> str:
    """Tell how many rows of its file a run has used, why not the others, and what it lacks."""
    report, settings = data_report(run.folder), run.config()["molecules"]
    parts = [f"{report['read']:,} rows read, {report['kept']:,} kept"]
    parts += [f"{note['count']:,} {note['reason']}" for note in report["left_out"]]
    if not settings["check"]:
        parts.append("not checked by RDKit")
    if not settings["test_fraction"]:
        parts.append("no test part: validation molecules in its place")
    return f"Data ({label}): {'; '.join(parts)}.\n"
