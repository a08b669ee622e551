"""What each of the five models minimises, and what STIB's adversary does.

All objectives have one signature. A part of a batch (a process's share, a micro-batch) has its
terms, loss and gradients such that those of the parts make up the whole's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from stib_fast.models import (
    CVAE,
    CVIB,
    STIB,
    VAE,
    Autoencoder,
    PairSums,
    Posterior,
    STIBWithoutAdversary,
    all_pairs_kl,
    kl_per_dimension,
)
from stib_fast.moments import Moments

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class StibTerms(NamedTuple):
    """The loss of a step, and its terms in nats or squared units, detached."""

    loss: Tensor
    kl: Tensor
    x: Tensor
    y: Tensor
    mi: Tensor
    cycle: Tensor


class PredictiveTerms(NamedTuple):
    """Those of STIB without adversary and of the VAE."""

    loss: Tensor
    kl: Tensor
    x: Tensor
    y: Tensor


class CvaeTerms(NamedTuple):
    """Those of the CVAE."""

    loss: Tensor
    kl: Tensor
    x: Tensor


class CvibTerms(NamedTuple):
    """Those of the CVIB."""

    loss: Tensor
    kl: Tensor
    x: Tensor
    all_pairs_kl: Tensor


Terms: TypeAlias = StibTerms | PredictiveTerms | CvaeTerms | CvibTerms


@dataclass(frozen=True)
class RowCount:
    """Number of rows of a batch: all that is to know of it where no term couples its rows."""

    count: Tensor

    def __add__(self, other: RowCount) -> RowCount:
        return RowCount(self.count + other.count)

    def gathered(self, group: ProcessGroup) -> RowCount:
        """Rows of all processes of a group; each has equally many."""
        return RowCount(self.count * dist.get_world_size(group))


def stib_objective(
    model: STIB,
    x: Tensor,
    y: Tensor,
    lam: float | Tensor,
    invariance_weight: float,
    *,
    target_weight: float = 1.0,
    noise: Tensor | None = None,
    group: ProcessGroup | None = None,
    whole: Moments | None = None,
) -> StibTerms:
    r"""Both steps of STIB on one batch, in one backward pass.

    Encoder, decoder and predictor descend Eq. (6) of Wieser et al. 2020,

    .. math:: L_1 = I(X; Z) + \lambda\,(\|\hat x - x\|^2 + w\,\|\hat y - y\|^2 + c\, I(Z_0; Y)),

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
    target_weight : float
        w; the paper's is 1.
    noise : Tensor, optional
        The latent noise of these rows, as ``model.noise(B)`` draws it; new if None.
    group : torch.distributed.ProcessGroup, optional
        The batch is spread evenly over the processes of the group, and I(Z₀; Y) is that of all of
        it. The other terms are those of the rows here: means over the processes are the whole's,
        of the gradients as well.
    whole : Moments, optional
        The rows are a micro-batch of a batch with these `critic_moments`: terms, loss and gradients
        are these rows' shares of the whole's, which add up.

    Returns
    -------
    StibTerms
    """
    z, posterior = _latent(model, x, noise)
    z0, z1 = model.split(z)
    kl, x_loss, y_loss, share = _shares(
        whole,
        _kl(posterior),
        model.reconstruction_loss(z, x).mean(),
        _squared_error(model, z1, y),
        rows=len(y),
    )
    lam = torch.as_tensor(lam, dtype=torch.float64)
    weight = (lam * invariance_weight).to(z.dtype)
    adversary, mi, cycle = model.critic.losses(z0, y, weight=weight, group=group, whole=whole)
    loss = kl + lam.to(z.dtype) * (x_loss + target_weight * y_loss) + adversary
    if whole is not None:  # the critic's loss holds I of the whole
        mi, loss = share * mi, loss + (1 - share) * mi
    return StibTerms(loss, kl.detach(), x_loss.detach(), y_loss.detach(), mi, cycle)


def predictive_objective(
    model: STIBWithoutAdversary,
    x: Tensor,
    y: Tensor,
    lam: float | Tensor,
    invariance_weight: float,
    *,
    target_weight: float = 1.0,
    noise: Tensor | None = None,
    group: ProcessGroup | None = None,
    whole: RowCount | None = None,
) -> PredictiveTerms:
    r"""STIB without adversary, and the VAE: Eq. (5) of Wieser et al. 2020.

    .. math:: I(X; Z) + \lambda\,(\|\hat x - x\|^2 + w\,\|\hat y - y\|^2),

    with the KL divergence from N(0, 1) for I(X; Z); what is left of Eq. (6) without I(Z₀; Y). ŷ is
    predicted from Z1, which of a VAE is all of Z. λ multiplies both errors, as in the authors'
    published checkpoint of STIB without adversary; the code that they published has
    KL + ‖x̂ − x‖² + 3 ‖ŷ − y‖² for both models.

    Parameters and results are as of `stib_objective`; `invariance_weight` plays no part.
    """
    z, posterior = _latent(model, x, noise)
    kl, x_loss, y_loss, _ = _shares(
        whole,
        _kl(posterior),
        model.reconstruction_loss(z, x).mean(),
        _squared_error(model, model.split(z).z1, y),
        rows=len(y),
    )
    loss = kl + _as(lam, z) * (x_loss + target_weight * y_loss)
    return PredictiveTerms(loss, kl.detach(), x_loss.detach(), y_loss.detach())


def cvae_objective(
    model: CVAE,
    x: Tensor,
    y: Tensor,
    lam: float | Tensor,
    invariance_weight: float,
    *,
    target_weight: float = 1.0,
    noise: Tensor | None = None,
    group: ProcessGroup | None = None,
    whole: RowCount | None = None,
) -> CvaeTerms:
    r"""The negative conditional bound of Sohn et al. 2015 (section 4), weighted as Eq. (5).

    .. math:: KL(q(z|x) \| N(0, 1)) - \lambda\, E_{q(z|x)} \log p(x|z, y),

    with the decoder's loss for −log p, which for vectors is ‖x̂ − x‖². There x is generated under
    the condition y from a prior p(z|y) and a recognition q(z|x, y); here, as in the code of Wieser
    et al. 2020, the prior is N(0, 1) and q reads x alone.

    Parameters and results are as of `stib_objective`; `invariance_weight` and `target_weight` play
    no part.
    """
    z, posterior = _latent(model, x, noise)
    kl, x_loss, _ = _shares(
        whole, _kl(posterior), model.reconstruction_loss(z, x, y).mean(), rows=len(y)
    )
    return CvaeTerms(kl + _as(lam, z) * x_loss, kl.detach(), x_loss.detach())


def cvib_objective(
    model: CVIB,
    x: Tensor,
    y: Tensor,
    lam: float | Tensor,
    invariance_weight: float,
    *,
    target_weight: float = 1.0,
    noise: Tensor | None = None,
    group: ProcessGroup | None = None,
    whole: PairSums | None = None,
) -> CvibTerms:
    r"""The CVAE's objective and the bound on I(Z; Y) of Moyer et al. 2018.

    They bound I(Z; Y) ≤ E KL(q(z|x) ‖ q(z)) − E log p(x|z, y) − H(X|Y), and the first term by the
    mean divergence of all pairs of posteriors (`stib_fast.models.all_pairs_kl`). Weighted by c,
    beside the CVAE's terms:

    .. math:: KL(q(z|x) \| N(0, 1)) + \lambda\,\Big((1 + c)\,\|\hat x - x\|^2
        + \frac{c}{B^2} \sum_{ij} KL(q(z|x_i) \| q(z|x_j))\Big).

    The code of Wieser et al. 2020 has a tenth of this with λ = 10 and c = 1:
    0.1 KL + 2 ‖x̂ − x‖² + all pairs.

    Parameters and results are as of `stib_objective`; `whole` are the `PairSums` of the batch, and
    `target_weight` plays no part.
    """
    z, posterior = _latent(model, x, noise)
    kl, x_loss, share = _shares(
        whole, _kl(posterior), model.reconstruction_loss(z, x, y).mean(), rows=len(y)
    )
    pairs = all_pairs_kl(*posterior, group=group, whole=whole)
    pairs = pairs - (1 - share) * pairs.detach()  # of a part: its share of the whole's value
    bound = (1 + invariance_weight) * x_loss + invariance_weight * pairs
    loss = kl + _as(lam, z) * bound
    return CvibTerms(loss, kl.detach(), x_loss.detach(), pairs.detach())


@torch.no_grad()
def drawn_z0(model: STIB, x: Tensor, noise: Tensor) -> Tensor:
    """Draw Z0 [B, n0] of these rows, for the critic to read."""
    z, _ = _latent(model, x, noise)
    return model.split(z).z0


def critic_moments(model: STIB, x: Tensor, y: Tensor, noise: Tensor) -> Moments:
    """Moments of what `stib_objective` takes the mutual information of, in these rows."""
    return model.critic.moments(drawn_z0(model, x, noise), y)


def row_count(model: Autoencoder, x: Tensor, y: Tensor, noise: Tensor) -> RowCount:
    """Count these rows."""
    return RowCount(torch.full((), len(y), dtype=torch.float64, device=y.device))


@torch.no_grad()
def pair_sums(model: CVIB, x: Tensor, y: Tensor, noise: Tensor) -> PairSums:
    """Sums of what `cvib_objective` takes the divergences of, in these rows."""
    return PairSums.of(*model.posterior(x))


class Objective(NamedTuple):
    """An objective, the type of its terms, and what a part of a batch must know of the whole.

    The latter, `of_whole`, is computed from each part; its results add up, over processes by
    ``gathered``.
    """

    function: Callable[..., Terms]
    terms: type[Terms]
    of_whole: Callable[..., Any]


OBJECTIVES: dict[type[Autoencoder], Objective] = {
    STIB: Objective(stib_objective, StibTerms, critic_moments),
    STIBWithoutAdversary: Objective(predictive_objective, PredictiveTerms, row_count),
    VAE: Objective(predictive_objective, PredictiveTerms, row_count),
    CVAE: Objective(cvae_objective, CvaeTerms, row_count),
    CVIB: Objective(cvib_objective, CvibTerms, pair_sums),
}


def _latent(model: Autoencoder, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Posterior]:
    posterior = model.posterior(x)
    return posterior.draw(model.noise(len(x)) if noise is None else noise), posterior


def _kl(posterior: Posterior) -> Tensor:
    return kl_per_dimension(*posterior).sum()


def _squared_error(model: STIBWithoutAdversary, z1: Tensor, y: Tensor) -> Tensor:
    return (model.predictor(z1) - y).square().sum(1).mean()


def _shares(whole: Any, *means: Tensor, rows: int) -> tuple[Any, ...]:
    """Means over some rows as shares of those over a whole batch, and the share of these rows."""
    if whole is None:
        return (*means, 1.0)
    share = rows / whole.count.to(means[0].dtype)
    return (*(share * mean for mean in means), share)


def _as(lam: float | Tensor, z: Tensor) -> Tensor:
    return torch.as_tensor(lam, dtype=z.dtype, device=z.device)
