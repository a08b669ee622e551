"""Splitting a data set and standardising its targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def split(
    n: int, validation_fraction: float = 0.05, test_fraction: float = 0.05, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Part n rows at random into training, validation and test rows.

    Parameters
    ----------
    n : int
        Number of rows.
    validation_fraction : float
        Share of the validation rows, in (0, 1); rounded to whole rows, at least one.
    test_fraction : float
        Share of the test rows, in [0, 1); rounded to whole rows, at least one unless it is 0.
    seed : int
        The same seed gives the same parts; the validation rows are the same for any test_fraction.

    Returns
    -------
    train_rows, validation_rows, test_rows : Tensor
        int64, ascending, disjoint, together 0 to n - 1.

    Raises
    ------
    ValueError
        A fraction lies outside its interval, or both leave no row to train on.

    Examples
    --------
    >>> train_rows, validation_rows, test_rows = split(100)
    >>> len(train_rows), len(validation_rows), len(test_rows)
    (90, 5, 5)
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must lie in (0, 1), not {validation_fraction}")
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction must lie in [0, 1), not {test_fraction}")
    validation = max(1, round(n * validation_fraction))
    test = max(1, round(n * test_fraction)) if test_fraction else 0
    train = n - validation - test
    if train < 1:
        raise ValueError(
            f"validation_fraction {validation_fraction} and test_fraction {test_fraction} of {n} "
            "rows leave none to train on"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    # Validation rows first: they stay those of runs that had no test part.
    validation_rows, test_rows, train_rows = order.split([validation, test, train])
    return train_rows.sort().values, validation_rows.sort().values, test_rows.sort().values


class Standardiser(nn.Module):
    """Shift and scale columns to mean 0 and standard deviation 1, and back.

    Fit it on the training rows only. It is a module so that its figures are saved with the model.

    Parameters
    ----------
    mean, std : Tensor
        Shape [T]; kept as float32 buffers.

    Examples
    --------
    >>> standardiser = Standardiser.fit(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    >>> standardiser.transform(torch.tensor([[1.0, 30.0]]))
    tensor([[-1.,  1.]])
    >>> standardiser.inverse(torch.tensor([[-1.0, 1.0]]))
    tensor([[ 1., 30.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.to(torch.float32))
        self.register_buffer("std", std.to(torch.float32))

    @classmethod
    def fit(cls, targets: Tensor) -> Standardiser:
        """Take mean and standard deviation (of the population) of each column.

        Parameters
        ----------
        targets : Tensor
            Floating point, shape [N, T].

        Raises
        ------
        ValueError
            A column holds NaN or infinity, or the same number in every row.
        """
        if targets.ndim != 2 or not targets.is_floating_point() or not len(targets):
            raise ValueError(
                f"targets must be floating point [N, T] with rows, not {targets.dtype} "
                f"{list(targets.shape)}"
            )
        for column, values in enumerate(targets.T):
            if not values.isfinite().all():
                raise ValueError(f"targets column {column} holds NaN or infinity")
            if (values == values[0]).all():
                raise ValueError(
                    f"targets column {column} is {values[0].item()} in all {len(values)} rows: "
                    "a constant cannot be standardised; leave it out"
                )
        wide = targets.double()
        return cls(wide.mean(0), wide.std(0, correction=0))

    def transform(self, targets: Tensor) -> Tensor:
        """Standardise targets [..., T]; float32 or wider comes back in its own dtype."""
        return (targets - self.mean) / self.std

    def inverse(self, standardised: Tensor) -> Tensor:
        """Return standardised targets [..., T] to their units."""
        return standardised * self.std + self.mean
