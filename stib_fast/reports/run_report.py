"""The table and the figures of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stib_fast.models import TITLES, kl_per_dimension
from stib_fast.reports.figures import latent_figure, training_figure
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
    model = _model_of(run)
    training_figure(
        run.metrics, training, model=model, paper=ARTIFICIAL_PAPER[model], limit=ARTIFICIAL_LIMIT
    )
    latent = run.folder / "latent.png"
    _latent_figure(trained, latent, title=f"Figure 4: latent space of {model}")
    return [table, training, latent]


def _model_of(run: Run) -> str:
    """The paper's name of a run's model."""
    return TITLES[run.config()["model"]["kind"]]


def _latent_figure(trained: Trained, path: Path, title: str) -> None:
    data = evaluation_points()
    part = trained.model.invariant_part(data.x)
    # The KL divergence switches dimensions off: those in use are the ones to look at.
    order = kl_per_dimension(*part).argsort(descending=True)
    across = part.mean[:, order[0]]
    z0, z1 = trained.encode(data.x)
    if z0.numel() and z1.numel():
        latent_figure(across, z1, data.t, path, title=title)
        return
    labels = ("Z, most active dimension", "Z, second dimension")
    latent_figure(across, part.mean[:, order[:2][-1]], data.t, path, title=title, labels=labels)


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
        name = f"{_model_of(run)} ({label})"
        if selected is not None:
            results[f"{name}, step {selected['step']:,}"] = selected
            name += ", last step"
        results[name] = figures
        train = {
            key.removeprefix("train_"): value
            for key, value in figures.items()
            if key.startswith("train_")
        }
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
    return table + "".join(_account(run, label) for run, label in zip(runs, labels, strict=True))


def _molecule_figure(run: Run, experiment: MoleculeExperiment, path: Path) -> None:
    model = _model_of(run)
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


def _account(run: Run, label: str) -> str:
    """Tell how many rows of its file a run has used, why not the others, and what it lacks."""
    report, settings = data_report(run.folder), run.config()["molecules"]
    parts = [f"{report['read']:,} rows read, {report['kept']:,} kept"]
    parts += [f"{note['count']:,} {note['reason']}" for note in report["left_out"]]
    if not settings["check"]:
        parts.append("not checked by RDKit")
    if not settings["test_fraction"]:
        parts.append("no test part: validation molecules in its place")
    return f"Data ({label}): {'; '.join(parts)}.\n"
