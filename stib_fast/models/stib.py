"""The Symmetry-Transformation Information Bottleneck (Wieser et al. 2020, section 4)."""

from __future__ import annotations

from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from stib_fast.data import Standardiser
from stib_fast.models.blocks import ScaledMLP, VectorDecoder, glorot_
from stib_fast.nn import InvarianceCritic


class Decoder(Protocol):
    """What STIB asks of a decoder."""

    def __call__(self, z: Tensor) -> Tensor:
        """Reconstruct x from z [B, d]."""
        ...

    def loss(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the negative log-likelihood of x up to a constant, [B]."""
        ...


class Latent(NamedTuple):
    """The two parts of Z: Z0 [B, n0], which is to know nothing of Y, and Z1 [B, n1]."""

    z0: Tensor
    z1: Tensor


class STIB(nn.Module):
    """Encoder, decoder, predictor and critic around a latent variable in two parts.

    Z = (Z0, Z1) is Gaussian around the encoder's output, with one learned standard deviation for
    each latent dimension, shared by all samples. The decoder reads all of Z, the predictor of Y
    only Z1, the critic only Z0.

    Parameters
    ----------
    encoder : Module
        x → means of Z, [B, z0_dim + z1_dim].
    decoder : Module
        A `Decoder`.
    predictor : Module
        Z1 [B, z1_dim] → y [B, m].
    critic : InvarianceCritic
        Of Z0 and y.
    z0_dim : int
        Dimensions of Z0, the first of Z.
    z1_dim : int
        Dimensions of Z1, the last of Z.
    targets : Standardiser, optional
        Between the units of the data and y as the model sees it; saved with the weights.

    Examples
    --------
    >>> import torch
    >>> from stib_fast.models import vector_stib
    >>> model = vector_stib(x_dim=2, y_dim=2, z0_dim=2, z1_dim=1)
    >>> model.encode(torch.zeros(5, 2)).z0.shape, model.predict(torch.zeros(5, 2)).shape
    (torch.Size([5, 2]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        predictor: nn.Module,
        critic: InvarianceCritic,
        z0_dim: int,
        z1_dim: int,
        targets: Standardiser | None = None,
    ) -> None:
        super().__init__()
        self.targets = targets or Standardiser(torch.zeros(1), torch.ones(1))
        self.z0_dim = z0_dim
        self.z1_dim = z1_dim
        self.encoder = encoder
        self.decoder = decoder
        self.predictor = predictor
        self.critic = critic
        self.log_sigma = nn.Parameter(torch.zeros(z0_dim + z1_dim))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.log_sigma.device

    def noise(self, rows: int) -> Tensor:
        """Draw standard normal noise [rows, d], as `sample` takes it."""
        return torch.randn(
            rows, len(self.log_sigma), dtype=self.log_sigma.dtype, device=self.device
        )

    def sample(self, mean: Tensor, noise: Tensor | None = None) -> Tensor:
        """Draw z [B, d] around means [B, d]: by a noise that was drawn before, or a new one."""
        noise = self.noise(len(mean)) if noise is None else noise
        return mean + self.log_sigma.exp() * noise

    def split(self, z: Tensor) -> Latent:
        """Part z [B, d] into Z0 and Z1."""
        return Latent(*z.split([self.z0_dim, self.z1_dim], dim=1))

    def encode(self, x: Tensor) -> Latent:
        """Return the means of Z0 and Z1."""
        return self.split(self.encoder(x))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return what the decoder makes of the means."""
        return self.decoder(self.encoder(x))

    def reconstruction_loss(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the decoder's loss of each row, [B]."""
        return cast(Decoder, self.decoder).loss(z, x)

    def predict(self, x: Tensor) -> Tensor:
        """Return y [B, m] predicted from the mean of Z1, standardised as `targets` does."""
        return self.predictor(self.encode(x).z1)


def vector_stib(
    x_dim: int,
    y_dim: int,
    z0_dim: int,
    z1_dim: int,
    *,
    feature_dim: int = 8,
    hidden: tuple[int, ...] = (128, 128),
    activation: str = "silu",
    encoder_bias: bool = True,
    glorot: bool = False,
    cycle_weight: float = 0.01,
    x_scale: float = 1.0,
    y_scale: float = 1.0,
) -> STIB:
    """STIB on real vectors: every network an MLP.

    Parameters
    ----------
    x_dim, y_dim, z0_dim, z1_dim : int
        Columns of x, y, Z0 and Z1.
    feature_dim : int
        Features a side of the critic and the bijection: the paper's is 2; with 8 or more the
        critic sees non-linear dependence.
    hidden, activation
        Of each network.
    encoder_bias : bool
        The authors' encoder has none.
    glorot : bool
        The authors' initialisation instead of torch's.
    cycle_weight : float
        Weight of the bijection's loss against I in nats.
    x_scale, y_scale : float
        About the spread of x and y.

    Returns
    -------
    STIB

    Examples
    --------
    >>> from stib_fast.models import vector_stib
    >>> sum(p.numel() for p in vector_stib(2, 2, 2, 1, hidden=(8,)).parameters())
    420
    """
    critic = InvarianceCritic(
        z0_dim, y_dim, feature_dim, hidden, activation, cycle_weight=cycle_weight, y_scale=y_scale
    )
    model = STIB(
        encoder=ScaledMLP(
            [x_dim, *hidden, z0_dim + z1_dim], activation, encoder_bias, input_scale=x_scale
        ),
        decoder=VectorDecoder([z0_dim + z1_dim, *hidden, x_dim], activation, output_scale=x_scale),
        predictor=ScaledMLP([z1_dim, *hidden, y_dim], activation, output_scale=y_scale),
        critic=critic,
        z0_dim=z0_dim,
        z1_dim=z1_dim,
    )
    if glorot:
        glorot_(model)
    return model
