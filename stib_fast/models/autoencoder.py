"""What the five models share: an encoder, a decoder and a Gaussian latent variable between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from stib_fast.data import Standardiser


class Decoder(Protocol):
    """What the models ask of a decoder."""

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


class Posterior(NamedTuple):
    """The Gaussian q(z|x) of each row: means [B, d]; log σ [d], shared by all rows, or [B, d]."""

    mean: Tensor
    log_sigma: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """Draw z [B, d] with standard normal noise [B, d]."""
        return self.mean + self.log_sigma.exp() * noise


class Autoencoder(nn.Module, ABC):
    """Encoder and decoder around a Gaussian latent variable.

    Z = (Z0, Z1), one of which may be empty. A model says what q(z|x) is, what the decoder reads
    beside z, and how Y is predicted, if it is.

    Parameters
    ----------
    encoder, decoder : Module
        The latter a `Decoder`.
    z0_dim : int
        Dimensions of Z0, the first of Z.
    z1_dim : int
        Dimensions of Z1, the last of Z.
    targets : Standardiser, optional
        Between the units of the data and y as the model sees it; saved with the weights.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
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

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.targets.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the latent variable and the losses, whatever the dtype of products."""
        return self.targets.mean.dtype

    @abstractmethod
    def posterior(self, x: Tensor) -> Posterior:
        """Return q(z|x)."""

    @abstractmethod
    def decoder_input(self, z: Tensor, y: Tensor | None) -> Tensor:
        """Return what the decoder reads.

        Raises
        ------
        ValueError
            The decoder reads y, and there is none.
        """

    @abstractmethod
    def predict(self, x: Tensor) -> Tensor | None:
        """Return y [B, m] predicted from the means, standardised as `targets` does.

        None of a model that predicts nothing.
        """

    def noise(self, rows: int) -> Tensor:
        """Draw standard normal noise [rows, d], as `Posterior.draw` takes it."""
        return torch.randn(rows, self.z0_dim + self.z1_dim, dtype=self.dtype, device=self.device)

    def split(self, z: Tensor) -> Latent:
        """Part z [B, d] into Z0 and Z1."""
        return Latent(*z.split([self.z0_dim, self.z1_dim], dim=1))

    def encode(self, x: Tensor) -> Latent:
        """Return the means of Z0 and Z1."""
        return self.split(self.posterior(x).mean)

    def invariant_part(self, x: Tensor) -> Posterior:
        """Return q(z0|x), whose invariance is measured, or q(z|x) where there is no Z0.

        Means and log σ are both [B, d].
        """
        mean, log_sigma = self.posterior(x)
        width = self.z0_dim or self.z1_dim
        return Posterior(mean[:, :width], log_sigma.expand_as(mean)[:, :width])

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return what the decoder makes of the means, and of y where it reads that."""
        return self.decoder(self.decoder_input(self.posterior(x).mean, y))

    def reconstruction_loss(self, z: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the decoder's loss of each row, [B]."""
        return cast(Decoder, self.decoder).loss(self.decoder_input(z, y), x)
