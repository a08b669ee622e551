"""Accuracies of decoded token ids."""

from __future__ import annotations

import torch
from torch import Tensor


def token_accuracy(predicted: Tensor, target: Tensor, pad_id: int) -> float:
    """Share of the target's positions (padding left out) where the prediction agrees.

    Parameters
    ----------
    predicted, target : Tensor
        Integer ids, shape [N, L].
    pad_id : int
        Positions of this id in `target` do not count.

    Returns
    -------
    float
        In [0, 1], over all positions together.

    Raises
    ------
    ValueError
        The shapes differ, or the target holds nothing but padding.

    Examples
    --------
    >>> token_accuracy(torch.tensor([[4, 9, 2, 5]]), torch.tensor([[4, 5, 2, 0]]), pad_id=0)
    0.6666666666666666
    """
    agrees, counts = _compare(predicted, target, pad_id)
    return int((agrees & counts).sum()) / int(counts.sum())


def string_accuracy(predicted: Tensor, target: Tensor, pad_id: int) -> float:
    """Share of the rows that agree at every position of the target up to and including eos.

    Parameters
    ----------
    predicted, target : Tensor
        Integer ids, shape [N, L].
    pad_id : int
        Positions of this id in `target` do not count.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        The shapes differ, or the target holds nothing but padding.

    Examples
    --------
    >>> predicted = torch.tensor([[4, 2, 0], [4, 5, 2]])
    >>> string_accuracy(predicted, torch.tensor([[4, 2, 0], [4, 2, 0]]), pad_id=0)
    0.5
    """
    agrees, counts = _compare(predicted, target, pad_id)
    return int((agrees | ~counts).all(dim=1).sum()) / len(target)


def _compare(predicted: Tensor, target: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
    if predicted.shape != target.shape or target.ndim != 2:
        raise ValueError(
            f"predicted {list(predicted.shape)} and target {list(target.shape)} must both be [N, L]"
        )
    counts = target != pad_id
    if not bool(counts.any()):
        raise ValueError("target holds no position other than padding")
    return predicted.to(torch.int64) == target.to(torch.int64), counts
