"""The ops as modules, and the invariance critic for anybody's encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stib_fast import functional as F
from stib_fast.moments import Moments

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["MLP", "GaussianMILoss", "InvarianceCritic", "OneHotConv1d"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class GaussianMILoss(nn.Module):
    """`stib_fast.functional.gaussian_mi` as a loss, in nats.

    Parameters
    ----------
    eps, bias_correction, precision, group
        As for `stib_fast.functional.gaussian_mi`.

    Examples
    --------
    >>> import torch
    >>> from stib_fast.nn import GaussianMILoss
    >>> z = torch.randn(64, 3, requires_grad=True)
    >>> GaussianMILoss()(z, torch.randn(64, 2)).backward()
    >>> tuple(z.grad.shape)
    (64, 3)
    """

    def __init__(
        self,
        *,
        eps: float | None = None,
        bias_correction: bool = False,
        precision: F.Precision = "exact",
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.bias_correction = bias_correction
        self.precision = precision
        self.group = group

    def forward(
        self,
        z: Tensor,
        y: Tensor,
        weight: Tensor | None = None,
        whole: Moments | None = None,
    ) -> Tensor:
        """Mutual information of the rows of z [B, n] and y [B, m]; 0-dim."""
        return F.gaussian_mi(
            z,
            y,
            weight=weight,
            eps=self.eps,
            bias_correction=self.bias_correction,
            precision=self.precision,
            group=self.group,
            whole=whole,
        )

    def extra_repr(self) -> str:
        """Return the options, for printing."""
        return (
            f"eps={self.eps}, bias_correction={self.bias_correction}, precision={self.precision!r}"
        )


class OneHotConv1d(nn.Module):
    """A convolution over one-hot encoded tokens that reads their ids.

    It equals ``nn.Conv1d(num_classes, ...)`` on the one-hot encoding and has its parameters, by
    name, shape and initialisation: a state_dict of one loads into the other.

    Parameters
    ----------
    num_classes : int
        Number of classes V, the input channels of the ``nn.Conv1d``.
    out_channels : int
        Number of filters F.
    kernel_size, stride, padding, dilation : int
        As for ``nn.Conv1d``.
    bias : bool
    padding_idx : int, optional
        A class that contributes zero and gets no gradient, whatever its weights.
    device, dtype
        Of the parameters.

    Examples
    --------
    >>> import torch
    >>> from stib_fast.nn import OneHotConv1d
    >>> ids = torch.zeros(2, 120, dtype=torch.uint8)
    >>> OneHotConv1d(64, 9, kernel_size=9, padding=4)(ids).shape
    torch.Size([2, 9, 120])
    """

    def __init__(
        self,
        num_classes: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.padding_idx = padding_idx
        shape = (out_channels, num_classes, kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters as ``nn.Conv1d`` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, ids: Tensor) -> Tensor:
        """Features [B, F, L'] of integer ids [B, L]; see `stib_fast.functional.one_hot_conv1d`."""
        return F.one_hot_conv1d(
            ids,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.padding_idx,
        )

    def extra_repr(self) -> str:
        """Return the sizes and options, for printing."""
        filters, classes, taps = self.weight.shape
        return (
            f"{classes}, {filters}, kernel_size={taps}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, bias={self.bias is not None}, "
            f"padding_idx={self.padding_idx}"
        )


class MLP(nn.Sequential):
    """Linear layers with an activation between them.

    Parameters
    ----------
    sizes : sequence of int
        Widths from input to output.
    activation : {"gelu", "relu", "silu", "softplus", "tanh"}
    bias : bool

    Examples
    --------
    >>> import torch
    >>> from stib_fast.nn import MLP
    >>> MLP([2, 16, 3])(torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """

    def __init__(self, sizes: Sequence[int], activation: str = "silu", bias: bool = True) -> None:
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation must be one of {known}; got {activation!r}")
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after, bias=bias), ACTIVATIONS[activation]()]
        super().__init__(*layers[:-1])


