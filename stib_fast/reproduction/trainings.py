"""Tables and figures of the experiments that compare trained models."""

from __future__ import annotations

import shutil
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stib_fast.models import STIB
from stib_fast.reports.figures import latent_figure
from stib_fast.reports.molecule_figures import dimensions_figure, sections_figure
from stib_fast.reports.run_report import data_account, latent_space, model_of, training_part
from stib_fast.reports.tables import (
    ARTIFICIAL_AUTHORS_CODE,
    ZINC_PAPER,
    artificial_table,
    invariance_table,
    markdown_table,
    molecule_table,
    qm9_table,
)
from stib_fast.reproduction.baselines import mean_of_training, ridge_on_ngrams
from stib_fast.reproduction.experiment import Finished, Picture, Products
from stib_fast.training import MoleculeExperiment, Run, Trained, evaluation_points, load

Results = dict[str, dict[str, Any]]

_AUTHORS_CODE_LEGEND = (
    "Authors' code: constants, measured once by running it on its own test points, on which its\n"
    "checkpoint is selected, too. Ours: selected by validation, measured on fresh points.\n"
)
PANEL_POINTS = 3_000  # in each panel of the latent spaces: more would hide one another


def latent(finished: Finished) -> Products:
    """Figure 4: the latent spaces side by side."""
    points = evaluation_points()
    x, t = points.x[:PANEL_POINTS], points.t[:PANEL_POINTS]
    panels = [latent_space(load(run.folder), x, model_of(run)) for run in finished.trainings]
    latent_figure(panels, t, finished.folder / "latent.png")
    caption = "Latent spaces, coloured by the angle t of the spiral, which Y depends on."
    text = _left_in_z0(_results(finished.trainings))
    return Products(text, (Picture("latent.png", caption),))


def artificial(finished: Finished) -> Products:
    """Table 1, left half, with the median of STIB's seeds."""
    results: Results = {}
    by_model: dict[str, list[Run]] = {}
    for run in finished.trainings:
        by_model.setdefault(model_of(run), []).append(run)
    for model, runs in by_model.items():
        if len(runs) == 1:
            results |= {model: runs[0].read_evaluation()}
            continue
        rows = [run.read_evaluation() for run in runs]
        seeds = [run.config()["optimisation"]["seed"] for run in runs]
        results[f"{model}, median"] = _median(rows)
        results |= {f"{model}, seed {s}": row for s, row in zip(seeds, rows, strict=True)}
    return Products(f"{artificial_table(results)}\n{_left_in_z0(results)}")


def artificial_paper(finished: Finished) -> Products:
    """The authors' settings: the checkpoint that their rule selects, and the last iteration."""
    (run,) = finished.trainings
    results: Results = {}
    selected = run.read_selected()
    if selected is not None:
        results[f"selected, step {selected['step']:,}"] = selected
    results["last step"] = run.read_evaluation()
    table = artificial_table(results, ARTIFICIAL_AUTHORS_CODE)
    return Products(
        f"{table}{_AUTHORS_CODE_LEGEND}\n{_left_in_z0(results)}", (_course(finished, run),)
    )


def qm9(finished: Finished) -> Products:
    """Table 1, right half, with two baselines that the paper lacks."""
    runs = finished.trainings
    results = _results(runs)
    experiment = _experiment(load(runs[0].folder, with_data=True))
    errors, chosen = _baselines(experiment)
    table = qm9_table(_with_training_part(results), errors)
    text = f"{table}{chosen}{data_account(runs[0], 'all')}\n{_left_in_z0(results)}"
    return Products(text, (_course(finished, runs[0]),))


def artificial_adversary(finished: Finished) -> Products:
    """STIB on the artificial data under several adversaries."""
    results = _by_adversary(finished.trainings)
    return Products(f"{artificial_table(results)}\n{_left_in_z0(results)}")


def qm9_adversary(finished: Finished) -> Products:
    """STIB on QM9 under several adversaries."""
    results = _by_adversary(finished.trainings)
    return Products(f"{qm9_table(results)}\n{_left_in_z0(results)}")


def zinc(finished: Finished) -> Products:
    """The earlier version's Table 2, right half."""
    runs = finished.trainings
    results = _results(runs)
    table = molecule_table(_with_training_part(results), ["qed"], ZINC_PAPER)
    text = f"{table}{data_account(runs[0], 'all')}\n{_left_in_z0(results)}"
    return Products(text, (_course(finished, runs[0]),))


