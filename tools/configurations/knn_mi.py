"""Calls of the Triton kernels of knn_mi."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stib_fast.kernels import knn_mi


def _radii(dtype: torch.dtype, k: int, variant: int = 1, n: int = 250_000) -> Callable[[], Any]:
    points = torch.empty((n, 17), dtype=dtype, device="meta")
    return lambda: knn_mi.knn_radii(points, 16, k, variant, 0, n)


def _counts(dtype: torch.dtype, columns: int, closed: bool, n: int = 250_000) -> Callable[[], Any]:
    points = torch.empty((n, columns), dtype=dtype, device="meta")
    radius = torch.empty(n, dtype=dtype, device="meta")
    return lambda: knn_mi.knn_counts(points, radius, closed, 0, n)


CONFIGURATIONS: dict[str, Callable[[], Any]] = {}
for _dtype in (torch.float32, torch.float64):
    _name = str(_dtype).removeprefix("torch.")
    for _k in (1, 20, 255):
        CONFIGURATIONS[f"knn_radii {_name} k={_k}"] = _radii(_dtype, _k)
    CONFIGURATIONS[f"knn_radii {_name} k=20 variant 2"] = _radii(_dtype, 20, 2)
    CONFIGURATIONS[f"knn_counts {_name} d=16"] = _counts(_dtype, 16, False)
    CONFIGURATIONS[f"knn_counts {_name} d=1 closed"] = _counts(_dtype, 1, True)
