"""The five models by the names that the command line has for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import nn

from stib_fast.data import Standardiser
from stib_fast.models.autoencoder import Autoencoder
from stib_fast.models.blocks import ScaledMLP, VectorDecoder, glorot_
from stib_fast.models.conditional import CVAE, CVIB
from stib_fast.models.stib import STIB, VAE, STIBWithoutAdversary
from stib_fast.nn import InvarianceCritic

Kind = Literal["stib", "stib-no-adv", "vae", "cvae", "cvib"]

TITLES: dict[Kind, str] = {
    "stib": "STIB",
    "stib-no-adv": "STIB w/o adv.",
    "vae": "VAE",
    "cvae": "CVAE",
    "cvib": "CVIB",
}
"""Names in the paper's tables."""


def assembled(
    kind: Kind,
    *,
    encoder: Callable[..., nn.Module],
    decoder: Callable[[int], nn.Module],
    predictor: Callable[[int], nn.Module],
    critic: Callable[[], InvarianceCritic],
    y_dim: int,
    z0_dim: int,
    z1_dim: int,
    targets: Standardiser | None = None,
    y_scale: float = 1.0,
) -> Autoencoder:
    """Put a model together; all kinds have z0_dim + z1_dim latent dimensions.

    Parameters
    ----------
    kind : {"stib", "stib-no-adv", "vae", "cvae", "cvib"}
    encoder : callable
        Makes an encoder from its number of outputs, or from two: those of Z0 and of Z1, where Z
        has both.
    decoder, predictor : callable
        Make one with so many inputs.
    critic : callable
        Makes the critic of Z0 and y.
    y_dim, z0_dim, z1_dim : int
        Columns of y, Z0 and Z1.
    targets, y_scale
        See `Autoencoder` and `CVAE`.

    Raises
    ------
    ValueError
        Z0 or Z1 has no dimension.
    """
    _require_parts(z0_dim, z1_dim)
    z_dim = z0_dim + z1_dim
    if kind == "cvae" or kind == "cvib":
        conditional = CVAE if kind == "cvae" else CVIB
        return conditional(encoder(2 * z_dim), decoder(z_dim + y_dim), z_dim, targets, y_scale)
    if kind == "vae":
        return VAE(encoder(z_dim), decoder(z_dim), predictor(z_dim), z_dim, targets)
    networks = encoder(z0_dim, z1_dim), decoder(z_dim)
    if kind == "stib-no-adv":
        return STIBWithoutAdversary(*networks, predictor(z1_dim), z0_dim, z1_dim, targets)
    return STIB(*networks, predictor(z1_dim), critic(), z0_dim, z1_dim, targets)


def vector_model(
    kind: Kind,
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
) -> Autoencoder:
    """Make a model of real vectors: every network an MLP.

    Parameters
    ----------
    kind : {"stib", "stib-no-adv", "vae", "cvae", "cvib"}
    x_dim, y_dim, z0_dim, z1_dim : int
        Columns of x, y, Z0 and Z1; z0_dim + z1_dim of Z where it has no parts.
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
    Autoencoder

    Examples
    --------
    >>> from stib_fast.models import vector_model
    >>> sum(p.numel() for p in vector_model("stib", 2, 2, 2, 1, hidden=(8,)).parameters())
    420
    """
    _require_parts(z0_dim, z1_dim)
    # Before the other networks: a seed keeps the weights that it gave from the beginning.
    critic = InvarianceCritic(
        z0_dim, y_dim, feature_dim, hidden, activation, cycle_weight=cycle_weight, y_scale=y_scale
    )
    model = assembled(
        kind,
        encoder=lambda *widths: ScaledMLP(
            [x_dim, *hidden, sum(widths)], activation, encoder_bias, input_scale=x_scale
        ),
        decoder=lambda width: VectorDecoder(
            [width, *hidden, x_dim], activation, output_scale=x_scale
        ),
        predictor=lambda width: ScaledMLP(
            [width, *hidden, y_dim], activation, output_scale=y_scale
        ),
        critic=lambda: critic,
        y_dim=y_dim,
        z0_dim=z0_dim,
        z1_dim=z1_dim,
        y_scale=y_scale,
    )
    if glorot:
        glorot_(model)
    return model


vector_stib = partial(vector_model, "stib")
"""`vector_model` of STIB."""


def _require_parts(z0_dim: int, z1_dim: int) -> None:
    for name, dim in (("z0_dim", z0_dim), ("z1_dim", z1_dim)):
        if dim < 1:
            raise ValueError(f"{name} must be at least 1; got {dim}")
