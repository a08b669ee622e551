"""`Moments`: what Gaussian mutual information needs to know of a sample, and how samples add up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
        count = self.count + other.count
        fraction = other.count / torch.where(count > 0, count, 1.0)
        step = other.mean - self.mean
        between = self.count * fraction * torch.outer(step, step)
        return Moments(
            count=count,
            mean=self.mean + fraction * step,
            scatter=self.scatter + other.scatter + between,
            sizes=self.sizes,
            dtype=self.dtype,
        )
