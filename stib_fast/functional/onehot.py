"""Dense one-hot encoding, and the convolution of what it would be."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from stib_fast.ops import moments as _moments
from stib_fast.ops import one_hot as _one_hot
from stib_fast.ops import one_hot_conv1d as _conv1d

OneHotLayout = Literal["BLV", "BVL"]


def one_hot(
    ids: Tensor,
    num_classes: int,
    dtype: torch.dtype = torch.float32,
    layout: OneHotLayout = "BLV",
    padding_idx: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Zeros with a one at each token's class, written once.

    A convolution or a linear layer does not need it: see `one_hot_conv1d`.

    Parameters
    ----------
    ids : Tensor
        [B, L] uint8, int8, int16, int32 or int64; any strides.
    num_classes : int
        Number of classes V.
    dtype : torch.dtype
        Of the result: float32, float64, bfloat16, float16, bool or one of the types of `ids`.
    layout : {"BLV", "BVL"}
        Classes last, or, as convolutions want them, before the positions.
    padding_idx : int, optional
        A class whose positions are all zero.
    out : Tensor, optional
        The result is written here: contiguous, of the result's shape, dtype and device. At
        gigabytes a new tensor costs as much again, for its pages.

    Returns
    -------
    Tensor
        [B, L, V] or [B, V, L], contiguous, without gradient; `out` where it is given.

    Raises
    ------
    ValueError
        Naming the argument. For an id outside [0, V): on the CPU, naming its position; `out` may be
        written in part. Under ``torch.compile`` that is a RuntimeError. On a GPU such a position is
        all zero: to look would stop the device.

    Examples
    --------
    >>> import torch
    >>> from stib_fast import functional as F
    >>> F.one_hot(torch.tensor([[2, 0]]), 3, dtype=torch.uint8, padding_idx=0)
    tensor([[[0, 0, 1],
             [0, 0, 0]]], dtype=torch.uint8)
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be positive; got {num_classes}")
    _one_hot.check_ids(ids, num_classes, padding_idx)
    if dtype not in _one_hot.DTYPES:
        known = ", ".join(str(known).removeprefix("torch.") for known in _one_hot.DTYPES)
        raise ValueError(f"dtype must be one of {known}; got {dtype}")
    if layout not in get_args(OneHotLayout):
        raise ValueError(f"layout must be 'BLV' or 'BVL'; got {layout!r}")
    if out is not None:
        batch, length = ids.shape
        shape = (num_classes, length) if layout == "BVL" else (length, num_classes)
        _check_out(out, (batch, *shape), dtype, ids.device)
    return _one_hot.one_hot(ids, num_classes, dtype, layout == "BVL", padding_idx, out)


def one_hot_conv1d(
    ids: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    padding_idx: int | None = None,
) -> Tensor:
    r"""Convolution of one-hot encoded tokens, read from their ids.

    .. math:: o_{bft} = \beta_f + \sum_k w_{f,\, c(b,\, t s - p + k d),\, k}

    with c the class at a position, s, p and d stride, padding and dilation: what
    ``torch.nn.functional.conv1d(one_hot(ids, V, layout="BVL"), weight, bias, ...)`` gives, without
    the one-hot tensor and without products.

    Parameters
    ----------
    ids : Tensor
        [B, L] uint8, int8, int16, int32 or int64; any strides.
    weight : Tensor
        [F, V, K] float32, float64, bfloat16 or float16, on the device of `ids`.
    bias : Tensor, optional
        [F], the dtype and device of `weight`.
    stride, padding, dilation : int
        As for ``torch.nn.functional.conv1d``.
    padding_idx : int, optional
        A class that contributes zero, whatever its weights, which get gradient 0.

    Returns
    -------
    Tensor
        [B, F, L'] of the weight's dtype, contiguous, L' = (L + 2 padding - dilation (K - 1) - 1) //
        stride + 1; differentiable in weight and bias to any order (once under ``torch.compile``).
        NaN or infinity in a weight touches only windows that hold its token.

    Raises
    ------
    ValueError
        Naming the argument. For an id outside [0, V): on the CPU, naming its position (a
        RuntimeError under ``torch.compile``). On a GPU such an id contributes zero.

    Notes
    -----
    Half precision is computed in float32 and rounded once; autocast leaves the inputs as they are.
    The result and the gradients have the same bits for any number of threads and from run to run.
    The transforms of ``torch.func`` need ``stib_fast.backend("eager")``.

    Examples
    --------
    >>> import torch
    >>> from stib_fast import functional as F
    >>> weight = torch.tensor([[[1.0, 10.0], [2.0, 20.0]]])  # one filter, two classes, two taps
    >>> F.one_hot_conv1d(torch.tensor([[0, 1, 1]]), weight)
    tensor([[[21., 22.]]])
    """
    _check_conv1d(ids, weight, bias, stride, padding, dilation)
    _one_hot.check_ids(ids, weight.shape[1], padding_idx)
    return _conv1d.one_hot_conv1d(ids, weight, bias, stride, padding, dilation, padding_idx)


def _check_out(
    out: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    if not isinstance(out, Tensor):
        raise ValueError(f"out must be a torch tensor; got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}; got {tuple(out.shape)}")
    if out.dtype != dtype:
        raise ValueError(f"out is {out.dtype} but dtype is {dtype}; give dtype=out.dtype")
    if out.device != device:
        raise ValueError(f"out is on {out.device} but ids is on {device}")
    if out.layout != torch.strided or not out.is_contiguous():
        raise ValueError("out must be contiguous")
    if out.requires_grad:
        raise ValueError("out has no gradient here; pass out.detach()")


def _check_conv1d(
    ids: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int
) -> None:
    if not isinstance(weight, Tensor) or weight.dim() != 3:
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"weight must be a tensor of shape [F, V, K]; got {shape}")
    if weight.dtype not in _moments.FLOATS:
        raise ValueError(
            f"weight must be float32, float64, bfloat16 or float16; got {weight.dtype}"
        )
    if 0 in weight.shape:
        raise ValueError(f"weight must not be empty; got {tuple(weight.shape)}")
    if bias is not None:
        if not isinstance(bias, Tensor) or bias.shape != weight.shape[:1]:
            shape = tuple(bias.shape) if isinstance(bias, Tensor) else type(bias).__name__
            raise ValueError(f"bias must be a tensor of shape [{weight.shape[0]}]; got {shape}")
        if bias.dtype != weight.dtype or bias.device != weight.device:
            raise ValueError(
                f"bias is {bias.dtype} on {bias.device} but weight is {weight.dtype} on "
                f"{weight.device}; convert one"
            )
    if isinstance(ids, Tensor) and ids.device != weight.device:
        raise ValueError(f"ids is on {ids.device} but weight is on {weight.device}")
    for name, value, least in (
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        return
    span = dilation * (weight.shape[2] - 1) + 1
    if ids.shape[1] + 2 * padding < span:
        raise ValueError(
            f"ids has {ids.shape[1]} positions, {ids.shape[1] + 2 * padding} with the padding, but "
            f"the kernel spans {span}; raise padding"
        )
