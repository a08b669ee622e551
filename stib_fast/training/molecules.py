"""The models on molecules: SMILES in, named properties out; `qm9`, `table`, `zinc` configure it."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from stib_fast.chem import SmilesTokenizer, Vocabulary, VocabularyBuilder
from stib_fast.data import MoleculeTable, Rows, ShuffledBatches, Standardiser
from stib_fast.metrics import invariance, mae, string_accuracy, token_accuracy
from stib_fast.models import (
    Autoencoder,
    Kind,
    ScaledMLP,
    SmilesDecoder,
    SmilesEncoder,
    STIBWithoutAdversary,
    Towers,
    assembled,
)
from stib_fast.nn import InvarianceCritic
from stib_fast.training.execution import Execution
from stib_fast.training.molecule_data import (
    DIGEST_FILE,
    REPORT_FILE,
    MoleculeData,
    MoleculeSet,
    Part,
    TrainingSet,
    data_report,
    digest,
    encode_table,
    invariance_rows,
    require_rows,
    sample,
)
from stib_fast.training.optimisation import Optimisation
from stib_fast.training.run import Figure, write_text

if TYPE_CHECKING:
    from typing_extensions import Self

VOCABULARY_FILE = "vocabulary.json"
CHUNK = 1024  # molecules that are measured at once
TRAINING_SAMPLE = 600  # training molecules that are measured beside the test molecules
FOLLOWED = 2000  # validation molecules that are measured along training, at most


@dataclass(frozen=True)
class SmilesModel:
    """The model: its kind, Z in two parts, features a side of the critic, widths of the networks.

    Parameters
    ----------
    kind : {"stib", "stib-no-adv", "vae", "cvae", "cvib"}
        The last three have z0_dim + z1_dim dimensions in one part.
    feature_dim : int or None
        Features a side of the critic, k. The bias of what it estimates is k²/2B nats, which the
        encoder takes for dependence and fights; None: √B/2, which keeps it at 1/8 nat or below.
    """

    kind: Kind = "stib"
    z0_dim: int = 12
    z1_dim: int = 4
    feature_dim: int | None = None
    hidden: tuple[int, ...] = (128, 128)
    channels: int = 64
    kernel_size: int = 5
    encoder_hidden: int = 256
    decoder_hidden: int = 128
    embedding_dim: int = 32
    cycle_weight: float = 0.01


def molecule_optimisation(steps: int, batch: int) -> Optimisation:
    """Settings found by QM9's validation part, and by the MI of all of its molecules."""
    return Optimisation(
        steps=steps,
        batch=batch,
        learning_rate=4e-3,
        learning_rate_end=0.02,
        warmup=100,
        gradient_clip=1.0,
        target_weight=3.0,
        invariance_weight=0.3,
        critic_steps=3,
        lambda_start=16.0,
        lambda_growth=1.0,
        lambda_max=16.0,
    )


@dataclass(frozen=True)
class MoleculeConfig:
    """Configuration of an experiment on molecules; `data` is their file."""

    data: str
    molecules: MoleculeData = field(default_factory=MoleculeData)
    model: SmilesModel = field(default_factory=SmilesModel)
    optimisation: Optimisation = field(
        default_factory=lambda: molecule_optimisation(steps=2500, batch=256)
    )
    execution: Execution = field(default_factory=Execution)


Config = TypeVar("Config", bound=MoleculeConfig)