class _ReverseGradient(torch.autograd.Function):
    """The identity whose gradient is multiplied by -weight (Ganin & Lempitsky 2015)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float | Tensor) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * -ctx.weight, None


class InvarianceCritic(nn.Module):
    r"""Makes a representation independent of a continuous variable, by an adversary.

    The critic maps z, and a bijection h maps y, to `feature_dim` features each; their Gaussian
    mutual information I(critic(z); h(y)) is a lower view of I(z; y) that the critic raises and the
    encoder lowers (Wieser et al. 2020, Eq. 6 and 7; the bijection of section 4, two networks h and
    h⁻¹ held together by a cycle loss). With two features a side, as in the paper, it sees little
    more than linear dependence; with eight or more it sees non-linear dependence. The batch should
    grow like the square of `feature_dim`: the estimate's bias is feature_dim² / 2B nats.

    A representation without noise can hold y in detail that is too fine for the critic, and for
    nothing else: give z a noise that bounds it, as STIB does.

    Parameters
    ----------
    z_dim, y_dim : int
        Columns of the representation and of the variable.
    feature_dim : int
        Features a side.
    hidden : sequence of int
        Hidden widths of the three networks.
    activation : str
        See `MLP`.
    cycle_weight : float
        Weight of ‖h⁻¹(h(y)) − y‖² against the mutual information.
    y_scale : float
        y is divided by it on its way into h: about the spread of y.

    Raises
    ------
    ValueError
        `feature_dim` is below 1.

    Examples
    --------
    >>> import torch
    >>> from stib_fast.nn import InvarianceCritic
    >>> critic = InvarianceCritic(z_dim=3, y_dim=1)
    >>> z, y = torch.randn(256, 3, requires_grad=True), torch.randn(256, 1)
    >>> critic(z, y, weight=2.0).backward()  # fills the gradients of the critic and of z
    >>> z.grad.shape
    torch.Size([256, 3])
    """

    def __init__(
        self,
        z_dim: int,
        y_dim: int,
        feature_dim: int = 8,
        hidden: Sequence[int] = (128, 128),
        activation: str = "silu",
        cycle_weight: float = 0.01,
        y_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if feature_dim < 1:
            raise ValueError(f"feature_dim must be at least 1; got {feature_dim}")
        self.feature_dim = feature_dim
        self.cycle_weight = cycle_weight
        self.y_scale = y_scale
        self.critic = MLP([z_dim, *hidden, feature_dim], activation)
        self.h = MLP([y_dim, *hidden, feature_dim], activation)
        self.h_inverse = MLP([feature_dim, *hidden, y_dim], activation)

    def encoder_loss(
        self,
        z: Tensor,
        y: Tensor,
        *,
        group: ProcessGroup | None = None,
        whole: Moments | None = None,
    ) -> Tensor:
        """I(critic(z); h(y)) in nats for the encoder to minimise; the critic gets no gradient.

        The term of Eq. (6). z is [B, z_dim], y is [B, y_dim]; `group` and `whole` as for `losses`.
        """
        _check_rows(z, y)
        frozen = {name: p.detach() for name, p in self.critic.named_parameters()}
        features = torch.func.functional_call(self.critic, frozen, (z,))
        with torch.no_grad():
            target = self.h(y / self.y_scale)
        return F.gaussian_mi(features, target, group=group, whole=whole)

    def critic_loss(
        self,
        z: Tensor,
        y: Tensor,
        *,
        group: ProcessGroup | None = None,
        whole: Moments | None = None,
    ) -> Tensor:
        """Return −I + cycle_weight · cycle for the critic to minimise; z gets no gradient.

        The term of Eq. (7) with the bijection's loss of section 4; `group` and `whole` as for
        `losses`.
        """
        return self._adversary(z.detach(), y, group, whole)[0]

    def forward(
        self,
        z: Tensor,
        y: Tensor,
        weight: float | Tensor = 1.0,
        *,
        group: ProcessGroup | None = None,
        whole: Moments | None = None,
    ) -> Tensor:
        """Both losses in one pass: the critic descends `critic_loss`, z descends weight · I.

        Gradients equal those of ``weight * encoder_loss(z, y)`` for z and of ``critic_loss(z, y)``
        for the critic, at half the work: the sign of the gradient turns between them. `group` and
        `whole` as for `losses`.
        """
        return self.losses(z, y, weight, group=group, whole=whole)[0]

    def losses(
        self,
        z: Tensor,
        y: Tensor,
        weight: float | Tensor = 1.0,
        *,
        group: ProcessGroup | None = None,
        whole: Moments | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `forward` gives, with its two terms: I in nats and the cycle loss, detached.

        The cycle loss is the mean over rows of ‖h⁻¹(h(y)) − y‖², in units of y.

        Parameters
        ----------
        z : Tensor
            [B, z_dim].
        y : Tensor
            [B, y_dim].
        weight : float or Tensor
            Of I, for z.
        group : torch.distributed.ProcessGroup, optional
            The batch is spread over the processes of the group: I is that of all rows, and the mean
            of the gradients over the processes, as ``DistributedDataParallel`` takes it, is the
            gradient of the whole where they hold equally many rows.
        whole : Moments, optional
            The rows are a micro-batch of a sample with these `moments`: I is that of the whole, the
            cycle loss the rows' share of it, and one backward pass after the other adds up to the
            gradients of the whole. Over processes: see `stib_fast.functional.gaussian_mi`.
        """
        loss, mi, cycle = self._adversary(_ReverseGradient.apply(z, weight), y, group, whole)
        return loss, mi.detach(), cycle.detach()

    @torch.no_grad()
    def moments(self, z: Tensor, y: Tensor) -> Moments:
        """Moments of critic(z) and h(y): added up over micro-batches, the `whole` of the losses."""
        _check_rows(z, y)
        return F.moments(self.critic(z), self.h(y / self.y_scale))

    def _adversary(
        self, z: Tensor, y: Tensor, group: ProcessGroup | None, whole: Moments | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        _check_rows(z, y)
        target = self.h(y / self.y_scale)
        mi = F.gaussian_mi(self.critic(z), target, group=group, whole=whole)
        squares = (self.h_inverse(target) * self.y_scale - y).square().sum(1)
        cycle = squares.mean() if whole is None else (squares.sum() / whole.count).to(y)
        return self.cycle_weight * cycle - mi, mi, cycle


def _check_rows(z: Tensor, y: Tensor) -> None:
    for name, part in (("z", z), ("y", y)):
        if part.dim() != 2:
            raise ValueError(
                f"{name} must have shape [B, columns]; got {tuple(part.shape)}. "
                f"Reshape one column with {name}[:, None]."
            )
    if len(z) != len(y):
        raise ValueError(
            f"z has {len(z)} rows but y has {len(y)}; they are samples of one variable"
        )
