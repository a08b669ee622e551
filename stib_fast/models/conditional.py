"""The models whose decoder is told Y, so that Z need not know it: CVAE and CVIB."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stib_fast.data import Standardiser
from stib_fast.models.autoencoder import Autoencoder, Posterior


class CVAE(Autoencoder):
    """The conditional variational autoencoder (Sohn et al. 2015) as the paper compares with it.

    The decoder reads z and y; nothing predicts y. The encoder reads x alone, as in the authors'
    code, so that Z is known of an x without its y. q(z|x) has a standard deviation of its own for
    each sample, as there and in Moyer et al. 2018: with one shared by all, CVIB's divergence of
    posteriors would be no more than the spread of their means.

    Parameters
    ----------
    encoder : Module
        x → means and log σ of Z, [B, 2 z_dim].
    decoder : Module
        A `Decoder`, of z and y / y_scale side by side, [B, z_dim + m].
    z_dim : int
        Dimensions of Z, all of them Z0.
    targets : Standardiser, optional
        See `Autoencoder`.
    y_scale : float
        About the spread of y.

    Examples
    --------
    >>> import torch
    >>> from stib_fast.models import vector_model
    >>> model = vector_model("cvae", x_dim=2, y_dim=2, z0_dim=2, z1_dim=1)
    >>> x, y = torch.zeros(5, 2), torch.zeros(5, 2)
    >>> model.encode(x).z0.shape, model.reconstruct(x, y).shape, model.predict(x)
    (torch.Size([5, 3]), torch.Size([5, 2]), None)
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        z_dim: int,
        targets: Standardiser | None = None,
        y_scale: float = 1.0,
    ) -> None:
        super().__init__(encoder, decoder, z_dim, 0, targets)
        self.y_scale = y_scale

    def posterior(self, x: Tensor) -> Posterior:
        """Return q(z|x)."""
        return Posterior(*self.encoder(x).to(self.dtype).chunk(2, dim=1))

    def decoder_input(self, z: Tensor, y: Tensor | None) -> Tensor:
        """Return z and y side by side.

        Raises
        ------
        ValueError
            There is no y.
        """
        if y is None:
            raise ValueError("the decoder of a CVAE or CVIB reads y beside z; give it, too")
        return torch.cat([z, y / self.y_scale], dim=1)

    def predict(self, x: Tensor) -> None:
        """Return None: a CVAE is told y."""


class CVIB(CVAE):
    """The networks of a CVAE; its objective bounds what Z knows of Y (Moyer et al. 2018)."""
