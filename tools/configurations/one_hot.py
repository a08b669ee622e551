"""Calls of the Triton kernels of one_hot and one_hot_conv1d."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stib_fast.kernels import one_hot, one_hot_conv1d


def _ids(dtype: torch.dtype, batch: int = 4096, length: int = 120) -> torch.Tensor:
    return torch.empty((batch, length), dtype=dtype, device="meta")


ZINC = _ids(torch.uint8)
INT64 = _ids(torch.int64)
ODD = _ids(torch.int64, length=37)
SIXTEEN = _ids(torch.uint8, length=16)
ONE = _ids(torch.uint8, batch=1, length=1)


def _one_hot(
    dtype: torch.dtype, layout: str, classes: int = 64, ids: torch.Tensor = ZINC
) -> Callable[[], Any]:
    batch, length = ids.shape
    shape = (batch, length, classes) if layout == "BLV" else (batch, classes, length)
    out = torch.empty(shape, dtype=dtype, device="meta")
    return lambda: one_hot.one_hot(out, ids, layout == "BVL", 0)


def _forward(
    dtype: torch.dtype,
    filters: int,
    ids: torch.Tensor = ZINC,
    classes: int = 64,
    taps: int = 9,
    stride: int = 1,
) -> Callable[[], Any]:
    weight = torch.empty((filters, classes, taps), dtype=dtype, device="meta")
    bias = weight[:, 0, 0]
    return lambda: one_hot_conv1d.one_hot_conv1d(ids, weight, bias, stride, taps // 2, 1, 0)


def _gradient(
    dtype: torch.dtype,
    filters: int,
    ids: torch.Tensor = ZINC,
    classes: int = 64,
    taps: int = 9,
    stride: int = 1,
    strides: tuple[int, int, int] | None = None,
) -> Callable[[], Any]:
    shape = (ids.shape[0], filters, (ids.shape[1] - 1) // stride + 1)
    grad = torch.empty(shape, dtype=dtype, device="meta")
    if strides is not None:
        grad = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    function = one_hot_conv1d.one_hot_conv1d_backward
    return lambda: function(ids, grad, classes, taps, stride, taps // 2, 1, 0)


FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
CONFIGURATIONS: dict[str, Callable[[], Any]] = {}
for _dtype in (*FLOATS, torch.uint8, torch.bool):
    _name = str(_dtype).removeprefix("torch.")
    for _layout in ("BLV", "BVL"):
        CONFIGURATIONS[f"one_hot {_name} {_layout} V=64"] = _one_hot(_dtype, _layout, 64)
for _dtype in FLOATS:
    _name = str(_dtype).removeprefix("torch.")
    for _filters in (9, 128):
        CONFIGURATIONS[f"conv1d {_name} F={_filters}"] = _forward(_dtype, _filters)
        CONFIGURATIONS[f"conv1d gradient {_name} F={_filters}"] = _gradient(_dtype, _filters)
CONFIGURATIONS |= {
    # 63 classes of a byte: a word of 4 spans rows. Length 37: rows begin at any byte.
    "one_hot uint8 BLV V=63": _one_hot(torch.uint8, "BLV", 63),
    "one_hot uint8 BVL L=37": _one_hot(torch.uint8, "BVL", ids=ODD),
    "one_hot float32 BLV V=66 int64": _one_hot(torch.float32, "BLV", 66, INT64),
    "one_hot float32 BVL V=66 int64": _one_hot(torch.float32, "BVL", 66, INT64),
    "conv1d float32 F=33 L=37": _forward(torch.float32, 33, ODD),
    "conv1d float32 F=128 stride 2": _forward(torch.float32, 128, INT64, stride=2),
    "conv1d gradient float32 F=33 L=37": _gradient(torch.float32, 33, ODD),
    "conv1d gradient float32 F=128 stride 2": _gradient(torch.float32, 128, INT64, stride=2),
    "conv1d gradient float32 F=128 V=66": _gradient(torch.float32, 128, classes=66),
    # A stride past 2**31 elements: offsets of 64 bits.
    "conv1d gradient float32 far": _gradient(torch.float32, 128, strides=(1, 2**28, 2**13)),
    # Triton makes a constant of every number that is 1.
    "one_hot float32 BVL L=16": _one_hot(torch.float32, "BVL", ids=SIXTEEN),
    "conv1d gradient float32 L=16": _gradient(torch.float32, 128, SIXTEEN),
    "one_hot float32 BLV ones": _one_hot(torch.float32, "BLV", 1, ONE),
    "one_hot float32 BVL ones": _one_hot(torch.float32, "BVL", 1, ONE),
    "conv1d float32 ones": _forward(torch.float32, 1, ONE, classes=1, taps=1),
    "conv1d gradient float32 ones": _gradient(torch.float32, 1, ONE, classes=1, taps=1),
}
