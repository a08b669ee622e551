"""What STIB minimises and what its adversary does."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from stib_fast.models import STIB, kl_per_dimension
from stib_fast.moments import Moments

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Terms(NamedTuple):
    """The loss of a step, and its terms in nats or squared units, detached."""

    loss: Tensor
    kl: Tensor
    x: Tensor
    y: Tensor
    mi: Tensor
    cycle: Tensor


def stib_objective(
    model: STIB,
    x: Tensor,
    y: Tensor,
    lam: float | Tensor,
    invariance_weight: float,
    *,
    noise: Tensor | None = None,
    group: ProcessGroup | None = None,
    whole: Moments | None = None,
) -> Terms:
    r"""Both steps of STIB on one batch, in one backward pass.

    Encoder, decoder and predictor descend Eq. (6) of Wieser et al. 2020,

    .. math:: L_1 = I(X; Z) + \lambda\,(\|\hat x - x\|^2 + \|\hat y - y\|^2 + c\, I(Z_0; Y)),

    with the KL divergence from N(0, 1) for I(X; Z) and the decoder's and predictor's losses for the
    negative mutual informations. The critic and the bijection descend Eq. (7) with the bijection's
    loss, −I(Z₀; Y) + β ‖h⁻¹(h(Y)) − Y‖². L2 uses L1's draw of Z₀ and L1 leaves the critic alone:
    taking both steps at once is then the same as taking one after the other, and one pass with the
    sign of I's gradient reversed between critic and encoder gives both gradients
    (`stib_fast.nn.InvarianceCritic`). The authors' code differs in one thing: it encodes the batch
    anew, with new noise, between the two steps.

    Parameters
    ----------
    model : STIB
    x, y : Tensor
        A batch; y [B, m].
    lam : float or Tensor
        λ; as a tensor, 0-dim float64 on the model's device.
    invariance_weight : float
        c.
    noise : Tensor, optional
        The latent noise of these rows, as ``model.noise(B)`` draws it; new if None.
    group : torch.distributed.ProcessGroup, optional
        The batch is spread evenly over the processes of the group, and I(Z₀; Y) is that of all of
        it. The other terms are those of the rows here: means over the processes are the whole's,
        of the gradients as well.
    whole : Moments, optional
        The rows are a micro-batch of a batch with these `critic_moments`: I(Z₀; Y) is that of the
        whole, the other terms and all gradients are these rows' shares of it, which add up.

    Returns
    -------
    Terms
    """
    z, mean = _latent(model, x, noise)
    z0, z1 = model.split(z)
    kl = kl_per_dimension(mean, model.log_sigma).sum()
    x_loss = model.reconstruction_loss(z, x).mean()
    y_loss = (model.predictor(z1) - y).square().sum(1).mean()
    if whole is not None:
        share = len(y) / whole.count.to(z.dtype)
        kl, x_loss, y_loss = share * kl, share * x_loss, share * y_loss
    lam = torch.as_tensor(lam, dtype=torch.float64)
    weight = (lam * invariance_weight).to(z.dtype)
    adversary, mi, cycle = model.critic.losses(z0, y, weight=weight, group=group, whole=whole)
    loss = kl + lam.to(z.dtype) * (x_loss + y_loss) + adversary
    return Terms(loss, kl.detach(), x_loss.detach(), y_loss.detach(), mi, cycle)


@torch.no_grad()
def critic_moments(model: STIB, x: Tensor, y: Tensor, noise: Tensor) -> Moments:
    """Moments of what `stib_objective` takes the mutual information of, in these rows."""
    z, _ = _latent(model, x, noise)
    return model.critic.moments(model.split(z).z0, y)


def _latent(model: STIB, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    mean = model.encoder(x).to(model.log_sigma.dtype)  # bfloat16 under autocast
    return model.sample(mean, noise), mean
