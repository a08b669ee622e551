"""Trained models out of their run folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stib_fast.models import Autoencoder, Latent, STIBWithoutAdversary
from stib_fast.training.artificial import Artificial, ArtificialConfig
from stib_fast.training.checkpoint import load_checkpoint, load_weights
from stib_fast.training.molecules import MoleculeExperiment
from stib_fast.training.qm9 import QM9
from stib_fast.training.run import Run
from stib_fast.training.table import Table
from stib_fast.training.zinc import Zinc

MOLECULE_EXPERIMENTS: dict[str, type[MoleculeExperiment]] = {
    experiment.name: experiment for experiment in (QM9, Zinc, Table)
}


class Trained:
    """A trained model and the experiment it comes from; `stib_fast.load` makes one.

    Parameters
    ----------
    model : Autoencoder
    experiment : Artificial or MoleculeExperiment
    """

    def __init__(self, model: Autoencoder, experiment: Artificial | MoleculeExperiment) -> None:
        self.model = model.eval()
        self.experiment = experiment

    @torch.no_grad()
    def encode(self, x: Any) -> Latent:
        """Return the means of Z0 [n, n0] and Z1 [n, n1].

        All of Z is Z1 in a VAE, whose Z0 is empty, and Z0 in a CVAE or CVIB, whose Z1 is empty.

        Parameters
        ----------
        x : array [n, 2] or list of str
            Points of the artificial experiment, or SMILES.
        """
        return Latent(*map(torch.cat, zip(*map(self.model.encode, self._batches(x)), strict=True)))

    @property
    def predicts(self) -> bool:
        """Whether the model predicts y: a CVAE or CVIB does not."""
        return isinstance(self.model, STIBWithoutAdversary)

    @torch.no_grad()
    def predict(self, x: Any) -> Tensor:
        """Return y [n, m] predicted from Z1, in the units of the data.

        Columns of molecules stand in the order of the configuration; of QM9: gap (eV), alpha
        (bohr³).

        Raises
        ------
        ValueError
            A CVAE or CVIB, which predicts nothing.
        """
        if not isinstance(self.model, STIBWithoutAdversary):
            raise ValueError(f"a {type(self.model).__name__} is told y and predicts nothing")
        y = torch.cat([self.model.predict(batch) for batch in self._batches(x)])
        return self.model.targets.inverse(y)

    def _batches(self, x: Any) -> Sequence[Tensor]:
        return self.experiment.inputs(x).split(4096)


def config_from(kind: type, content: dict[str, Any]) -> Any:
    """A configuration dataclass from what a run folder holds, checked.

    Raises
    ------
    ValueError
        Naming a key that is unknown, missing or of the wrong type.
    """
    import jsonargparse  # training and its benchmarks do without

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", type=kind)
    try:
        config = parser.instantiate(parser.parse_object({"config": content})).config
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"config.yaml: {error}") from error
    missing = next(_missing(content, asdict(config)), None)
    if missing is not None:  # its default of today need not be what the run was trained with
        raise ValueError(
            f"config.yaml: {missing} is missing: the run was trained by another version of "
            "stib_fast, see run.json"
        )
    return config


def _missing(content: dict[str, Any], expected: dict[str, Any]) -> Iterator[str]:
    """Keys of nested dictionaries that are not in others, joined by dots."""
    for key, value in expected.items():
        if key not in content:
            yield key
        elif isinstance(value, dict):
            yield from (f"{key}.{inner}" for inner in _missing(content[key], value))


def experiment_of(run: Run, *, with_data: bool) -> Artificial | MoleculeExperiment:
    """The experiment of a run folder; `with_data` reads the molecules again."""
    name, content = run.experiment(), run.config()
    if name == Artificial.name:
        return Artificial(config_from(ArtificialConfig, content))
    if name not in MOLECULE_EXPERIMENTS:
        raise ValueError(f"{run.folder}: unknown experiment {name!r}")
    kind = MOLECULE_EXPERIMENTS[name]
    config = config_from(kind.config_type, content)
    return kind.from_run(config, run.folder, with_data=with_data)


def load(folder: str | Path, *, with_data: bool = False) -> Trained:
    """Load the model of a run, trained or still in training.

    Parameters
    ----------
    folder : str or Path
        A run folder.
    with_data : bool
        Read the run's data file again, for its evaluation.

    Returns
    -------
    Trained
        With ``encode`` and ``predict``.

    Raises
    ------
    ValueError
        If the folder is no run, has no checkpoint or a damaged one, or is of another version.
    """
    run = Run(folder)
    experiment = experiment_of(run, with_data=with_data)
    model = experiment.model()
    load_weights(model, load_checkpoint(run.checkpoint)["model"], run.checkpoint)
    return Trained(model, experiment)


def selected_model(
    run: Run, experiment: Artificial | MoleculeExperiment
) -> tuple[int, Autoencoder] | None:
    """Load the model that a run has selected, and the step that it is of; None without one.

    Raises
    ------
    ValueError
        If the run has no checkpoint, or a damaged one.
    """
    kept = load_checkpoint(run.checkpoint).get("selected")
    if kept is None:
        return None
    model = experiment.model()
    load_weights(model, kept["model"], run.checkpoint)
    return kept["step"], model.eval()
