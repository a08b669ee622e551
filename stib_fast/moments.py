"""`Moments`: what Gaussian mutual information needs to know of a sample, and how samples add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter matrix of a sample of d columns in several parts.

    The moments of a union of samples are the sum ``a + b`` (Chan, Golub & LeVeque 1979),
    differentiable like everything here. `stib_fast.functional.moments` makes them.

    Parameters
    ----------
    count : Tensor
        Number of rows, or the sum of their weights; 0-dim float64.
    mean : Tensor
        Column means, [d] float64.
    scatter : Tensor
        Σ w (x - mean)(x - mean)ᵀ, [d, d] float64.
    sizes : tuple of int
        Columns of each part; they sum to d.
    dtype : torch.dtype
        Of the sample: the rounding below which a column counts as constant.

    Examples
    --------
    >>> import torch
    >>> from stib_fast import functional as F
    >>> x = torch.arange(12.0).reshape(6, 2) ** 2
    >>> whole, sum_of_halves = F.moments(x), F.moments(x[:2]) + F.moments(x[2:])
    >>> torch.allclose(whole.scatter, sum_of_halves.scatter)
    True
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor
    sizes: tuple[int, ...]
    dtype: torch.dtype

    def __add__(self, other: Moments) -> Moments:
        if self.sizes != other.sizes or self.dtype != other.dtype:
            raise ValueError(
                f"moments of parts {self.sizes} {self.dtype} and {other.sizes} {other.dtype} "
                "do not describe the same variables"
            )
        pairs = zip(self._values(), other._values(), strict=True)
        return self._union(*(torch.stack(pair) for pair in pairs))

    def gathered(self, group: ProcessGroup) -> Moments:
        """Moments of the sample whose rows are spread over the processes of a group.

        One ``all_gather`` of 1 + d + d² float64 numbers a process. Every process merges them in the
        order of the ranks: the same bits on each, from run to run. A process may hold no rows.

        Every process must call this, and use the result alike. Gradients are those of its own rows,
        times the number of processes: the mean over them, which ``DistributedDataParallel`` takes,
        then is the gradient of the whole. Second derivatives hold the other processes' rows fixed.

        Parameters
        ----------
        group : torch.distributed.ProcessGroup
            ``torch.distributed.group.WORLD`` for all processes.

        Returns
        -------
        Moments

        Examples
        --------
        >>> import tempfile, torch.distributed as dist
        >>> from stib_fast import functional as F
        >>> store = dist.FileStore(tempfile.mktemp(), 1)
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> F.moments(torch.tensor([[1.0], [3.0]])).gathered(dist.group.WORLD).mean.item()
        2.0
        >>> dist.destroy_process_group()
        """
        d, size = len(self.mean), dist.get_world_size(group)
        count, mean, scatter = self._values()
        own = torch.cat([count.reshape(1), mean, scatter.flatten()])
        if own.requires_grad:
            own.register_hook(lambda gradient: gradient * size)
        everyone = [torch.empty_like(own) for _ in range(size)]
        dist.all_gather(everyone, own.detach(), group=group)
        everyone[dist.get_rank(group)] = own
        counts, means, scatters = torch.stack(everyone).split([1, d, d * d], dim=1)
        return self._union(counts[:, 0], means, scatters.reshape(size, d, d))

    def _values(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.count, self.mean, self.scatter

    def _union(self, counts: Tensor, means: Tensor, scatters: Tensor) -> Moments:
        """The moments of k samples of these variables, whose own [k, ...] are given."""
        count = counts.sum()
        # Means are taken from that of a sample with rows: an offset then costs no digits.
        origin = means.index_select(0, counts.argmax().reshape(1))
        weights = (counts / torch.where(count > 0, count, 1.0))[:, None]
        shift = (weights * (means - origin)).sum(0)
        steps = means - origin - shift
        between = (counts[:, None] * steps).mT @ steps
        return Moments(
            count=count,
            mean=origin[0] + shift,
            scatter=scatters.sum(0) + between,
            sizes=self.sizes,
            dtype=self.dtype,
        )
