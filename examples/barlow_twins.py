"""Barlow Twins from the moments of both branches: one read, the global batch when gathered.

Zbontar, Jing, Misra, LeCun, Deny: Barlow Twins, ICML 2021, Eq. (1) and (2), with C the
cross-correlation matrix of the features z, z' of two views:

    loss = Σ_i (1 − C_ii)² + λ Σ_{i≠j} C_ij²
    C_ij = Σ_b z_bi z'_bj / (sqrt(Σ_b z_bi²) sqrt(Σ_b z'_bj²)),   z and z' centred over the batch

The batch's standard deviation cancels, so it does not matter whether it is the biased one of
``BatchNorm1d`` (the released code). The paper's pseudocode divides by the unbiased one and then by
n, which makes its C smaller by (n − 1)/n.

    python examples/barlow_twins.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stib_fast import functional as F
from stib_fast.moments import Moments
from stib_fast.nn import MLP


def cross_correlation(sample: Moments) -> Tensor:
    """C [d, d], float64, of ``F.moments(z, z_prime)``; a constant column gives NaN, as 0/0 is.

    Of ``F.moments(z, z_prime).gathered(group)`` it is that of the batch of all processes, which
    otherwise takes a SyncBatchNorm and an all-reduce with a gradient.
    """
    d = sample.sizes[0]
    spread = sample.scatter.diagonal().sqrt()
    return sample.scatter[:d, d:] / torch.outer(spread[:d], spread[d:])


def barlow_twins(sample: Moments, weight: float = 5e-3) -> Tensor:
    """The loss, with the weight λ of the paper."""
    c = cross_correlation(sample)
    on_diagonal = (1 - c.diagonal()).square().sum()
    return on_diagonal + weight * (c - c.diagonal().diag()).square().sum()


def in_rows(z: Tensor, z_prime: Tensor, weight: float = 5e-3) -> Tensor:
    """The same from normalised features in their own dtype, as it is usually written."""
    z, z_prime = ((part - part.mean(0)) / part.std(0, correction=0) for part in (z, z_prime))
    c = z.T @ z_prime / len(z)
    on_diagonal = (1 - c.diagonal()).square().sum()
    return on_diagonal + weight * (c - c.diagonal().diag()).square().sum()


def views(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two views [rows, 20] of four hidden factors, each with noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    factors = torch.randn(rows, 4, generator=generator)
    noise = torch.randn(2, rows, 20, generator=generator)
    first, second = (factors @ mixing).tanh() + 0.3 * noise
    return first, second


def gradient_error(loss: Callable[..., Tensor], z: Tensor, z_prime: Tensor) -> float:
    """Relative error of a loss's gradient at float32 features, against float64."""
    single, double = (part.clone().requires_grad_() for part in (z, z.double()))
    (found,) = torch.autograd.grad(loss(single, z_prime), single)
    (exact,) = torch.autograd.grad(in_rows(double, z_prime.double()), double)
    return ((found - exact).norm() / exact.norm()).item()


def main(steps: int = 200) -> dict[str, float]:
    """Train an encoder; then the accuracy of the gradient, both ways of writing the loss."""
    torch.manual_seed(0)
    encoder = MLP([20, 64, 4])
    optimiser = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    fresh = views(5000, seed=10**6)
    result: dict[str, float] = {}
    print(f"{'step':>6} {'loss':>8} {'mean C_ii':>10} {'rms C_ij':>9}")
    for step in range(steps + 1):
        if step in (0, steps):
            with torch.no_grad():
                sample = F.moments(*map(encoder, fresh))
            c, value = cross_correlation(sample), barlow_twins(sample).item()
            diagonal = c.diagonal().mean().item()
            others = ((c - c.diagonal().diag()).square().sum() / 12).sqrt().item()
            print(f"{step:6d} {value:8.4f} {diagonal:10.3f} {others:9.3f}")
            result |= {
                f"loss_{step}": value,
                f"diagonal_{step}": diagonal,
                f"others_{step}": others,
            }
        loss = barlow_twins(F.moments(*map(encoder, views(512, seed=step))))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print("\nrelative error of the gradient at float32 features, 65,536 rows, views 1 % apart:")
    print("with C_ii near 1, 1 − C_ii keeps few of float32's digits")
    print(f"{'mean / std':>11} {'moments':>9} {'in rows':>11}")
    for offset in (0.0, 10.0, 100.0):
        z = torch.randn(65_536, 16) + offset
        z_prime = z + 0.01 * torch.randn(65_536, 16)
        ours = gradient_error(lambda a, b: barlow_twins(F.moments(a, b)), z, z_prime)
        rows = gradient_error(in_rows, z, z_prime)
        print(f"{offset:11.0f} {ours:9.0e} {rows:11.0e}")
        result |= {f"error_{offset:.0f}": ours, f"rows_error_{offset:.0f}": rows}
    return result


if __name__ == "__main__":
    main()
