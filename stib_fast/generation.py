"""New molecules with wanted properties: Z1 fixed, Z0 sampled (Wieser et al. 2020, Experiment 5)."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stib_fast.chem.formula import molecular_formula, ordered_formula
from stib_fast.chem.validity import canonical_smiles
from stib_fast.models import TITLES, Autoencoder, STIBWithoutAdversary
from stib_fast.training import (
    Artificial,
    MoleculeExperiment,
    Run,
    Trained,
    experiment_of,
)
from stib_fast.training import load as load_trained

CHUNK = 4096  # strings that are decoded at once
MOLECULES = 10_000  # training molecules among which a start of the search in Z1 is chosen, at most
STARTS = 50  # of them that are tried in turn: the search can end in a local minimum
TOLERANCE = 0.01  # of the search, in standard deviations of a target
STAGES = ("unfinished", "invalid", "other_formula", "repeated", "known")
"""Why a sampled string is dropped, in the order in which it is asked.

- unfinished: no end mark within the model's length;
- invalid: no molecule that RDKit reads;
- other_formula: not the formula that is asked for;
- repeated: a molecule that was written before, in the same or in another way;
- known: the reference, or one of the run's training or validation molecules (a test molecule
  counts as new: neither the model nor the choice of its settings has seen it).
"""


@dataclass(frozen=True)
class Spread:
    """Summary of differences between predictions and what they should be, in the target's unit.

    Parameters
    ----------
    count : int
    mean, mae : float
        Mean of the differences, and of their absolute values.
    q1, median, q3 : float
        Quartiles: the box of a box plot.
    """

    count: int
    mean: float
    mae: float
    q1: float
    median: float
    q3: float

    @classmethod
    def of(cls, differences: Tensor) -> Spread:
        """Summarise differences [n], n at least 1.

        Examples
        --------
        >>> Spread.of(torch.tensor([-1.0, 0.0, 4.0]))
        Spread(count=3, mean=1.0, mae=1.666..., q1=-0.5, median=0.0, q3=2.0)
        """
        wide = differences.double()
        quartiles = wide.quantile(wide.new_tensor([0.25, 0.5, 0.75])).tolist()
        return cls(len(wide), float(wide.mean()), float(wide.abs().mean()), *quartiles)


@dataclass(frozen=True, eq=False)
class Generation:
    """Molecules that were generated at one point of Z1, the nearest to the reference first.

    Parameters
    ----------
    names : tuple of str
        Properties, T of them, as the run names them; QM9's: ``gap_ev`` (eV), ``polarisability``
        (bohr³).
    reference : str
        SMILES of the molecule at whose Z1 these were generated; with target values a training
        molecule whose prediction is near them, from which their Z1 was found.
    target : dict
        The values that were asked for; empty where a reference was given.
    wanted : Tensor
        What the predictor says at this Z1, with the target values in their places. Shape [T].
    sampled : int
        Strings that were decoded.
    seed : int
        Of Z0.
    formula : str or None
        The formula that was asked for.
    dropped : dict
        How many were dropped, for each of `STAGES`; with the molecules here they make `sampled`.
    smiles : tuple of str
        As the decoder wrote them, m of them.
    canonical : tuple of str
        As RDKit writes them.
    predictions : Tensor
        Properties of the molecules, encoded anew, in the units of the data. Shape [m, T].
    distances : Tensor
        Euclidean distance in Z0 from the reference: between means, in standard deviations of the
        prior. Shape [m].
    held_out_errors : Tensor
        Prediction minus data of the run's test molecules (validation molecules, if it has no test
        part). Shape [h, T].
    """

    names: tuple[str, ...]
    reference: str
    target: dict[str, float]
    wanted: Tensor
    sampled: int
    seed: int
    formula: str | None
    dropped: dict[str, int]
    smiles: tuple[str, ...]
    canonical: tuple[str, ...]
    predictions: Tensor
    distances: Tensor
    held_out_errors: Tensor

    def __len__(self) -> int:
        return len(self.smiles)

    @property
    def differences(self) -> Tensor:
        """Predictions minus what is wanted, [m, T]."""
        return self.predictions - self.wanted

    @property
    def consistency(self) -> dict[str, Spread]:
        """The self-consistency check: spread of `differences` by property; empty of no molecule."""
        return _spreads(self.names, self.differences)

    @property
    def held_out(self) -> dict[str, Spread]:
        """Spread of `held_out_errors` by property, to compare with."""
        return _spreads(self.names, self.held_out_errors)

    def summary(self) -> dict[str, Any]:
        """Everything but the molecules, as plain JSON values."""
        return {
            "reference": self.reference,
            "target": self.target,
            "wanted": dict(zip(self.names, self.wanted.tolist(), strict=True)),
            "seed": self.seed,
            "formula": self.formula,
            "sampled": self.sampled,
            "dropped": self.dropped,
            "kept": len(self),
            "consistency": {name: asdict(spread) for name, spread in self.consistency.items()},
            "held_out": {name: asdict(spread) for name, spread in self.held_out.items()},
        }


@dataclass(frozen=True, eq=False)
class _Training:
    """What generation asks of the molecules of a run."""

    smiles: list[str]  # of the training part
    targets: Tensor  # [N, T], of the training part
    known: frozenset[str]  # canonical, of the training and the validation part
    held_out_errors: Tensor  # [h, T]

    @cached_property
    def formula(self) -> str | None:
        """The formula that all known molecules have; None where they differ."""
        ours = None
        for smiles in self.known:
            formula = molecular_formula(smiles)
            if ours not in (None, formula):
                return None
            ours = formula
        return ours


class GenerativeModel(Trained):
    """A trained model with `encode`, `predict` and `generate`; `stib_fast.load` makes one.

    Parameters
    ----------
    model : Autoencoder
    experiment : Artificial or MoleculeExperiment
    run : Run
        Where its molecules are named.
    """

    def __init__(
        self, model: Autoencoder, experiment: Artificial | MoleculeExperiment, run: Run
    ) -> None:
        super().__init__(model, experiment)
        self.run = run

    @torch.no_grad()
    def generate(
        self,
        reference: str | None = None,
        target: Mapping[str, float] | None = None,
        *,
        n: int = 500,
        seed: int = 0,
        formula: str | None = "auto",
    ) -> Generation:
        """Generate molecules that share their Z1, which is to say their predicted properties.

        Z0 is drawn from the prior, N(0, 1), each string decoded greedily, and what is no new
        molecule of the right formula dropped and counted (`STAGES`). The molecules of the run's
        data file are read again, at the first call.

        Parameters
        ----------
        reference : str
            SMILES of a molecule whose Z1 is taken, written as the data writes its molecules.
        target : mapping of str to float
            Values of some or all properties in the units of the data, in place of a reference.
            Names as the run has them, with or without the unit behind them (QM9: ``gap_ev`` or
            ``gap`` in eV, ``polarisability`` in bohr³). Z1 is found by minimising the predictor's
            error, from the training molecules (of the first 10,000) whose predictions are nearest,
            one after the other until one leads there.
        n : int
            Strings that are decoded.
        seed : int
            Of Z0.
        formula : str or None
            Which molecules are kept: of this formula, such as ``"C7H10O2"``; of any (None); or
            ``"auto"``: that of the run's molecules if they all have the same, else any.

        Returns
        -------
        Generation

        Raises
        ------
        ValueError
            A run of the artificial experiment, of a model without Z0 and Z1, or without its data;
            not exactly one of reference and target; a reference that is no molecule or that the
            model has no tokens for; a target that the run does not predict, that is outside the
            training molecules' values or that no Z1 was found for; `n` below 1; no formula.

        Examples
        --------
        >>> import stib_fast
        >>> model = stib_fast.load("runs/qm9")  # doctest: +SKIP
        >>> found = model.generate(target={"gap": 6.0, "polarisability": 76.0})  # doctest: +SKIP
        >>> found.smiles, found.predictions, found.dropped  # doctest: +SKIP
        """
        if (reference is None) == (target is None):
            raise ValueError("give either a reference molecule or target values")
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        asked = ordered_formula(formula) if formula not in ("auto", None) else None
        names = self._molecules.predictions
        self._parted()
        values: dict[str, float] = {}
        if reference is not None:
            z1 = self._z1_of(reference)
        else:
            values = _named(target or {}, names)
            reference, z1 = self._z1_for(values)
        wanted = self._predicted_at(z1)[0]
        for name, value in values.items():
            wanted[names.index(name)] = value
        if formula == "auto":
            asked = self._training.formula

        known = self._training.known.union(canonical_smiles([reference]))
        kept, dropped = sift(*self._decoded(z1, n, seed), known=known, formula=asked)
        smiles = tuple(kept.values())
        z0 = self.encode([reference, *smiles]).z0
        distances, order = (z0[1:] - z0[0]).norm(dim=1).sort(stable=True)
        predictions = self.predict([reference, *smiles])[1:]
        rows = order.tolist()
        return Generation(
            names=names,
            reference=reference,
            target=values,
            wanted=wanted,
            sampled=n,
            seed=seed,
            formula=asked,
            dropped=dropped,
            smiles=tuple(smiles[row] for row in rows),
            canonical=tuple(list(kept)[row] for row in rows),
            predictions=predictions[order],
            distances=distances,
            held_out_errors=self._training.held_out_errors,
        )

    @property
    def _molecules(self) -> MoleculeExperiment:
        if isinstance(self.experiment, Artificial):
            raise ValueError(
                f"{self.run.folder} is a run of the artificial experiment: it knows no molecules"
            )
        return self.experiment

    def _parted(self) -> STIBWithoutAdversary:
        """The model, if Y is predicted from a Z1 that stands beside a Z0."""
        model = self.model
        if not isinstance(model, STIBWithoutAdversary) or not model.z0_dim:
            raise ValueError(
                f"{self.run.folder} is a run of {TITLES[self.experiment.config.model.kind]}: there "
                "is no Z1 to hold fixed while Z0 moves; train one with --model stib or stib-no-adv"
            )
        return model

    @cached_property
    def _training(self) -> _Training:
        try:
            experiment = experiment_of(self.run, with_data=True)
        except FileNotFoundError as error:
            raise ValueError(
                f"{self._molecules.config.data} is gone: without the training molecules there is "
                "no telling which ones are new"
            ) from error
        assert isinstance(experiment, MoleculeExperiment)
        data = experiment.encoded
        decode = experiment.tokenizer.decode
        smiles, validation = (decode(data.ids[r]) for r in (data.train_rows, data.validation_rows))
        predicted = self.predict(decode(data.ids[data.evaluated_rows])).double()
        return _Training(
            smiles,
            data.targets[data.train_rows],
            frozenset(text for text in canonical_smiles(smiles + validation) if text),
            predicted - data.targets[data.evaluated_rows],
        )

    def _z1_of(self, reference: str) -> Tensor:
        """Z1 [1, d] of a molecule."""
        if not canonical_smiles([reference])[0]:
            raise ValueError(f"reference {reference!r} is no molecule that RDKit reads")
        try:
            return self.encode([reference]).z1
        except ValueError as error:
            # What follows the semicolon is advice to who makes a vocabulary.
            reason = str(error).removeprefix("row 0: ").partition("; ")[0]
            raise ValueError(
                f"reference: {reason}; write it as the training data writes its molecules"
            ) from None

    def _z1_for(self, values: Mapping[str, float]) -> tuple[str, Tensor]:
        """Z1 [1, d] at which the predictor gives some values, and the molecule it starts from."""
        names = self._molecules.predictions
        columns = [names.index(name) for name in values]
        training = self._training
        for name, column in zip(values, columns, strict=True):
            low, high = training.targets[:, column].aminmax()
            if not low <= values[name] <= high:
                raise ValueError(
                    f"target {name}={values[name]:g} is outside the values that the model was "
                    f"trained on, {float(low):g} to {float(high):g}"
                )
        scale = self.model.targets.std[columns]
        aim = torch.tensor([*values.values()])

        smiles = training.smiles[:MOLECULES]
        off = (self.predict(smiles)[:, columns] - aim) / scale
        nearest = off.square().sum(1).argsort(stable=True)[:STARTS].tolist()
        misses: list[tuple[float, list[float]]] = []
        for row in nearest:
            start = smiles[row]
            z1 = self._descend(self.encode([start]).z1, columns, aim)
            found = self._predicted_at(z1)[0, columns]
            miss = float(((found - aim) / scale).abs().max())
            if miss <= TOLERANCE:
                return start, z1
            misses.append((miss, found.tolist()))
        _, closest = min(misses)
        told = ", ".join(f"{name}={value:.4g}" for name, value in zip(values, closest, strict=True))
        raise ValueError(
            f"found no Z1 at which the model predicts these values; closest: {told}; "
            "train it for more steps, or take other values"
        )

    def _descend(self, z1: Tensor, columns: list[int], aim: Tensor) -> Tensor:
        """The minimum of the predictor's squared error that is next to a point [1, d] of Z1."""
        z1 = z1.clone().requires_grad_()
        scale = self.model.targets.std[columns]
        optimiser = torch.optim.LBFGS([z1], max_iter=100, line_search_fn="strong_wolfe")

        def error() -> Tensor:
            total = ((self._predicted_at(z1)[0, columns] - aim) / scale).square().sum()
            (z1.grad,) = torch.autograd.grad(total, z1)
            return total

        optimiser.step(error)
        return z1.detach()

    def _predicted_at(self, z1: Tensor) -> Tensor:
        """Properties [n, T] predicted from Z1, in the units of the data."""
        return self.model.targets.inverse(self._parted().predictor(z1))

    def _decoded(self, z1: Tensor, n: int, seed: int) -> tuple[list[str], list[bool]]:
        """Strings decoded at Z0 from the prior, and whether each has ended."""
        experiment = self._molecules
        generator = torch.Generator().manual_seed(seed)
        z0 = torch.randn(n, self.model.z0_dim, generator=generator)
        z = torch.cat([z0, z1.expand(n, -1)], dim=1)
        ids = torch.cat([self.model.decoder(part) for part in z.split(CHUNK)])
        ended = (ids == experiment.vocabulary.eos_id).any(1).tolist()
        return experiment.tokenizer.decode(ids), ended


