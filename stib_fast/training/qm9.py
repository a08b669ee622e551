"""STIB on the C7H10O2 isomers of QM9 (Wieser et al. 2020, section 5.2): SMILES and properties."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from stib_fast.chem import SmilesTokenizer, Vocabulary
from stib_fast.data import MoleculeTable, ShuffledBatches, Standardiser, read_qm9, split
from stib_fast.metrics import invariance, mae, string_accuracy, token_accuracy
from stib_fast.models import STIB, ScaledMLP, SmilesDecoder, SmilesEncoder
from stib_fast.nn import InvarianceCritic
from stib_fast.training.optimisation import Optimisation
from stib_fast.training.run import Figure

VOCABULARY_FILE = "vocabulary.json"
DIGEST_FILE = "data.sha256"
TRAINING_SAMPLE = 600  # training molecules that are measured beside the held-out ones
CHUNK = 1024  # molecules that are measured at once


@dataclass(frozen=True)
class MoleculeData:
    """Where the molecules come from.

    Parameters
    ----------
    smiles, gap, polarisability : str
        Columns of a CSV file; an xyz archive has none.
    gap_unit : {"hartree", "ev"}
        Unit of the gap in the file.
    validation_fraction : float
        Share of the molecules held out.
    split_seed : int
        Of the choice of those.
    max_length : int or None
        Tokens of a string with its end mark; None: as many as the longest has.
    """

    smiles: str = "smiles"
    gap: str = "gap"
    polarisability: str = "alpha"
    gap_unit: Literal["hartree", "ev"] = "hartree"
    validation_fraction: float = 0.05
    split_seed: int = 0
    max_length: int | None = None


@dataclass(frozen=True)
class SmilesModel:
    """Sizes of the model: Z in two parts, features a side of the critic, widths of the networks."""

    z0_dim: int = 12
    z1_dim: int = 4
    feature_dim: int = 8
    hidden: tuple[int, ...] = (128, 128)
    channels: int = 64
    kernel_size: int = 5
    encoder_hidden: int = 256
    decoder_hidden: int = 128
    embedding_dim: int = 32
    cycle_weight: float = 0.01


@dataclass(frozen=True)
class QM9Config:
    """Configuration of the QM9 experiment; `data` is the file of the molecules."""

    data: str
    molecules: MoleculeData = field(default_factory=MoleculeData)
    model: SmilesModel = field(default_factory=SmilesModel)
    optimisation: Optimisation = field(
        default_factory=lambda: Optimisation(
            steps=4000,
            batch=256,
            learning_rate=4e-3,
            learning_rate_end=0.02,
            warmup=100,
            gradient_clip=1.0,
            invariance_weight=6.0,
            lambda_start=33.0,
            lambda_growth=1.0,
            lambda_max=33.0,
        )
    )


class QM9:
    """STIB on molecules of QM9.

    Parameters
    ----------
    config : QM9Config
        With `molecules.max_length` resolved.
    vocabulary : Vocabulary
    table : MoleculeTable, optional
        Needed for training and evaluation, not for using a trained model.
    """

    name = "qm9"
    figures = ("token_accuracy", "string_accuracy", "mae_gap_ev", "mae_polarisability")

    def __init__(
        self, config: QM9Config, vocabulary: Vocabulary, table: MoleculeTable | None = None
    ) -> None:
        if config.molecules.max_length is None:
            raise ValueError("molecules.max_length must be resolved; use QM9.from_file")
        self.config = config
        self.vocabulary = vocabulary
        self.max_length = config.molecules.max_length
        self.tokenizer = SmilesTokenizer(vocabulary, self.max_length)
        self._molecules = _Molecules(config.molecules, table, self.tokenizer) if table else None

    @classmethod
    def from_file(cls, config: QM9Config) -> QM9:
        """Read the molecules, take the vocabulary from them and resolve `max_length`."""
        table = read_molecules(config)
        vocabulary = Vocabulary.from_smiles(table.smiles)
        if config.molecules.max_length is None:
            tokenizer = SmilesTokenizer(vocabulary, max(map(len, table.smiles)) + 1)
            longest = int(tokenizer.encode(table.smiles).lengths.max())
            config = replace(config, molecules=replace(config.molecules, max_length=longest))
        return cls(config, vocabulary, table)

    @classmethod
    def from_run(cls, config: QM9Config, folder: Path, *, with_data: bool) -> QM9:
        """Build the experiment of a run folder again, with its molecules or without.

        Raises
        ------
        ValueError
            If the file of the molecules is no longer the one of the run.
        """
        vocabulary = Vocabulary.load(folder / VOCABULARY_FILE)
        if not with_data:
            return cls(config, vocabulary)
        if digest(config.data) != (folder / DIGEST_FILE).read_text().strip():
            raise ValueError(f"{config.data} has changed since the run in {folder} began")
        return cls(config, vocabulary, read_molecules(config))

    def save_into(self, folder: Path) -> None:
        """Write the vocabulary and the digest of the molecules' file beside the configuration."""
        self.vocabulary.save(folder / VOCABULARY_FILE)
        (folder / DIGEST_FILE).write_text(digest(self.config.data) + "\n")

    @property
    def optimisation(self) -> Optimisation:
        """Settings of the optimisation."""
        return self.config.optimisation

    @property
    def encoded(self) -> _Molecules:
        """The encoded molecules, in two parts."""
        if self._molecules is None:
            raise ValueError("this experiment was made without its molecules; read them first")
        return self._molecules

    def model(self) -> STIB:
        """Build the untrained model."""
        sizes = self.config.model
        latent_dim = sizes.z0_dim + sizes.z1_dim
        # A model that is loaded reads the standardisation of its targets with its weights.
        targets = (
            Standardiser(torch.zeros(2), torch.ones(2))
            if self._molecules is None
            else self._molecules.standardiser
        )
        return STIB(
            encoder=SmilesEncoder(
                len(self.vocabulary),
                self.max_length,
                latent_dim,
                sizes.channels,
                sizes.kernel_size,
                sizes.encoder_hidden,
            ),
            decoder=SmilesDecoder(
                len(self.vocabulary),
                self.max_length,
                latent_dim,
                self.vocabulary.bos_id,
                self.vocabulary.eos_id,
                self.vocabulary.pad_id,
                sizes.decoder_hidden,
                sizes.embedding_dim,
            ),
            predictor=ScaledMLP([sizes.z1_dim, *sizes.hidden, 2]),
            critic=InvarianceCritic(
                sizes.z0_dim, 2, sizes.feature_dim, sizes.hidden, cycle_weight=sizes.cycle_weight
            ),
            z0_dim=sizes.z0_dim,
            z1_dim=sizes.z1_dim,
            targets=targets,
        )

    def stream(self) -> ShuffledBatches:
        """Start the stream of training batches (ids, standardised targets)."""
        data = self.encoded
        rows = data.train_rows
        return ShuffledBatches(
            data.ids[rows],
            data.standardised[rows],
            batch_size=self.optimisation.batch,
            seed=self.optimisation.data_seed,
        )

    def inputs(self, smiles: Sequence[str]) -> Tensor:
        """SMILES as ids [n, L].

        Raises
        ------
        ValueError
            Naming the row of a string that is malformed, too long, or of unknown tokens.
        """
        return self.tokenizer.encode(smiles).ids

    def measure(self, model: STIB) -> dict[str, Figure]:
        """Measure reconstruction and prediction of the held-out molecules."""
        return self._fit(model, self.encoded.held_out_rows)

    @torch.no_grad()
    def evaluate(self, model: STIB, path: Path | None = None) -> dict[str, Figure]:
        """Measure everything: errors on the held-out part, MI and probes on the whole data set.

        With a `path`, another file of molecules takes the place of both.
        """
        if path is None:
            data = self.encoded
            fit = self._fit(model, data.held_out_rows)
            order = torch.randperm(
                len(data.train_rows), generator=torch.Generator().manual_seed(TRAINING_SAMPLE)
            )
            train = self._fit(model, data.train_rows[order[:TRAINING_SAMPLE]])
            fit |= {f"train_{name}": value for name, value in train.items()}
        else:
            table = read_molecules(replace(self.config, data=str(path)))
            other = QM9(self.config, self.vocabulary, table)
            data = other.encoded
            fit = other._fit(model, torch.arange(len(data.ids)))
        z0 = torch.cat([model.encode(ids).z0 for ids in data.ids.split(CHUNK)])
        standardised = model.targets.transform(data.targets.float())
        return {**fit, **invariance(z0, model.log_sigma[: model.z0_dim], standardised)}

    def _fit(self, model: STIB, rows: Tensor) -> dict[str, Figure]:
        data = self.encoded
        ids, targets = data.ids[rows], data.targets[rows]
        written = torch.cat([model.reconstruct(part) for part in ids.split(CHUNK)])
        predicted = torch.cat([model.predict(part) for part in ids.split(CHUNK)])
        predicted = model.targets.inverse(predicted).double()
        return {
            "token_accuracy": token_accuracy(written, ids, self.vocabulary.pad_id),
            "string_accuracy": string_accuracy(written, ids, self.vocabulary.pad_id),
            "mae_gap_ev": mae(predicted[:, :1], targets[:, :1]),
            "mae_polarisability": mae(predicted[:, 1:], targets[:, 1:]),
        }


class _Molecules:
    """Ids and targets of a table, and its two parts; targets standardised on the training part."""

    def __init__(
        self, data: MoleculeData, table: MoleculeTable, tokenizer: SmilesTokenizer
    ) -> None:
        self.ids = tokenizer.encode(table.smiles).ids
        self.targets = table.targets
        self.train_rows, self.held_out_rows = split(
            len(table), data.validation_fraction, data.split_seed
        )
        self.standardiser = Standardiser.fit(self.targets[self.train_rows])
        self.standardised = self.standardiser.transform(self.targets.float())


def read_molecules(config: QM9Config) -> MoleculeTable:
    """Read the molecules that a configuration names."""
    data = config.molecules
    return read_qm9(config.data, data.gap, data.polarisability, data.smiles, data.gap_unit)


def digest(path: str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        found = hashlib.sha256()
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
