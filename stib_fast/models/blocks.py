"""Networks that the models share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stib_fast.nn import MLP


class ScaledMLP(nn.Module):
    """An MLP between variables of known size: x / input_scale in, times output_scale out.

    Parameters
    ----------
    sizes, activation, bias
        See `stib_fast.nn.MLP`.
    input_scale, output_scale : float
        About the spread of the input and of the output.

    Examples
    --------
    >>> import torch
    >>> from stib_fast.models import ScaledMLP
    >>> ScaledMLP([2, 8, 3], input_scale=4.0)(torch.ones(5, 2)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str = "silu",
        bias: bool = True,
        input_scale: float = 1.0,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.mlp = MLP(sizes, activation, bias)
        self.input_scale = input_scale
        self.output_scale = output_scale

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, sizes[0]] to [B, sizes[-1]]."""
        return self.mlp(x / self.input_scale) * self.output_scale


class VectorDecoder(ScaledMLP):
    """A decoder to real vectors, with their squared error as loss."""

    def loss(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the squared error of each row, summed over dimensions, [B]."""
        return (self(z) - x).square().sum(1)


class Towers(nn.ModuleList):
    """An encoder for each part of Z: what trains one leaves the others alone.

    Parameters
    ----------
    modules : iterable of Module
        In the order of the parts, each x → means of its part.

    Examples
    --------
    >>> import torch
    >>> from stib_fast.models import ScaledMLP, Towers
    >>> Towers([ScaledMLP([2, 16, 3]), ScaledMLP([2, 16, 1])])(torch.zeros(5, 2)).shape
    torch.Size([5, 4])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map x to the means of all parts side by side, [B, d]."""
        return torch.cat([tower(x) for tower in self], dim=1)


def glorot_(module: nn.Module) -> None:
    """Initialise linear layers as the authors' code does: Glorot uniform, biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def kl_per_dimension(mean: Tensor, log_sigma: Tensor) -> Tensor:
    """KL(N(mean, sigma²) ‖ N(0, 1)) in nats, mean over the rows of `mean` [B, d]; [d].

    `log_sigma` is [d], or [B, d] of a deviation for each row.

    Examples
    --------
    >>> import torch
    >>> from stib_fast.models import kl_per_dimension
    >>> kl_per_dimension(torch.tensor([[0.0, 2.0]]), torch.zeros(2))
    tensor([0., 2.])
    """
    squares = (mean.square() + (2 * log_sigma).exp()).mean(0)
    return squares / 2 - (log_sigma if log_sigma.dim() == 1 else log_sigma.mean(0)) - 0.5
