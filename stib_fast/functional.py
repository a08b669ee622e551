"""The public ops as functions."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from stib_fast.knn import KnnEstimate, knn_entropy, knn_mi, knn_mi_subsampled
from stib_fast.moments import Moments
from stib_fast.ops import copula as _copula
from stib_fast.ops import gaussian_mi as _mi
from stib_fast.ops import moments as _moments
from stib_fast.ops import one_hot as _one_hot
from stib_fast.ops import one_hot_conv1d as _conv1d

__all__ = [
    "KnnEstimate",
    "gaussian_cmi",
    "gaussian_cmi_of",
    "gaussian_copula_cmi",
    "gaussian_copula_mi",
    "gaussian_mi",
    "gaussian_mi_of",
    "knn_entropy",
    "knn_mi",
    "knn_mi_subsampled",
    "moments",
    "normal_scores",
    "one_hot",
    "one_hot_conv1d",
]

Precision = Literal["exact", "fast"]
OneHotLayout = Literal["BLV", "BVL"]
DEFAULT_EPS = {"exact": 1e-9, "fast": 1e-4}


def gaussian_mi(
    z: Tensor,
    y: Tensor,
    *,
    weight: Tensor | None = None,
    eps: float | None = None,
    bias_correction: bool = False,
    precision: Precision = "exact",
) -> Tensor:
    r"""Mutual information of the Gaussian with the batch's correlations, in nats.

    .. math:: I(Z; Y) = -\tfrac12 \log |1 - (1 - \varepsilon)^2 K K^\top|, \qquad
              K = L_Z^{-1} R_{ZY} L_Y^{-\top}

    with R the correlation matrix of the batch and L the Cholesky factors of its diagonal blocks:
    Eq. (8) and (9) of Wieser et al. 2020 (the sign of Eq. 9 put right). It is invariant under
    invertible affine maps of either side, zero for uncorrelated parts, and about n m / (2 B) too
    large on average for independent ones.

    Parameters
    ----------
    z : Tensor
        [B, n] float32, float64, bfloat16 or float16; any strides are read in place.
    y : Tensor
        [B, m], the dtype and device of `z`.
    weight : Tensor, optional
        [B] how often each row counts (0 leaves it out, but NaN in it is still NaN); no gradient.
        They must sum to 2 at least.
    eps : float, optional
        Shrinks the canonical correlations by 1 - eps, which caps the result near
        -½ log(2 eps) nats a dimension. Default 1e-9, or 1e-4 with ``precision="fast"``.
    bias_correction : bool
        Subtract the bias of a Gaussian sample of this size (Ince et al. 2017, Hum. Brain Mapp.
        38:1541). The result can then be negative. A constant: gradients do not change.
    precision : {"exact", "fast"}
        ``"exact"`` multiplies in float64 whatever the input; ``"fast"`` in float32, which is wrong
        in the gradient by about 1e-6 / (1 - ρ²) for a largest canonical correlation ρ, and NaN
        where a factorisation fails. Its columns must lie within 1e-15 and 1e15 in size.

    Returns
    -------
    Tensor
        0-dim, float64 for float64 input and float32 otherwise; differentiable in z and y, twice in
        eager mode. NaN, with NaN gradients, where the input holds NaN or infinity. Columns that are
        constant up to rounding are correlated with nothing and get gradient 0.

    Raises
    ------
    ValueError
        Naming the argument: fewer than two rows, mismatched rows, dtypes or devices, integers,
        shapes other than [B, columns] (there are no leading batch dimensions), bad weights.

    Notes
    -----
    The result has the same bits for any number of threads and from run to run; on the eager
    backend, past 16 columns a side, LAPACK's triangular solves may round otherwise with another
    number of threads. Autocast leaves the inputs as they are. The transforms of ``torch.func``
    (vmap, jvp, grad) raise, and work under ``stib_fast.backend("eager")``. Under
    ``torch.compile`` a second derivative raises.
    float64 columns should lie within 1e-150 and 1e150 in size: their squares are summed.

    Examples
    --------
    >>> import torch
    >>> from stib_fast import functional as F
    >>> _ = torch.manual_seed(0)
    >>> z = torch.randn(10_000, 2, requires_grad=True)
    >>> y = z.detach() + torch.randn(10_000, 2)
    >>> mi = F.gaussian_mi(z, y)  # exact value: log 2 = 0.693 nats
    >>> mi.backward()
    >>> round(mi.item(), 1), tuple(z.grad.shape)
    (0.7, (10000, 2))
    """
    _moments.check_parts(("z", "y"), (z, y))
    n, m = z.shape[1], y.shape[1]
    weight, count = _checked_count("z", z, weight, n + m + 1 if bias_correction else 2)
    fast = _is_fast(precision)
    value = _mi.gaussian_mi(z, y, weight, _checked_eps(eps, precision), fast)
    return value - _gaussian_bias(count, n, m).to(value) if bias_correction else value


def gaussian_cmi(
    x: Tensor,
    y: Tensor,
    c: Tensor,
    *,
    weight: Tensor | None = None,
    eps: float | None = None,
    bias_correction: bool = False,
) -> Tensor:
    r"""I(X; Y | C) of the Gaussian with the batch's correlations, in nats.

    .. math:: I(X; Y | C) = I(X; Y, C) - I(X; C)
              = -\tfrac12 \log |1 - (1 - \varepsilon)^2 K_C K_C^\top|

    with :math:`K_C` as in `gaussian_mi`, of the residuals of x and y after linear regression on c.
    It is invariant under invertible affine maps of each of the three, and `gaussian_mi` where c is
    constant.

    Parameters
    ----------
    x : Tensor
        [B, n] float32, float64, bfloat16 or float16; any strides are read in place.
    y, c : Tensor
        [B, m] and [B, p], the dtype and device of `x`.
    weight : Tensor, optional
        [B] how often each row counts; no gradient. They must sum to 2 at least.
    eps : float, optional
        Shrinks the canonical partial correlations by 1 - eps. Default 1e-9.
    bias_correction : bool
        Subtract the bias of a Gaussian sample of this size (Ince et al. 2017, Hum. Brain Mapp.
        38:1541, ``cmi_ggg``): that of `gaussian_mi` with p rows fewer. The result can then be
        negative. A constant: gradients do not change.

    Returns
    -------
    Tensor
        0-dim, float64 for float64 input and float32 otherwise; differentiable in x, y and c, twice
        in eager mode. NaN, with NaN gradients, where the input holds NaN or infinity. Columns that
        are constant, or that c determines, count for nothing: what c leaves of a column is lost
        from about 1e-6 of its standard deviation down. Finite for B <= n + m + p.

    Raises
    ------
    ValueError
        As for `gaussian_mi`.

    Examples
    --------
    >>> import torch
    >>> from stib_fast import functional as F
    >>> _ = torch.manual_seed(0)
    >>> c = torch.randn(10_000, 1)
    >>> x, y = c + torch.randn(10_000, 1), c + torch.randn(10_000, 1)
    >>> round(F.gaussian_mi(x, y).item(), 1)  # exact value: 1/2 log 4/3 = 0.144 nats
    0.1
    >>> abs(F.gaussian_cmi(x, y, c).item()) < 1e-3  # c is all that they share
    True
    """
    _moments.check_parts(("x", "y", "c"), (x, y, c))
    needed = x.shape[1] + y.shape[1] + c.shape[1] + 1 if bias_correction else 2
    weight, _ = _checked_count("x", x, weight, needed)
    sample = moments(x, y, c, weight=weight)
    value = gaussian_cmi_of(sample, eps=eps, bias_correction=bias_correction)
    return value.to(x.device, _mi.result_dtype(x.dtype))


def normal_scores(x: Tensor) -> Tensor:
    """Replace each column by the normal quantiles of its ranks: the copula transform.

    Column by column rank / (B + 1) becomes the quantile of the standard normal distribution (Ince
    et al. 2017, Hum. Brain Mapp. 38:1541, ``copnorm``); tied rows share the mean of their ranks.
    Gaussian statistics of the scores do not change with strictly increasing maps of any column.
    `gaussian_copula_mi` does this itself; for many statistics of the same columns do it once.

    Parameters
    ----------
    x : Tensor
        [B, n] float32, float64, bfloat16 or float16. Infinities rank first and last.

    Returns
    -------
    Tensor
        [B, n] float64, without gradient; 0 in constant columns.

    Raises
    ------
    ValueError
        For NaN, naming its rows; an integer dtype, or another shape.

    Examples
    --------
    >>> import torch
    >>> from stib_fast import functional as F
    >>> F.normal_scores(torch.tensor([[3.0], [8.0], [3.0], [-70.0]])).flatten().round(decimals=2)
    tensor([ 0.0000,  0.8400,  0.0000, -0.8400], dtype=torch.float64)
    """
    _moments.check_parts(("x",), (x,))
    _copula.refuse_nan("x", x)
    return _copula.normal_scores(x)


def gaussian_copula_mi(x: Tensor, y: Tensor, *, bias_correction: bool = True) -> Tensor:
    """Mutual information of the Gaussian copula with the batch's rank correlations, in nats.

    `gaussian_mi` of the `normal_scores` of x and y (Ince et al. 2017, Hum. Brain Mapp. 38:1541,
    ``gcmi_cc``). It does not change with strictly monotone maps of any column. It is right where
    the columns are such maps of jointly Gaussian ones, and blind to dependence that does not
    correlate the scores. For one column a side it estimates a lower bound of the mutual
    information. The correction leaves no bias for independent columns, and a few times -1 / B for
    dependent ones (measured: -0.005 nats at B = 1000, 5 columns a side, 1 nat).

    Parameters
    ----------
    x : Tensor
        [B, n] float32, float64, bfloat16 or float16. Infinities rank first and last.
    y : Tensor
        [B, m], the dtype and device of `x`.
    bias_correction : bool
        Subtract the bias of a Gaussian sample of this size, which that of the scores comes close
        to. The result can then be negative.

    Returns
    -------
    Tensor
        0-dim, float64 for float64 input and float32 otherwise. Not differentiable: ranks are
        piecewise constant. Constant columns are correlated with nothing.

    Raises
    ------
    ValueError
        For NaN, naming its rows; otherwise as for `gaussian_mi`. With bias correction n + m + 1
        rows are needed.

    Examples
    --------
    >>> import torch
    >>> from stib_fast import functional as F
    >>> _ = torch.manual_seed(0)
    >>> z = torch.randn(10_000, 1)
    >>> x, y = z.exp(), (z + torch.randn(10_000, 1)) ** 3  # exact value: log(2) / 2 = 0.347 nats
    >>> round(F.gaussian_copula_mi(x, y).item(), 2), round(F.gaussian_mi(x, y).item(), 2)
    (0.35, 0.17)
    """
    _moments.check_parts(("x", "y"), (x, y))
    _checked_count("x", x, None, x.shape[1] + y.shape[1] + 1 if bias_correction else 2)
    scores = _scores(x=x, y=y)
    value = gaussian_mi(*scores, bias_correction=bias_correction)
    return value.to(_mi.result_dtype(x.dtype))


def gaussian_copula_cmi(x: Tensor, y: Tensor, c: Tensor, *, bias_correction: bool = True) -> Tensor:
    """Conditional mutual information I(X; Y | C) of the Gaussian copula, in nats.

    `gaussian_cmi` of the `normal_scores` of all three (Ince et al. 2017, Hum. Brain Mapp. 38:1541,
    ``gccmi_ccc``), with the merits and limits of `gaussian_copula_mi`.

    Parameters
    ----------
    x : Tensor
        [B, n] float32, float64, bfloat16 or float16. Infinities rank first and last.
    y, c : Tensor
        [B, m] and [B, p], the dtype and device of `x`.
    bias_correction : bool
        Subtract the bias of a Gaussian sample of this size. The result can then be negative.

    Returns
    -------
    Tensor
        0-dim, float64 for float64 input and float32 otherwise. Not differentiable.

    Raises
    ------
    ValueError
        For NaN, naming its rows; otherwise as for `gaussian_mi`. With bias correction n + m + p + 1
        rows are needed.

    Examples
    --------
    >>> import torch
    >>> from stib_fast import functional as F
    >>> _ = torch.manual_seed(0)
    >>> c = torch.randn(10_000, 1)
    >>> x, y = (c + torch.randn(10_000, 1)).exp(), c + torch.randn(10_000, 1)
    >>> abs(F.gaussian_copula_cmi(x, y, c.exp()).item()) < 1e-3
    True
    """
    _moments.check_parts(("x", "y", "c"), (x, y, c))
    columns = x.shape[1] + y.shape[1] + c.shape[1]
    _checked_count("x", x, None, columns + 1 if bias_correction else 2)
    value = gaussian_cmi(*_scores(x=x, y=y, c=c), bias_correction=bias_correction)
    return value.to(_mi.result_dtype(x.dtype))


def moments(*parts: Tensor, weight: Tensor | None = None) -> Moments:
    """Count, mean and scatter of a sample in several parts, in one read of each.

    Parameters
    ----------
    *parts : Tensor
        [B, n_i] of one dtype (float32, float64, bfloat16, float16) and device; B may be 0.
    weight : Tensor, optional
        [B] how often each row counts; no gradient.

    Returns
    -------
    Moments
        In float64; differentiable in the parts. Moments of separate batches add up with ``+``.

    Raises
    ------
    ValueError
        Naming the part: mismatched rows, dtypes or devices, integers, shapes, bad weights.

    Examples
    --------
    >>> import torch
    >>> from stib_fast import functional as F
    >>> m = F.moments(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    >>> m.mean.tolist(), m.scatter[0].tolist(), m.sizes
    ([2.0, 1.0, 3.0], [2.0, 2.0, 4.0], (1, 2))
    """
    if not parts:
        raise ValueError("parts: at least one tensor is needed")
    _moments.check_parts([f"parts[{i}]" for i in range(len(parts))], parts)
    if weight is not None:
        weight = _moments.check_weight(weight, parts[0])
    sizes = tuple(part.shape[1] for part in parts)
    return Moments(*_moments.moments(parts, weight, False), sizes=sizes, dtype=parts[0].dtype)


def gaussian_mi_of(
    moments: Moments, *, eps: float | None = None, bias_correction: bool = False
) -> Tensor:
    """`gaussian_mi` between the two parts of given moments, in nats.

    For samples that never are in one place: sum the moments of their batches first.

    Parameters
    ----------
    moments : Moments
        Of exactly two parts.
    eps, bias_correction
        As for `gaussian_mi`.

    Returns
    -------
    Tensor
        0-dim float64, differentiable in the moments. NaN where the count is below 2.

    Raises
    ------
    ValueError
        If the moments are not of two parts.

    Examples
    --------
    >>> import torch
    >>> from stib_fast import functional as F
    >>> _ = torch.manual_seed(0)
    >>> z = torch.randn(1000, 2)
    >>> y = z + torch.randn(1000, 2)
    >>> batches = F.moments(z[:300], y[:300]) + F.moments(z[300:], y[300:])
    >>> bool(torch.isclose(F.gaussian_mi_of(batches).float(), F.gaussian_mi(z, y)))
    True
    """
    if len(moments.sizes) != 2:
        raise ValueError(f"moments must be of two parts; these are of {len(moments.sizes)}")
    n, m = moments.sizes
    value = _mi.finalize(
        moments.count, moments.mean, moments.scatter, n, _checked_eps(eps, "exact"), moments.dtype
    )
    return value - _gaussian_bias(moments.count, n, m).to(value) if bias_correction else value


def gaussian_cmi_of(
    moments: Moments, *, eps: float | None = None, bias_correction: bool = False
) -> Tensor:
    """`gaussian_cmi` between the first two of three parts given the third, in nats.

    For samples that never are in one place: sum the moments of their batches first.

    Parameters
    ----------
    moments : Moments
        Of exactly three parts: x, y and c.
    eps, bias_correction
        As for `gaussian_cmi`.

    Returns
    -------
    Tensor
        0-dim float64, differentiable in the moments. NaN where the count is below 2.

    Raises
    ------
    ValueError
        If the moments are not of three parts.

    Examples
    --------
    >>> import torch
    >>> from stib_fast import functional as F
    >>> _ = torch.manual_seed(0)
    >>> c = torch.randn(1000, 1)
    >>> x, y = c + torch.randn(1000, 2), c + torch.randn(1000, 1)
    >>> batches = F.moments(x[:300], y[:300], c[:300]) + F.moments(x[300:], y[300:], c[300:])
    >>> bool(torch.isclose(F.gaussian_cmi_of(batches).float(), F.gaussian_cmi(x, y, c)))
    True
    """
    if len(moments.sizes) != 3:
        raise ValueError(f"moments must be of three parts; these are of {len(moments.sizes)}")
    n, m, p = moments.sizes
    value = _mi.finalize_conditional(
        moments.count,
        moments.mean,
        moments.scatter,
        n,
        m,
        _checked_eps(eps, "exact"),
        moments.dtype,
    )
    return value - _gaussian_bias(moments.count - p, n, m).to(value) if bias_correction else value


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


def _checked_count(
    name: str, x: Tensor, weight: Tensor | None, needed: int
) -> tuple[Tensor | None, Tensor | int]:
    """The weight as the ops want it, and the number of rows, which must not be below `needed`."""
    rows = x.shape[0]
    if rows < 2 or (weight is None and rows < needed):
        raise ValueError(f"{name} has {rows} rows; {needed} are needed at least")
    if weight is None:
        return None, rows
    weight = _moments.check_weight(weight, x)
    count = weight.sum()
    if _moments.is_readable(weight) and not bool(count >= needed):
        raise ValueError(
            f"weight sums to less than {needed}: it says how often each row counts; rescale it"
        )
    return weight, count


def _scores(**parts: Tensor) -> list[Tensor]:
    for name, part in parts.items():
        _copula.refuse_nan(name, part)
    return [_copula.normal_scores(part) for part in parts.values()]


def _is_fast(precision: str) -> bool:
    if precision not in DEFAULT_EPS:
        raise ValueError(f"precision must be 'exact' or 'fast'; got {precision!r}")
    return precision == "fast"


def _checked_eps(eps: float | None, precision: str) -> float:
    if eps is None:
        return DEFAULT_EPS[precision]
    if not 0 <= eps < 1:
        raise ValueError(f"eps must lie in [0, 1); got {eps}")
    return float(eps)


def _gaussian_bias(count: Tensor | int, n: int, m: int) -> Tensor:
    """E[sample MI] - MI for Gaussian samples, in nats: the digamma terms of Ince et al. 2017.

    NaN where the count is not above n + m: there the covariance has no expected log-determinant.
    """
    device = count.device if isinstance(count, Tensor) else None
    degrees = count - torch.arange(1, n + m + 1, dtype=torch.float64, device=device)
    terms = torch.special.digamma(torch.where(degrees > 0, degrees, torch.nan) / 2) / 2
    return terms[:n].sum() + terms[:m].sum() - terms.sum()
