"""Gaussian mutual information of samples and of their moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from stib_fast.moments import Moments
from stib_fast.ops import gaussian_mi as _mi
from stib_fast.ops import moments as _moments

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Precision = Literal["exact", "fast"]
DEFAULT_EPS = {"exact": 1e-9, "fast": 1e-4}


def gaussian_mi(
    z: Tensor,
    y: Tensor,
    *,
    weight: Tensor | None = None,
    eps: float | None = None,
    bias_correction: bool = False,
    precision: Precision = "exact",
    group: ProcessGroup | None = None,
    whole: Moments | None = None,
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
    group : torch.distributed.ProcessGroup, optional
        The batch is spread over the processes of the group, which all call this: the value is that
        of all rows, the same bits on every process, and 1 + d + d² float64 numbers a process cross
        the network (d = n + m). Gradients are those of the own rows times the number of processes,
        so that their mean over the processes, as ``DistributedDataParallel`` takes it, is the
        gradient of the whole. All processes must weigh the value alike in their losses. A process
        may hold no rows; below two rows in all, the value is NaN. Second derivatives hold the other
        processes' rows fixed.
    whole : Moments, optional
        The rows are a micro-batch, part of a sample of z and y with these moments (`moments`, added
        up without gradient in a pass before). The value is that of the whole, and the gradients are
        those of the rows that are here, so that one backward after the other adds up to the
        gradient of the whole with the activations of one micro-batch. `weight` is that of the rows
        here; there are no second derivatives. Over processes give ``sum.gathered(group)`` here, not
        `group`, and multiply the loss by the number of processes.

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
    fast, eps = _is_fast(precision), _checked_eps(eps, precision)
    if group is not None and whole is not None:
        raise ValueError("group and whole exclude each other; give whole=whole.gathered(group)")
    if group is not None:
        sample = _sample((z, y), weight, fast).gathered(group)
        value = gaussian_mi_of(sample, eps=eps, bias_correction=bias_correction)
        return value.to(z.device, _mi.result_dtype(z.dtype))
    if whole is not None:
        value = _part_of(whole, _sample((z, y), weight, fast), eps, bias_correction)
        return value.to(z.device, _mi.result_dtype(z.dtype))
    weight, count = checked_count("z", z, weight, n + m + 1 if bias_correction else 2)
    value = _mi.gaussian_mi(z, y, weight, eps, fast)
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
    weight, _ = checked_count("x", x, weight, needed)
    sample = moments(x, y, c, weight=weight)
    value = gaussian_cmi_of(sample, eps=eps, bias_correction=bias_correction)
    return value.to(x.device, _mi.result_dtype(x.dtype))


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
    return _sample(parts, weight, fast=False)


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


def _part_of(whole: Moments, part: Moments, eps: float, bias_correction: bool) -> Tensor:
    """The mutual information of the whole, with the gradient with respect to the part alone."""
    if whole.sizes != part.sizes or whole.dtype != part.dtype:
        raise ValueError(
            f"whole is of parts {whole.sizes} {whole.dtype}, but z and y are {part.sizes} "
            f"{part.dtype}"
        )
    with torch.enable_grad():
        scatter = whole.scatter.detach().requires_grad_()
        fixed = replace(whole, count=whole.count.detach(), mean=whole.mean.detach())
        value = gaussian_mi_of(
            replace(fixed, scatter=scatter), eps=eps, bias_correction=bias_correction
        )
        (slope,) = torch.autograd.grad(value, scatter)
    # The scatter of the whole is a sum over its rows about its mean, which moves no sum about it.
    step = part.mean - fixed.mean
    about = part.scatter + part.count * torch.outer(step, step)
    linear = (slope * about).sum()
    return value.detach() + (linear - linear.detach())


def _sample(parts: Sequence[Tensor], weight: Tensor | None, fast: bool) -> Moments:
    if weight is not None:
        weight = _moments.check_weight(weight, parts[0])
    sizes = tuple(part.shape[1] for part in parts)
    return Moments(*_moments.moments(parts, weight, fast), sizes=sizes, dtype=parts[0].dtype)


def checked_count(
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
