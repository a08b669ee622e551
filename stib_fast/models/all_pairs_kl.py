"""The mean divergence of all pairs of a batch's posteriors (Moyer et al. 2018) in O(B d)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class PairSums:
    """What `all_pairs_kl` needs to know of a sample of posteriors; sums of samples add up.

    Parameters
    ----------
    count : Tensor
        Number of rows; 0-dim float64.
    origin : Tensor
        About the mean of the means, [d] float64: an offset then costs no digits.
    sums : Tensor
        With c = μ − origin, the sums over rows of c, c², σ², 1/σ², c/σ² and c²/σ²; [6, d] float64.

    Examples
    --------
    >>> import torch
    >>> from stib_fast.models import PairSums
    >>> mean, log_sigma = torch.randn(5, 2), torch.randn(5, 2)
    >>> parts = PairSums.of(mean[:2], log_sigma[:2]) + PairSums.of(mean[2:], log_sigma[2:])
    >>> torch.allclose(parts.kl(), PairSums.of(mean, log_sigma).kl())
    True
    """

    count: Tensor
    origin: Tensor
    sums: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, mean: Tensor, log_sigma: Tensor) -> PairSums:
        """Sums of posteriors with means [B, d] and log σ [B, d], or [d]; B at least 1."""
        origin = mean.double().mean(0)
        count = torch.full((), len(mean), dtype=torch.float64, device=mean.device)
        return cls(count, origin, _sums(mean, log_sigma, origin))

    def about(self, origin: Tensor) -> PairSums:
        """Move the origin."""
        shift = self.origin - origin
        c, cc, variance, precision, weighted, squares = self.sums
        moved = [
            c + self.count * shift,
            cc + shift * (2 * c + self.count * shift),
            variance,
            precision,
            weighted + precision * shift,
            squares + shift * (2 * weighted + precision * shift),
        ]
        return PairSums(self.count, origin, torch.stack(moved))

    def __add__(self, other: PairSums) -> PairSums:
        count = self.count + other.count
        origin = self.origin + (other.origin - self.origin) * (other.count / count)
        return PairSums(count, origin, self.about(origin).sums + other.about(origin).sums)

    def gathered(self, group: ProcessGroup) -> PairSums:
        """Sums of the sample whose rows are spread over the processes of a group.

        Every process must call this; all of them get the same bits. No gradient.
        """
        d = len(self.origin)
        own = torch.cat([self.count.reshape(1), self.origin, self.sums.flatten()])
        everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(everyone, own, group=group)
        return reduce(
            add, (PairSums(part[0], part[1 : d + 1], part[d + 1 :].view(6, d)) for part in everyone)
        )

    def kl(self) -> Tensor:
        """Mean divergence of all pairs in nats, 0-dim float64."""
        return _kl(self.sums / self.count)


def all_pairs_kl(
    mean: Tensor,
    log_sigma: Tensor,
    *,
    group: ProcessGroup | None = None,
    whole: PairSums | None = None,
) -> Tensor:
    r"""Mean of KL(q_i ‖ q_j) over all B² pairs of the Gaussians q_i = N(μ_i, σ_i²).

    The bound of Moyer et al. 2018 (*Invariant Representations without Adversarial Training*) on
    I(Z; X) = E KL(q(z|x) ‖ q(z)), q(z) being the mixture of the batch's posteriors. In the mean
    over pairs the logarithms cancel, and what is left is made of sums over single rows: with
    w = 1/σ², c = μ − μ̄ and ⟨·⟩ the mean over the batch,

    .. math::

        \frac{1}{B^2}\sum_{ij} KL(q_i \| q_j) = \frac12 \sum_d
            \langle\sigma^2\rangle\langle w\rangle - 1
            + \langle w\rangle\langle c^2\rangle - 2\langle c\rangle\langle wc\rangle
            + \langle wc^2\rangle.

    Time and memory O(B d), in float64 whatever the input; ⟨c⟩ = 0 up to rounding, so that nothing
    cancels.

    Parameters
    ----------
    mean : Tensor
        [B, d], B at least 1.
    log_sigma : Tensor
        [B, d], or [d] of one that is shared by all rows.
    group : torch.distributed.ProcessGroup, optional
        The batch is spread over the processes of the group: the pairs are those of all rows, and
        the mean of the gradients over the processes is the gradient of the whole where they hold
        equally many rows.
    whole : PairSums, optional
        The rows are a micro-batch of a sample with these sums: the value is that of the whole, and
        the gradients of its micro-batches add up to those of the whole.

    Returns
    -------
    Tensor
        0-dim, nats, in the dtype of `mean`.

    Raises
    ------
    ValueError
        For shapes that do not agree, or no rows.

    Examples
    --------
    >>> import torch
    >>> from stib_fast.models import all_pairs_kl
    >>> all_pairs_kl(torch.tensor([[0.0], [2.0]]), torch.zeros(1))  # of 4 pairs two have 2 nats
    tensor(1.)
    """
    if mean.dim() != 2 or not len(mean) or log_sigma.shape not in (mean.shape, mean.shape[1:]):
        raise ValueError(
            f"mean must be [B, d] and log_sigma [B, d] or [d], with rows; got {tuple(mean.shape)} "
            f"and {tuple(log_sigma.shape)}"
        )
    rows: Tensor | int = len(mean)
    if whole is not None:
        rows = whole.count
    else:
        whole = PairSums.of(mean, log_sigma)
        if group is not None:
            whole = whole.gathered(group)
    own = _sums(mean, log_sigma, whole.origin)
    # The value of the whole, with the gradient of these rows.
    return _kl(whole.sums / whole.count + (own - own.detach()) / rows).to(mean.dtype)


def _sums(mean: Tensor, log_sigma: Tensor, origin: Tensor) -> Tensor:
    c = mean.double() - origin
    log_variance = 2 * log_sigma.double().expand_as(c)
    precision = (-log_variance).exp()
    weighted = precision * c
    columns = (c, c.square(), log_variance.exp(), precision, weighted, weighted * c)
    return torch.stack([column.sum(0) for column in columns])


def _kl(means: Tensor) -> Tensor:
    c, cc, variance, precision, weighted, squares = means
    terms = variance * precision - 1 + precision * cc - 2 * c * weighted + squares
    return terms.sum() / 2
