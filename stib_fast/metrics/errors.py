"""Errors of reconstruction and prediction."""

from __future__ import annotations

import torch
from torch import Tensor


def mae(prediction: Tensor, target: Tensor) -> float:
    """Mean over samples of the absolute error summed over dimensions, as in the paper's tables.

    Parameters
    ----------
    prediction : Tensor
        ``[n, ...]``, real floating dtype.
    target : Tensor
        The same shape as ``prediction``.

    Returns
    -------
    float
        The error in the units of the target; NaN if an entry is NaN.

    Raises
    ------
    ValueError
        If the shapes differ (nothing is broadcast) or there is no sample.

    Examples
    --------
    >>> mae(torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [-1.0, 0.0]]))
    2.0
    """
    if prediction.shape != target.shape:
        raise ValueError(
            "prediction and target must have the same shape, "
            f"got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    if prediction.ndim == 0 or prediction.numel() == 0:
        raise ValueError(f"prediction must hold samples, got the shape {tuple(prediction.shape)}")
    # Half precision would lose the sum over samples, and its differences.
    wide = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    error = (prediction.detach().to(wide) - target.detach().to(wide)).abs()
    return float(error.sum() / len(prediction))