def dimensions(finished: Finished) -> Products:
    """The earlier version's Figure 5: reconstruction and MI against the dimensions of Z."""
    runs = finished.trainings
    sizes = [(run.config()["model"]["z0_dim"], run.config()["model"]["z1_dim"]) for run in runs]
    rows = [run.read_evaluation() for run in runs]
    columns = {
        "token_accuracy": "SMILES",
        "string_accuracy": "whole",
        "mae_gap_ev": "gap eV",
        "mae_polarisability": "pol bohr³",
        "mi_bits": "MI",
        "mi_bits_sampled": "MI smpl",
    }
    body = [
        [f"{z0 + z1} ({z0} + {z1})", *(f"{row[name]:.3f}" for name in columns)]
        for (z0, z1), row in zip(sizes, rows, strict=True)
    ]
    table = markdown_table(["dimensions of Z (Z0 + Z1)", *columns.values()], body)
    dimensions_figure([sum(size) for size in sizes], rows, finished.folder / "dimensions.png")
    caption = "Reconstruction and mutual information against the dimensions of Z."
    labelled = {f"{sum(size)} dimensions": row for size, row in zip(sizes, rows, strict=True)}
    text = f"{table}\n{_left_in_z0(labelled)}"
    return Products(text, (Picture("dimensions.png", caption),))


def sections(finished: Finished) -> Products:
    """The later version's Figure 5: Z1 in sections of Z0, coloured by gap and polarisability."""
    (run,) = finished.trainings
    trained = load(run.folder, with_data=True)
    experiment = _experiment(trained)
    smiles, targets = _molecules(experiment, torch.arange(len(experiment.encoded.targets)))
    z0, z1 = trained.encode(smiles)
    gap, polarisability = targets.T
    properties = {"gap, eV": gap, "polarisability, bohr³": polarisability}
    path = finished.folder / "sections.png"
    sections_figure(z0.double().numpy(), z1.double().numpy(), properties, path)
    caption = (
        f"Z1 in four of ten sections of equal counts along the first principal component of Z0, "
        f"{len(gap):,} molecules, those of the training part included; colours: ten bins of equal "
        "width. Outliers, 0.4 % along each axis, lie outside the frame."
    )
    return Products(_left_in_z0(_results([run])), (Picture(path.name, caption),))


def _course(finished: Finished, run: Run) -> Picture:
    """How the figures of a run moved along training."""
    shutil.copyfile(run.folder / "training.png", finished.folder / "training.png")
    caption = f"The course of training of {model_of(run)}, on validation data."
    return Picture("training.png", caption)


def _results(runs: list[Run]) -> Results:
    return {model_of(run): run.read_evaluation() for run in runs}


def _by_adversary(runs: list[Run]) -> Results:
    """Evaluations by the features a side of the critic and its steps for each of the model."""
    results: Results = {}
    for run in runs:
        model = load(run.folder).model
        assert isinstance(model, STIB)
        steps = run.config()["optimisation"]["critic_steps"]
        label = f"{model.critic.feature_dim} features, {steps} critic step{'s' * (steps > 1)}"
        results[label] = run.read_evaluation()
    return results


def _median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure that every row has."""
    return {
        name: median(row[name] for row in rows)
        for name in rows[0]
        if all(row[name] is not None for row in rows)
    }


def _with_training_part(results: Results) -> Results:
    """Rows of the training part after each row that holds figures of it."""
    both: Results = {}
    for name, figures in results.items():
        both[name] = figures
        train = training_part(figures)
        both |= {f"{name}, training part": train} if train else {}
    return both


def _left_in_z0(results: Results) -> str:
    return f"### What is left of Y in Z0\n\n{invariance_table(results)}"


def _experiment(trained: Trained) -> MoleculeExperiment:
    assert isinstance(trained.experiment, MoleculeExperiment)
    return trained.experiment


def _molecules(
    experiment: MoleculeExperiment, rows: Tensor
) -> tuple[list[str], NDArray[np.float64]]:
    """SMILES and properties of some rows of an experiment's data."""
    data = experiment.encoded
    return experiment.tokenizer.decode(data.ids[rows]), data.targets[rows].double().numpy()


def _baselines(experiment: MoleculeExperiment) -> tuple[Results, str]:
    """Errors of ridge regression and of the mean on the rows that the models are measured on."""
    data = experiment.encoded
    parts = [
        _molecules(experiment, rows)
        for rows in (data.train_rows, data.validation_rows, data.evaluated_rows)
    ]
    ridge: dict[str, float] = {}
    mean: dict[str, float] = {}
    chosen = []
    for column, name in enumerate(experiment.predictions):
        train, validation, test = ((smiles, values[:, column]) for smiles, values in parts)
        fit = ridge_on_ngrams(train, validation, test)
        ridge[f"mae_{name}"] = fit.mae
        mean[f"mae_{name}"] = mean_of_training(train[1], test[1])
        chosen.append(f"{name}: up to {fit.length} characters, penalty {fit.penalty:g}")
    legend = f"Ridge regression, chosen by validation: {'; '.join(chosen)}.\n"
    return {"ridge on n-grams": ridge, "training mean": mean}, legend
