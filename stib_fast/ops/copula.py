"""Ranks as normal scores, which turn Gaussian mutual information into that of a Gaussian copula."""

from __future__ import annotations

import torch
from torch import Tensor


def normal_scores(x: Tensor) -> Tensor:
    """Each column's quantiles of the standard normal at rank / (rows + 1), as float64.

    Tied rows share the mean of their ranks. (Ince et al. 2017 rank them in the order in which they
    stand, so that columns which are tied in the same rows look dependent.)
    """
    columns = x.detach().mT
    # MPS has no float64, and half precision no searchsorted on a GPU.
    columns = columns.cpu() if x.device.type == "mps" else columns
    columns = columns.to(torch.float64).contiguous()
    ordered, places = columns.sort(dim=1)
    below = torch.searchsorted(ordered, ordered)
    up_to = torch.searchsorted(ordered, ordered, right=True)
    ranks = (below + up_to + 1).to(torch.float64) / 2
    scores = torch.special.ndtri(ranks / (len(x) + 1))
    return torch.empty_like(scores).scatter_(1, places, scores).mT


def refuse_nan(name: str, x: Tensor) -> None:
    """Refuse what has no rank.

    Raises
    ------
    ValueError
        Naming the first rows.
    """
    bad = x.detach().isnan().any(dim=1).nonzero().flatten().tolist()
    if bad:
        first = ", ".join(map(str, bad[:5]))
        raise ValueError(f"{name} holds NaN in {len(bad)} rows (first: {first}); remove these rows")
