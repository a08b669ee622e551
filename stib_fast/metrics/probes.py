"""How much of y a regression recovers from features."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FOLDS = 5
NEIGHBOURS = 10


def probe_r2(features: Tensor, y: Tensor, *, seed: int = 0) -> float:
    """Cross-validated R² of ``y`` predicted from ``features`` by the better of two regressions.

    The two are the mean of the 10 nearest neighbours on standardised features, and gradient-boosted
    trees (scikit-learn's ``HistGradientBoostingRegressor``). For each column of ``y``, R² is taken
    over all rows, each predicted by the model that was fitted without its fold (5 folds, shuffled);
    the larger of the two R² counts. The result is the mean over the columns of ``y``.

    Parameters
    ----------
    features : Tensor
        ``[n, d]`` or ``[n]``, real floating dtype, ``n >= 10``.
    y : Tensor
        ``[n, m]`` or ``[n]``.
    seed : int
        Seed of the folds and of the trees.

    Returns
    -------
    float
        At most 1. Near 0 or below when nothing is predictable; not clipped.

    Raises
    ------
    ValueError
        For NaN or infinite entries, a dtype that is not real floating, different or too few rows,
        or a constant column of ``y``.

    Examples
    --------
    >>> x = torch.linspace(-3, 3, 200)
    >>> probe_r2(x, x.sin()) > 0.98
    True
    """
    table, targets = _table("features", features), _table("y", y)
    if len(table) != len(targets) or len(table) < 2 * FOLDS:
        raise ValueError(
            f"features and y must have the same number of rows, at least {2 * FOLDS}, "
            f"got {len(table)} and {len(targets)}"
        )
    constant = np.flatnonzero(targets.max(axis=0) == targets.min(axis=0))
    if constant.size:
        raise ValueError(
            f"y is constant in column {constant[0]}: R² is not defined; drop the column"
        )
    r2 = np.maximum(
        _r2(targets, _neighbours(table, targets, seed)), _r2(targets, _trees(table, targets, seed))
    )
    return float(r2.mean())


def _table(name: str, value: Tensor) -> NDArray[np.float64]:
    if not value.is_floating_point():
        raise ValueError(f"{name} must have a real floating dtype, got {value.dtype}; cast it")
    if value.ndim not in (1, 2) or value.numel() == 0:
        raise ValueError(
            f"{name} must be a non-empty [n, d] or [n] tensor, got {tuple(value.shape)}"
        )
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} holds NaN or infinity; remove these rows")
    return value.detach().cpu().double().numpy().reshape(len(value), -1)


def _r2(targets: NDArray[np.float64], predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    residual = ((targets - predicted) ** 2).sum(axis=0)
    return np.asarray(1 - residual / ((targets - targets.mean(axis=0)) ** 2).sum(axis=0))


def _neighbours(
    table: NDArray[np.float64], targets: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    neighbours = min(NEIGHBOURS, len(table) - len(table) // FOLDS - 1)
    model = make_pipeline(StandardScaler(), KNeighborsRegressor(neighbours))
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    return np.asarray(cross_val_predict(model, table, targets, cv=folds))


def _trees(
    table: NDArray[np.float64], targets: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.model_selection import KFold, cross_val_predict
    from threadpoolctl import threadpool_limits

    model = HistGradientBoostingRegressor(random_state=seed)
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    # On tables of this size the threads' waiting costs more than they bring: 2 s on one thread
    # became 5 to 20 s on two (10,000 rows, 14 columns, other work on the machine).
    with threadpool_limits(1):
        columns = [cross_val_predict(model, table, column, cv=folds) for column in targets.T]
    return np.stack(columns, axis=1)
