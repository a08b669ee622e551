"""The models that predict Y: STIB (Wieser et al. 2020, section 4), without its adversary, VAE."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stib_fast.data import Standardiser
from stib_fast.models.autoencoder import Autoencoder, Posterior
from stib_fast.nn import InvarianceCritic


class STIBWithoutAdversary(Autoencoder):
    """Encoder, decoder and predictor around a latent variable in two parts.

    Z = (Z0, Z1) is Gaussian around the encoder's output, with one learned standard deviation for
    each latent dimension, shared by all samples. The decoder reads all of Z, the predictor of Y
    only Z1.

    Parameters
    ----------
    encoder : Module
        x → means of Z, [B, z0_dim + z1_dim].
    decoder : Module
        A `Decoder`.
    predictor : Module
        Z1 [B, z1_dim] → y [B, m].
    z0_dim, z1_dim, targets
        See `Autoencoder`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        predictor: nn.Module,
        z0_dim: int,
        z1_dim: int,
        targets: Standardiser | None = None,
    ) -> None:
        super().__init__(encoder, decoder, z0_dim, z1_dim, targets)
        self.predictor = predictor
        self.log_sigma = nn.Parameter(torch.zeros(z0_dim + z1_dim))

    def posterior(self, x: Tensor) -> Posterior:
        """Return q(z|x)."""
        return Posterior(self.encoder(x).to(self.log_sigma.dtype), self.log_sigma)

    def sample(self, mean: Tensor) -> Tensor:
        """Draw z [B, d] around means [B, d]."""
        return Posterior(mean, self.log_sigma).draw(self.noise(len(mean)))

    def decoder_input(self, z: Tensor, y: Tensor | None) -> Tensor:
        """Return z: the decoder reads nothing else."""
        return z

    def predict(self, x: Tensor) -> Tensor:
        """Return y [B, m] predicted from the mean of Z1, standardised as `targets` does."""
        return self.predictor(self.encode(x).z1)


class STIB(STIBWithoutAdversary):
    """Encoder, decoder, predictor and critic around a latent variable in two parts.

    `STIBWithoutAdversary`, and a critic that reads only Z0.

    Parameters
    ----------
    encoder, decoder, predictor
        See `STIBWithoutAdversary`.
    critic : InvarianceCritic
        Of Z0 and y.
    z0_dim, z1_dim, targets
        See `Autoencoder`.

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
        super().__init__(encoder, decoder, predictor, z0_dim, z1_dim, targets)
        self.critic = critic


class VAE(STIBWithoutAdversary):
    """A variational autoencoder whose predictor reads all of Z: no part of Z is set apart.

    Parameters
    ----------
    encoder, decoder, predictor, targets
        See `STIBWithoutAdversary`.
    z_dim : int
        Dimensions of Z, all of them Z1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        predictor: nn.Module,
        z_dim: int,
        targets: Standardiser | None = None,
    ) -> None:
        super().__init__(encoder, decoder, predictor, 0, z_dim, targets)
