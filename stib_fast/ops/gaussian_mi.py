"""The op ``gaussian_mi``: moments, the d x d step and the rows of the gradient, fused.

With R the correlation matrix, L_Z and L_Y the Cholesky factors of its diagonal blocks and
K = L_Z^-1 R_ZY L_Y^-T, whose singular values are the canonical correlations,

    I(Z; Y) = -1/2 log |1 - (1 - eps)^2 K K^T|   nats,

which is Eq. (8) and (9) of Wieser et al. 2020 for eps = 0, with the sign of Eq. (9) put right.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stib_fast.backends import LIBRARY, backend_for
from stib_fast.ops.moments import (
    below_autograd,
    differentiable_vjp,
    moments_eager,
    refuse_double_backward,
)

# `state` [d + 2, d] holds what the backward needs: the mean, the scale, and the gradient with
# respect to the scaled columns.
LIBRARY.define(
    "gaussian_mi(Tensor z, Tensor y, Tensor? weight, float eps, bool fast)"
    " -> (Tensor mi, Tensor state)"
)
LIBRARY.define(
    "gaussian_mi_backward(Tensor grad, Tensor z, Tensor y, Tensor? weight, Tensor state)"
    " -> (Tensor, Tensor)"
)

# Keeps the Cholesky factors of R_Z and R_Y defined when columns are collinear.
RIDGE = 1e-12
# Likewise that of the columns that are conditioned on, per column: above its rounding, and so far
# below RIDGE that what it leaves of a column that they determine counts as noise.
GIVEN_RIDGE = 1e-15
UNIT_ROUNDOFF = {
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a mutual information: float64 for float64 samples, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.register_fake("stib_fast::gaussian_mi", lib=LIBRARY)
def _(z: Tensor, y: Tensor, weight: Tensor | None, eps: float, fast: bool) -> tuple[Tensor, Tensor]:
    d = z.shape[1] + y.shape[1]
    return (
        z.new_empty((), dtype=result_dtype(z.dtype)),
        z.new_empty((d + 2, d), dtype=torch.float64),
    )


@torch.library.register_fake("stib_fast::gaussian_mi_backward", lib=LIBRARY)
def _(
    grad: Tensor, z: Tensor, y: Tensor, weight: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), y.new_empty(y.shape)


def _cholesky(matrix: Tensor) -> Tensor:
    """The lower factor; NaN, with NaN gradients, where there is none. No host sync."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    return factor * torch.where(info == 0, 1.0, torch.nan)


def finalize(
    count: Tensor, mean: Tensor, scatter: Tensor, n: int, eps: float, dtype: torch.dtype
) -> Tensor:
    """Mutual information in nats between columns [0, n) and the rest, as float64.

    NaN where the count is below 2 or a factorisation fails. A column is constant, and correlated
    with nothing, where S_ii <= count (8 u |mean|)^2 with u the unit roundoff of `dtype`.
    """
    return _information(_correlation(count, mean, scatter, dtype), n, eps)


def finalize_conditional(
    count: Tensor, mean: Tensor, scatter: Tensor, n: int, m: int, eps: float, dtype: torch.dtype
) -> Tensor:
    """Mutual information in nats of columns [0, n) and [n, n + m) given the rest, as float64.

    That of the residuals of the regression on the given columns, whose correlations are the partial
    correlations. I(X; Y, C) - I(X; C) is the same, but there `eps`, and rounding, are relative to
    the columns, here to what C leaves of them: both terms are at their cap where that is little.
    """
    correlation = _correlation(count, mean, scatter, dtype)
    d, p = n + m, scatter.shape[0] - n - m
    ridged = correlation[d:, d:] + GIVEN_RIDGE * p * _eye(p, correlation)
    root = _cholesky(ridged)
    explained = torch.linalg.solve_triangular(root, correlation[d:, :d], upper=False)
    slopes = torch.linalg.solve_triangular(root.mT, explained, upper=True)
    residual = correlation[:d, :d] - explained.mT @ explained
    # A residual is made of columns that are known to 1e-6 at best: what is smaller than that is
    # noise of its own. It also exceeds, always, what rounding and the ridge above leave behind.
    noise = RIDGE * (1 + slopes.square().sum(0))
    scale = (residual.diagonal() + noise).rsqrt()
    return _information(_with_unit_diagonal(residual * scale * scale[:, None]), n, eps)


