"""The op ``gaussian_mi``: moments, the d x d step and the rows of the gradient, fused.

With R the correlation matrix, L_Z and L_Y the Cholesky factors of its diagonal blocks and
K = L_Z^-1 R_ZY L_Y^-T, whose singular values are the canonical correlations,

    I(Z; Y) = -1/2 log |1 - (1 - eps)^2 K K^T|   nats,

which is Eq. (8) and (9) of Wieser et al. 2020 for eps = 0, with the sign of Eq. (9) put right.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from stib_fast.backends import LIBRARY, backend_for
from stib_fast.ops.moments import (
    affine_rows,
    are_interpreted,
    below_autograd,
    differentiable_vjp,
    moments_eager,
    moments_triton,
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
# The d x d step alone, on the moments in float64; n: the columns of z. mi is float64.
LIBRARY.define(
    "gaussian_mi_finalize(Tensor count, Tensor mean, Tensor scatter, int n, float eps,"
    " float unit_roundoff) -> (Tensor mi, Tensor state)"
)

# Keeps the Cholesky factors of R_Z and R_Y defined when columns are collinear.
RIDGE = 1e-12
# Likewise that of the columns that are conditioned on, per column: above its rounding, and so far
# below RIDGE that what it leaves of a column that they determine counts as noise.
GIVEN_RIDGE = 1e-15
# The CUDA kernel of `gaussian_mi_finalize` is one block, and its shared memory ends here.
CUDA_COLUMNS = 128
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


@torch.library.register_fake("stib_fast::gaussian_mi_finalize", lib=LIBRARY)
def _(
    count: Tensor, mean: Tensor, scatter: Tensor, n: int, eps: float, unit_roundoff: float
) -> tuple[Tensor, Tensor]:
    d = mean.shape[0]
    return mean.new_empty(()), mean.new_empty((d + 2, d))


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


def finalize_state_eager(
    count: Tensor, mean: Tensor, scatter: Tensor, n: int, eps: float, unit_roundoff: float
) -> tuple[Tensor, Tensor]:
    """The op `gaussian_mi_finalize` in plain PyTorch: no host sync, no gradient.

    csrc/gaussian_mi/finalize.h has the formulas. NaN, but for mean and scale, where the count is
    below 2 or a factorisation fails.
    """

    def solve(factor: Tensor, x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(factor, x, upper=False)

    def solve_transposed(factor: Tensor, x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(factor.mT, x, upper=True)

    spread = scatter.diagonal()
    constant = spread <= count * (8 * unit_roundoff * mean).square()
    scale = torch.where(constant, 0.0, 1 / spread.sqrt())
    correlation = _with_unit_diagonal(scatter * scale[:, None] * scale)
    eye = _eye(len(correlation), correlation)
    ridged = correlation + RIDGE * eye
    factor_z, factor_y = _cholesky(ridged[:n, :n]), _cholesky(ridged[n:, n:])
    k = solve(factor_y, solve(factor_z, correlation[:n, n:]).mT).mT

    c2 = (1 - eps) ** 2
    smaller = k if k.shape[0] <= k.shape[1] else k.mT
    root = _cholesky(_eye(len(smaller), k) - c2 * smaller @ smaller.mT)
    mi = -root.diagonal().log().sum() * torch.where(count >= 2, 1.0, torch.nan)
    w = c2 * solve_transposed(root, solve(root, smaller))
    w = w if smaller is k else w.mT

    w_z, k_z = solve_transposed(factor_z, w), solve_transposed(factor_z, k)
    w_y, k_y = solve_transposed(factor_y, w.mT), solve_transposed(factor_y, k.mT)
    cross = solve_transposed(factor_z, w_y.mT)
    rows_z = torch.cat([-w_z @ k_z.mT, cross], dim=1)
    rows_y = torch.cat([cross.mT, -w_y @ k_y.mT], dim=1)
    gradient = torch.where(eye == 1, 0.0, torch.cat([rows_z, rows_y]))
    # The scale of a column depends on its own S_ii: the unit diagonal's gradient is replaced.
    gradient = torch.where(eye == 1, -(gradient * correlation).sum(1), gradient)
    gradient = gradient * torch.where(mi.isnan(), torch.nan, 1.0)
    return mi, torch.cat([mean[None], scale[None], gradient])


# For every device without a kernel of its own.
LIBRARY.impl("gaussian_mi_finalize", finalize_state_eager, "CompositeExplicitAutograd")
refuse_double_backward("gaussian_mi_finalize")


def finalize_state(
    count: Tensor, mean: Tensor, scatter: Tensor, n: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Mutual information as float64, and what the backward needs, on the fastest kernel there is.

    `dtype` is that of the sample.
    """
    arguments = (count, mean, scatter, n, eps, UNIT_ROUNDOFF[dtype])
    if mean.is_cuda and len(mean) > CUDA_COLUMNS:
        return finalize_state_eager(*arguments)
    return torch.ops.stib_fast.gaussian_mi_finalize.default(*arguments)


