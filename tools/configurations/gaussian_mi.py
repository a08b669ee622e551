"""Calls of the Triton kernels of gaussian_mi: moments, and rows of the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stib_fast.kernels import gaussian_mi

LARGE = 2**22
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SIZES = {4: (2, 2), 18: (9, 9), 32: (16, 16), 64: (32, 32), 128: (64, 64)}


def _empty(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _parts(dtype: torch.dtype, sizes: tuple[int, ...], rows: int) -> list[torch.Tensor]:
    return [_empty(rows, size, dtype=dtype) for size in sizes]


def _moments(
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    rows: int = LARGE,
    weighted: bool = False,
    fast: bool = False,
) -> Callable[[], Any]:
    weight = _empty(rows) if weighted else None
    return lambda: gaussian_mi.moments(_parts(dtype, sizes, rows), weight, fast)


def _apply(
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    rows: int = LARGE,
    weighted: bool = False,
    shifted: bool = False,
) -> Callable[[], Any]:
    d = sum(sizes)
    weight = _empty(rows) if weighted else None
    shift, factor = (_empty(d), None) if shifted else (None, _empty(dtype=torch.float32))
    arguments = (weight, _empty(d), _empty(d), _empty(d, d), shift, factor)
    return lambda: gaussian_mi.apply(_parts(dtype, sizes, rows), *arguments)


CONFIGURATIONS: dict[str, Callable[[], Any]] = {}
for _dtype in FLOATS:
    _name = str(_dtype).removeprefix("torch.")
    for _d, _sizes in SIZES.items():
        CONFIGURATIONS[f"moments {_name} d={_d}"] = _moments(_dtype, _sizes)
        CONFIGURATIONS[f"moments {_name} d={_d} weighted"] = _moments(_dtype, _sizes, weighted=True)
        CONFIGURATIONS[f"moments {_name} d={_d} fast"] = _moments(_dtype, _sizes, fast=True)
        CONFIGURATIONS[f"apply {_name} d={_d}"] = _apply(_dtype, _sizes)
CONFIGURATIONS |= {
    "moments float32 d=4 B=60": _moments(torch.float32, (2, 2), 60),
    "moments float32 d=18 16+2": _moments(torch.float32, (16, 2)),
    "moments float32 d=33 in three": _moments(torch.float32, (7, 9, 17)),
    "moments float32 d=1": _moments(torch.float32, (1,)),
    "moments float64 d=128 weighted fast": _moments(
        torch.float64, (64, 64), weighted=True, fast=True
    ),
    "apply float32 d=18 16+2": _apply(torch.float32, (16, 2)),
    "apply float32 d=18 weighted": _apply(torch.float32, (9, 9), weighted=True),
    "apply float32 d=18 weighted shifted": _apply(torch.float32, (9, 9), LARGE, True, True),
    "apply float64 d=128 weighted shifted": _apply(torch.float64, (64, 64), LARGE, True, True),
    "apply float32 d=33 in three": _apply(torch.float32, (7, 9, 17)),
    "apply float32 d=1": _apply(torch.float32, (1,)),
}