def _correlation(count: Tensor, mean: Tensor, scatter: Tensor, dtype: torch.dtype) -> Tensor:
    """Correlations in which constant columns are correlated with nothing; NaN below two rows."""
    spread = scatter.diagonal()
    constant = spread <= count * (8 * UNIT_ROUNDOFF[dtype] * mean).square()

    def inverse_root(spread: Tensor) -> Tensor:
        return torch.where(constant, 0.0, torch.where(constant, 1.0, spread).rsqrt())

    # Differentiated at unit spread: the derivative of rsqrt overflows where columns are tiny.
    unit = inverse_root(spread.detach())
    scatter = scatter * unit * unit[:, None]
    scale = inverse_root(scatter.diagonal())
    correlation = _with_unit_diagonal(scatter * scale * scale[:, None])
    return correlation * torch.where(count >= 2, 1.0, torch.nan)


def _information(correlation: Tensor, n: int, eps: float) -> Tensor:
    ridged = correlation + RIDGE * _eye(len(correlation), correlation)
    k = torch.linalg.solve_triangular(_cholesky(ridged[:n, :n]), correlation[:n, n:], upper=False)
    k = torch.linalg.solve_triangular(_cholesky(ridged[n:, n:]), k.mT, upper=False)
    if k.shape[0] > k.shape[1]:
        k = k.mT
    p = _eye(k.shape[0], k) - (1 - eps) ** 2 * k @ k.mT
    return -_cholesky(p).diagonal().log().sum()


def _eye(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def _with_unit_diagonal(matrix: Tensor) -> Tensor:
    eye = _eye(len(matrix), matrix)
    return torch.where(eye == 1, eye, matrix)


def gaussian_mi_eager(
    z: Tensor, y: Tensor, weight: Tensor | None, eps: float, fast: bool
) -> Tensor:
    """The op in plain PyTorch, differentiable to any order."""
    value = finalize(*moments_eager((z, y), weight, fast), z.shape[1], eps, z.dtype)
    return value.to(z.device, result_dtype(z.dtype))


class _GaussianMI(torch.autograd.Function):
    """The compiled op in eager mode: a thinner boundary than the registered one's."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, y: Tensor, weight: Tensor | None, eps: float, fast: bool
    ) -> Tensor:
        with below_autograd():
            mi, state = torch.ops.stib_fast.gaussian_mi.default(z, y, weight, eps, fast)
        ctx.eps, ctx.fast = eps, fast
        ctx.save_for_backward(z, y, weight, state)
        return mi

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, y, weight, state = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            vjp = differentiable_vjp(
                lambda z, y: (gaussian_mi_eager(z, y, weight, ctx.eps, ctx.fast),),
                (z, y),
                (grad,),
            )
            return *vjp, None, None, None
        op = torch.ops.stib_fast.gaussian_mi_backward.default
        with below_autograd():
            return *op(grad, z, y, weight, state), None, None, None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    z, y, weight, _, _ = inputs
    ctx.save_for_backward(z, y, weight, output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grad_z, grad_y = torch.ops.stib_fast.gaussian_mi_backward(grad, *ctx.saved_tensors)
    return grad_z, grad_y, None, None, None


torch.library.register_autograd(
    "stib_fast::gaussian_mi", _backward, setup_context=_setup_context, lib=LIBRARY
)
refuse_double_backward("gaussian_mi_backward")


def gaussian_mi(z: Tensor, y: Tensor, weight: Tensor | None, eps: float, fast: bool) -> Tensor:
    """Gaussian mutual information of checked parts on the backend in force, in nats."""
    if backend_for(z.device) == "eager":
        return gaussian_mi_eager(z, y, weight, eps, fast)
    if torch.compiler.is_compiling():
        return torch.ops.stib_fast.gaussian_mi(z, y, weight, eps, fast)[0]
    return _GaussianMI.apply(z, y, weight, eps, fast)
