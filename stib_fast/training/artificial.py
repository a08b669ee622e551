"""The artificial experiment of Wieser et al. 2020, section 5.1."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy
import torch
from torch import Tensor

from stib_fast.data import Spiral, SpiralStream, sample
from stib_fast.functional import knn_mi
from stib_fast.metrics import invariance, mae, posterior_draw
from stib_fast.models import Autoencoder, Kind, vector_model
from stib_fast.training.execution import Execution
from stib_fast.training.optimisation import Optimisation
from stib_fast.training.run import Figure

# Fresh points for every evaluation, the same for every run, and others to follow training by.
# torch's CPU generator keeps 32 bits of a seed: these, the training streams' and the weights'
# (small ones) are kept apart within them.
EVALUATION_SEED = 2_020_000_000
VALIDATION_SEED = 2_021_000_000
EVALUATION_POINTS = 10_000


@dataclass(frozen=True)
class VectorModel:
    """Kind, sizes and constants of `stib_fast.models.vector_model`, which describes them."""

    kind: Kind = "stib"
    z0_dim: int = 2
    z1_dim: int = 1
    feature_dim: int = 8
    hidden: tuple[int, ...] = (128, 128)
    activation: str = "silu"
    encoder_bias: bool = True
    glorot: bool = False
    cycle_weight: float = 0.01
    x_scale: float = 2.309  # the spread of U(-4, 4)
    y_scale: float = 2.0


@dataclass(frozen=True)
class ArtificialConfig:
    """Configuration of the artificial experiment.

    Parameters
    ----------
    select_by_validation : bool
        Keep, beside the model of the last step, that of the last measurement along training at
        which neither MAE was above that of the model kept before: the authors' rule, though on
        validation points. It is evaluated, too.
    """

    model: VectorModel = field(default_factory=VectorModel)
    optimisation: Optimisation = field(default_factory=Optimisation)
    execution: Execution = field(default_factory=Execution)
    select_by_validation: bool = False


class Artificial:
    """A model of the noisy spiral: fresh batches without end, measured on fresh points.

    Parameters
    ----------
    config : ArtificialConfig
    """

    name = "artificial"
    figures = ("mae_x", "mae_y", "mi_bits", "mi_bits_sampled")

    def __init__(self, config: ArtificialConfig) -> None:
        self.config = config

    @property
    def selected_by(self) -> tuple[str, ...]:
        """Names of the figures by which a model is selected beside the last."""
        return ("mae_x", "mae_y") if self.config.select_by_validation else ()

    @property
    def optimisation(self) -> Optimisation:
        """Settings of the optimisation."""
        return self.config.optimisation

    @property
    def execution(self) -> Execution:
        """Where and how the steps run."""
        return self.config.execution

    def model(self) -> Autoencoder:
        """Build the untrained model."""
        return vector_model(x_dim=2, y_dim=2, **vars(self.config.model))

    def stream(self, device: torch.device, share: slice) -> SpiralStream:
        """Start the stream of training batches, of each a process's share, drawn on a device."""
        return SpiralStream(
            self.optimisation.batch, self.optimisation.data_seed, device=device, share=share
        )

    def inputs(self, x: Tensor | numpy.ndarray) -> Tensor:
        """Points [n, 2] as the model reads them.

        Raises
        ------
        ValueError
            For another shape, or NaN or infinity.
        """
        x = torch.as_tensor(x, dtype=torch.float32)
        if x.dim() != 2 or x.shape[1] != 2:
            raise ValueError(f"x must have shape [n, 2]; got {tuple(x.shape)}")
        if not x.isfinite().all():
            raise ValueError(f"x holds NaN or infinity in {int((~x.isfinite()).any(1).sum())} rows")
        return x

    def save_into(self, folder: Path) -> None:
        """Write nothing: the configuration says it all."""

    def measure(self, model: Autoencoder) -> dict[str, Figure]:
        """Measure the figures that are followed along training, wherever the model is.

        On points that `evaluate` does not see: settings and steps may be chosen by these figures.
        """
        data = validation_points()
        mean, log_sigma = model.invariant_part(data.x.to(model.device))
        drawn = posterior_draw(mean, log_sigma)
        return {
            **_errors(model, data),
            "mi_bits": float(knn_mi(mean.cpu().double(), data.y.double())) / math.log(2),
            "mi_bits_sampled": float(knn_mi(drawn.double(), data.y.double())) / math.log(2),
        }

    @torch.no_grad()
    def evaluate(self, model: Autoencoder, path: Path | None = None) -> dict[str, Figure]:
        """Measure everything, on fresh points or on those of an npz file (arrays x, y).

        Raises
        ------
        ValueError
            If the file does not hold such arrays.
        """
        data = evaluation_points() if path is None else read_points(path)
        return {**_errors(model, data), **invariance(*model.invariant_part(data.x), data.y)}


def _errors(model: Autoencoder, data: Spiral) -> dict[str, Figure]:
    """MAE(X), and MAE(Y) or None of a model that does not predict Y."""
    x, y = data.x.to(model.device), data.y.to(model.device)
    predicted = model.predict(x)
    return {
        "mae_x": mae(model.reconstruct(x, y), x),
        "mae_y": None if predicted is None else mae(predicted, y),
    }


def evaluation_points() -> Spiral:
    """Draw the 10,000 fresh points on which every trained model is measured."""
    return _points(EVALUATION_SEED)


def validation_points() -> Spiral:
    """Draw the 10,000 fresh points on which every run is measured along training."""
    return _points(VALIDATION_SEED)


def _points(seed: int) -> Spiral:
    return sample(EVALUATION_POINTS, generator=torch.Generator().manual_seed(seed))


def read_points(path: Path) -> Spiral:
    """Read arrays x [n, 2] and y [n, 2] from an npz file; t is what x says without noise.

    Raises
    ------
    ValueError
        If the file is not such a file; the message names the array.
    """
    x, y = read_arrays(path, ("x", "y"))
    return Spiral(x, y, 2 * x[:, 0] + x[:, 1])


def read_arrays(path: Path, names: tuple[str, ...]) -> list[Tensor]:
    """Read arrays [n, 2] of one length from an npz file, as float32.

    Raises
    ------
    ValueError
        If the file is not such a file; the message names the array.
    """
    try:
        with numpy.load(path, allow_pickle=False) as arrays:
            content = {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, AttributeError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable npz file ({error})") from error
    for name in names:
        if name not in content:
            raise ValueError(f"{path}: no array {name!r}; it has {', '.join(content) or 'none'}")
        array, first = content[name], content[names[0]]
        if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "fiu":
            raise ValueError(
                f"{path}: array {name!r} is {array.dtype} {array.shape}, not numbers [n, 2]"
            )
        if len(array) != len(first):
            raise ValueError(f"{path}: array {name!r} has {len(array)} rows, not {len(first)}")
        if not numpy.isfinite(array).all():
            raise ValueError(f"{path}: array {name!r} holds NaN or infinity")
    return [torch.as_tensor(content[name], dtype=torch.float32) for name in names]