def gaussian_mi_eager(
    z: Tensor, y: Tensor, weight: Tensor | None, eps: float, fast: bool
) -> Tensor:
    """The op in plain PyTorch, differentiable to any order."""
    value = finalize(*moments_eager((z, y), weight, fast), z.shape[1], eps, z.dtype)
    return value.to(z.device, result_dtype(z.dtype))


def gaussian_mi_triton(
    z: Tensor, y: Tensor, weight: Tensor | None, eps: float, fast: bool
) -> tuple[Tensor, Tensor]:
    """The op on a GPU, and on the CPU under the interpreter."""
    moments = moments_triton((z, y), weight, fast)
    mi, state = finalize_state(*moments, z.shape[1], eps, z.dtype)
    return mi.to(result_dtype(z.dtype)), state


def gaussian_mi_backward_triton(
    grad: Tensor, z: Tensor, y: Tensor, weight: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The op on a GPU, and on the CPU under the interpreter."""
    grad_z, grad_y = affine_rows((z, y), weight, state[0], state[1], state[2:], None, grad)
    return grad_z, grad_y


LIBRARY.impl("gaussian_mi", gaussian_mi_triton, "CUDA")
LIBRARY.impl("gaussian_mi_backward", gaussian_mi_backward_triton, "CUDA")
DISPATCHED = SimpleNamespace(
    gaussian_mi=torch.ops.stib_fast.gaussian_mi.default,
    gaussian_mi_backward=torch.ops.stib_fast.gaussian_mi_backward.default,
)
INTERPRETED = SimpleNamespace(
    gaussian_mi=gaussian_mi_triton, gaussian_mi_backward=gaussian_mi_backward_triton
)


class _GaussianMI(torch.autograd.Function):
    """The compiled op in eager mode: a thinner boundary than the registered one's."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Any,
        z: Tensor,
        y: Tensor,
        weight: Tensor | None,
        eps: float,
        fast: bool,
    ) -> Tensor:
        with below_autograd():
            mi, state = kernels.gaussian_mi(z, y, weight, eps, fast)
        ctx.kernels, ctx.eps, ctx.fast = kernels, eps, fast
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
            return None, *vjp, None, None, None
        with below_autograd():
            rows = ctx.kernels.gaussian_mi_backward(grad, z, y, weight, state)
        return None, *rows, None, None, None


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
    chosen = backend_for(z.device, ("cpp", "triton"))
    if chosen == "eager":
        return gaussian_mi_eager(z, y, weight, eps, fast)
    if torch.compiler.is_compiling():
        return torch.ops.stib_fast.gaussian_mi(z, y, weight, eps, fast)[0]
    kernels = INTERPRETED if are_interpreted(z, chosen) else DISPATCHED
    return _GaussianMI.apply(kernels, z, y, weight, eps, fast)