def sift(
    smiles: Sequence[str],
    ended: Sequence[bool],
    *,
    known: Container[str | None],
    formula: str | None,
) -> tuple[dict[str, str], dict[str, int]]:
    """Keep the new molecules among decoded strings, and count the others.

    Parameters
    ----------
    smiles : sequence of str
        Decoded strings.
    ended : sequence of bool
        Whether each has an end mark.
    known : container of str
        Canonical SMILES of molecules that are not new.
    formula : str or None
        As `stib_fast.chem.formula.molecular_formula` writes it; None: any.

    Returns
    -------
    kept : dict
        Canonical SMILES -> the string that wrote it first.
    dropped : dict
        Count for each of `STAGES`.

    Examples
    --------
    >>> kept, dropped = sift(["CCO", "OCC", "CCC", "C("], [True] * 4, known=(), formula="C2H6O")
    >>> kept
    {'CCO': 'CCO'}
    >>> dropped
    {'unfinished': 0, 'invalid': 1, 'other_formula': 1, 'repeated': 1, 'known': 0}
    """
    kept: dict[str, str] = {}
    dropped = dict.fromkeys(STAGES, 0)
    seen: set[str] = set()
    for text, canonical, whole in zip(smiles, canonical_smiles(smiles), ended, strict=True):
        if not whole:
            dropped["unfinished"] += 1
        elif not canonical:  # RDKit reads an empty string as a molecule of no atoms
            dropped["invalid"] += 1
        elif formula is not None and molecular_formula(canonical) != formula:
            dropped["other_formula"] += 1
        elif canonical in seen:
            dropped["repeated"] += 1
        else:
            seen.add(canonical)
            if canonical in known:
                dropped["known"] += 1
            else:
                kept[canonical] = text
    return kept, dropped


def load(folder: str | Path) -> GenerativeModel:
    """Load the model of a run: see `stib_fast.load`."""
    trained = load_trained(folder)
    return GenerativeModel(trained.model, trained.experiment, Run(folder))


def _named(target: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Target values under the names that a run has for them."""
    if not target:
        raise ValueError(f"no target value is given; the run predicts {', '.join(names)}")
    values: dict[str, float] = {}
    for given, value in target.items():
        matching = [name for name in names if name == given]
        matching = matching or [name for name in names if name.startswith(f"{given}_")]
        if len(matching) != 1:
            what = "ambiguous" if matching else "unknown"
            raise ValueError(f"target {given!r} is {what}; the run predicts {', '.join(names)}")
        if matching[0] in values:
            raise ValueError(f"target {matching[0]!r} is given twice")
        values[matching[0]] = value
    return values


def _spreads(names: Sequence[str], differences: Tensor) -> dict[str, Spread]:
    if not len(differences):
        return {}
    return {name: Spread.of(column) for name, column in zip(names, differences.T, strict=True)}