class MoleculeExperiment(ABC, Generic[Config]):
    """A model of molecules.

    Parameters
    ----------
    config : MoleculeConfig
        With `molecules.max_length` resolved.
    vocabulary : Vocabulary
    molecules : MoleculeSet, optional
        Needed for training and evaluation, not for using a trained model.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[MoleculeConfig]]
    selected_by: ClassVar[tuple[str, ...]] = ()  # the model of the last step is the only one

    def __init__(
        self,
        config: Config,
        vocabulary: Vocabulary,
        molecules: MoleculeSet | None = None,
    ) -> None:
        if config.molecules.max_length is None:
            raise ValueError("molecules.max_length must be resolved; use from_file")
        self.config = config
        self.vocabulary = vocabulary
        self.max_length = config.molecules.max_length
        self.tokenizer = SmilesTokenizer(vocabulary, self.max_length)
        self._encoded: TrainingSet | None = None
        if molecules is not None:
            self._encoded = TrainingSet(
                molecules, config.molecules, config.optimisation.batch, self.predictions
            )

    @property
    @abstractmethod
    def predictions(self) -> tuple[str, ...]:
        """Names of what is predicted, with their units."""

    @classmethod
    @abstractmethod
    def read(cls, config: Config) -> MoleculeTable:
        """Read the molecules that a configuration names, each once."""

    @classmethod
    def from_file(cls, config: Config) -> Self:
        """Read the molecules, take the vocabulary from them all and resolve `max_length`.

        Tokens and lengths are those of the test part, too: its strings could not be read else.
        """
        table = cls.read(config)
        builder = VocabularyBuilder()
        builder.add(table.smiles)
        vocabulary = builder.vocabulary()
        if config.molecules.max_length is None:
            with_end = builder.longest + 1
            config = replace(config, molecules=replace(config.molecules, max_length=with_end))
        molecules = encode_table(table, vocabulary, config.molecules)
        molecules.tell()
        return cls(config, vocabulary, molecules)

    @classmethod
    def from_run(cls, config: Config, folder: Path, *, with_data: bool) -> Self:
        """Build the experiment of a run folder again, with its molecules or without.

        Raises
        ------
        ValueError
            If the file of the molecules is no longer the one of the run, or gives other molecules.
        """
        vocabulary = Vocabulary.load(folder / VOCABULARY_FILE)
        if not with_data:
            return cls(config, vocabulary)
        if digest(config.data) != (folder / DIGEST_FILE).read_text().strip():
            raise ValueError(f"{config.data} has changed since the run in {folder} began")
        molecules, kept = cls.load(config, vocabulary), data_report(folder)["kept"]
        if kept != len(molecules):
            raise ValueError(
                f"{config.data} gives {len(molecules)} molecules, but {kept} when the "
                f"run in {folder} began; its run.json names the versions of then"
            )
        return cls(config, vocabulary, molecules)

    @classmethod
    def load(cls, config: Config, vocabulary: Vocabulary) -> MoleculeSet:
        """Read the molecules of a configuration and encode them under a known vocabulary."""
        return encode_table(cls.read(config), vocabulary, config.molecules)

    def save_into(self, folder: Path) -> None:
        """Write vocabulary, digest of the file and account of its rows beside the configuration."""
        self.vocabulary.save(folder / VOCABULARY_FILE)
        write_text(folder / DIGEST_FILE, digest(self.config.data) + "\n")
        write_text(
            folder / REPORT_FILE, json.dumps(self.encoded.molecules.report(), indent=2) + "\n"
        )

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what `measure` returns."""
        return (
            "token_accuracy",
            "string_accuracy",
            *(f"mae_{name}" for name in self.predictions),
            *(f"r2_{name}" for name in self.predictions),
        )

    @property
    def optimisation(self) -> Optimisation:
        """Settings of the optimisation."""
        return self.config.optimisation

    @property
    def execution(self) -> Execution:
        """Where and how the steps run."""
        return self.config.execution

    @property
    def encoded(self) -> TrainingSet:
        """The encoded molecules, in three parts."""
        if self._encoded is None:
            raise ValueError("this experiment was made without its molecules; read them first")
        return self._encoded

    def model(self) -> Autoencoder:
        """Build the untrained model."""
        sizes = self.config.model
        count = len(self.predictions)
        feature_dim = sizes.feature_dim
        if feature_dim is None:
            feature_dim = max(1, math.isqrt(self.optimisation.batch) // 2)
        # A model that is loaded reads the standardisation of its targets with its weights.
        targets = (
            Standardiser(torch.zeros(count), torch.ones(count))
            if self._encoded is None
            else self._encoded.standardiser
        )
        return assembled(
            sizes.kind,
            encoder=lambda *widths: Towers(
                SmilesEncoder(
                    len(self.vocabulary),
                    self.max_length,
                    width,
                    sizes.channels,
                    sizes.kernel_size,
                    sizes.encoder_hidden,
                )
                for width in widths
            ),
            decoder=lambda width: SmilesDecoder(
                len(self.vocabulary),
                self.max_length,
                width,
                self.vocabulary.bos_id,
                self.vocabulary.eos_id,
                self.vocabulary.pad_id,
                sizes.decoder_hidden,
                sizes.embedding_dim,
            ),
            predictor=lambda width: ScaledMLP([width, *sizes.hidden, count]),
            critic=lambda: InvarianceCritic(
                sizes.z0_dim,
                count,
                feature_dim,
                sizes.hidden,
                cycle_weight=sizes.cycle_weight,
            ),
            y_dim=count,
            z0_dim=sizes.z0_dim,
            z1_dim=sizes.z1_dim,
            targets=targets,
        )

    def stream(self, device: torch.device, share: slice) -> ShuffledBatches:
        """Start the stream of training batches (ids, standardised targets), of each a share.

        A GPU holds all molecules.
        """
        data, rows = self.encoded, self.encoded.train_rows
        parts: list[Rows] = [Part(data.ids, rows), Part(data.standardised, rows)]
        if device.type != "cpu":
            parts = [data.ids[rows].to(device), data.standardised[rows].to(device)]
        return ShuffledBatches(
            *parts,
            batch_size=self.optimisation.batch,
            seed=self.optimisation.data_seed,
            device=device,
            share=share,
        )

    def inputs(self, smiles: Sequence[str]) -> Tensor:
        """SMILES as ids [n, L].

        Raises
        ------
        ValueError
            Naming the row of a string that is malformed, too long, or of unknown tokens.
        """
        return self.tokenizer.encode(smiles).ids

    def measure(self, model: Autoencoder) -> dict[str, Figure]:
        """Measure reconstruction and prediction of the validation molecules, at most 2,000."""
        data = self.encoded
        return self._fit(model, data.molecules, sample(data.validation_rows, FOLLOWED))

    @torch.no_grad()
    def evaluate(self, model: Autoencoder, path: Path | None = None) -> dict[str, Figure]:
        """Measure everything.

        Errors and accuracies on all test molecules and, as ``train_…``, on a sample of 600 training
        molecules; MI and probes on the whole data set, and above 10,000 molecules on the test
        molecules, at most 5,000 of them: always the same sample. Validation molecules take the
        place of test molecules in a run without them (`MoleculeData`).

        With a `path`, another file of molecules takes the place of all parts.

        Raises
        ------
        ValueError
            The other file cannot be read, or holds too few molecules to measure invariance on.
        """
        if path is None:
            data = self.encoded.molecules
            evaluated = self.encoded.evaluated_rows
            fit = self._fit(model, data, evaluated)
            train = self._fit(model, data, sample(self.encoded.train_rows, TRAINING_SAMPLE))
            fit |= {f"train_{name}": value for name, value in train.items()}
        else:
            data = self.load(replace(self.config, data=str(path)), self.vocabulary)
            data.tell()
            require_rows(data, self.predictions)
            evaluated = torch.arange(len(data))
            fit = self._fit(model, data, evaluated)
        rows = invariance_rows(evaluated, len(data))
        beside = _in_chunks(
            lambda ids: torch.cat(model.invariant_part(ids), dim=1), model.device, rows, data.ids
        )
        mean, log_sigma = beside.chunk(2, dim=1)
        return {**fit, **invariance(mean, log_sigma, _standardised(model, data)[rows])}

    def _fit(self, model: Autoencoder, data: MoleculeSet, rows: Tensor) -> dict[str, Figure]:
        ids = data.ids[rows]
        written = _in_chunks(
            model.reconstruct, model.device, rows, data.ids, _standardised(model, data)
        )
        figures: dict[str, Figure] = dict.fromkeys(self.figures)
        figures["token_accuracy"] = token_accuracy(written, ids, self.vocabulary.pad_id)
        figures["string_accuracy"] = string_accuracy(written, ids, self.vocabulary.pad_id)
        if not isinstance(model, STIBWithoutAdversary):  # predicts nothing
            return figures
        predicted = _in_chunks(
            lambda ids: model.targets.inverse(model.predict(ids)), model.device, rows, data.ids
        ).double()
        columns = zip(predicted.split(1, dim=1), data.targets[rows].split(1, dim=1), strict=True)
        for name, pair in zip(self.predictions, columns, strict=True):
            figures[f"mae_{name}"] = mae(*pair)
            figures[f"r2_{name}"] = _r2(*pair)
        return figures


def _in_chunks(
    function: Callable[..., Tensor], device: torch.device, rows: Tensor, *sources: Rows
) -> Tensor:
    """Results on the CPU of a function, on a device, of rows of the sources."""
    return torch.cat(
        [
            function(*(source[part].to(device) for source in sources)).cpu()
            for part in rows.split(CHUNK)
        ]
    )


def _standardised(model: Autoencoder, data: MoleculeSet) -> Tensor:
    """Targets [N, T] as a model sees them, where it is."""
    return model.targets.transform(data.targets.float().to(model.device))


def _r2(predicted: Tensor, target: Tensor) -> float | None:
    """Share of the target's variance that the prediction explains; None where there is none."""
    variance = (target - target.mean()).square().sum()
    return float(1 - (predicted - target).square().sum() / variance) if variance > 0 else None
