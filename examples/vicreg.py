"""VICReg from the moments of both branches: one read, the loss of the global batch when gathered.

Bardes, Ponce, LeCun: VICReg, ICLR 2022, Eq. (1)-(6), for n rows of d features Z, Z' of two views:

    v(Z) = 1/d Σ_j max(0, γ − sqrt(Var(z_j) + ε))       variance
    c(Z) = 1/d Σ_{i≠j} Cov(Z)²_ij                       covariance, over n − 1 as the variance is
    s(Z, Z') = 1/n Σ_b ‖z_b − z'_b‖²                    invariance
    loss = λ s + μ (v(Z) + v(Z')) + ν (c(Z) + c(Z'))

(The released code takes s as a mean over columns too, and halves v.) All of it is in the joint
moments, s as well: the trace of the scatter S_zz + S_z'z' − 2 S_zz' over n, and the squared step
between the means.

    python examples/vicreg.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from stib_fast import functional as F
from stib_fast.moments import Moments
from stib_fast.nn import MLP


def vicreg_terms(
    sample: Moments, gamma: float = 1.0, eps: float = 1e-4
) -> tuple[Tensor, Tensor, Tensor]:
    """s(Z, Z'), v(Z) + v(Z') and c(Z) + c(Z'), float64, of ``F.moments(z, z_prime)``.

    Of ``F.moments(z, z_prime).gathered(group)`` they are those of the batch of all processes:
    1 + 2d + 4d² numbers a process cross the network, and no features.
    """
    d = sample.sizes[0]
    s, step = sample.scatter, sample.mean[:d] - sample.mean[d:]
    apart = s[:d, :d] + s[d:, d:] - 2 * s[:d, d:]
    invariance = apart.trace() / sample.count + step.square().sum()
    covariances = [block / (sample.count - 1) for block in (s[:d, :d], s[d:, d:])]
    variance = torch.stack(
        [(gamma - (c.diagonal() + eps).sqrt()).relu().mean() for c in covariances]
    )
    covariance = torch.stack([(c - c.diagonal().diag()).square().sum() / d for c in covariances])
    return invariance, variance.sum(), covariance.sum()


def vicreg(sample: Moments, weights: tuple[float, float, float] = (25.0, 25.0, 1.0)) -> Tensor:
    """The loss, with the weights λ, μ, ν of the paper."""
    invariance, variance, covariance = vicreg_terms(sample)
    return weights[0] * invariance + weights[1] * variance + weights[2] * covariance


def views(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two views [rows, 20] of four hidden factors, each with noise of its own; and the factors."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    factors = torch.randn(rows, 4, generator=generator)
    noise = torch.randn(2, rows, 20, generator=generator)
    return *((factors @ mixing).tanh() + 0.3 * noise), factors


def main(steps: int = 200) -> dict[str, tuple[float, ...]]:
    """Train with the whole loss and with terms left out; the table is of fresh views."""
    results = {}
    print(f"{'loss':<16} {'s':>9} {'v':>9} {'c':>9} {'R² of the factors':>18}")
    for name, weights in {
        "untrained": (0.0, 0.0, 0.0),
        "λ s": (25.0, 0.0, 0.0),
        "λ s + μ v": (25.0, 25.0, 0.0),
        "λ s + μ v + ν c": (25.0, 25.0, 1.0),
    }.items():
        torch.manual_seed(0)
        encoder = MLP([20, 64, 4])
        optimiser = torch.optim.Adam(encoder.parameters(), lr=3e-3)
        for step in range(steps if any(weights) else 0):
            x, x_prime, _ = views(512, seed=step)
            loss = vicreg(F.moments(encoder(x), encoder(x_prime)), weights)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        x, x_prime, factors = views(5000, seed=10**6)
        with torch.no_grad():
            z = encoder(x)
            terms = [term.item() for term in vicreg_terms(F.moments(z, encoder(x_prime)))]
        results[name] = (*terms, linear_r2(z, factors))
        print(
            f"{name:<16} {terms[0]:9.4f} {terms[1]:9.4f} {terms[2]:9.4f} {results[name][3]:18.3f}"
        )
    return results


def linear_r2(z: Tensor, y: Tensor) -> float:
    """R² of y from z by least squares, mean over the columns of y."""
    z, y = (part.double() - part.double().mean(0) for part in (z, y))
    rest = y - z @ torch.linalg.lstsq(z, y).solution
    return (1 - rest.square().sum(0) / y.square().sum(0)).mean().item()


if __name__ == "__main__":
    main()
