"""Coding rates of MCR² and SimDINO from moments: products and d x d algebra in float64.

Yu, Chan, You, Song, Ma: Learning Diverse and Discriminative Representations via the Principle of
Maximal Coding Rate Reduction, NeurIPS 2020. With m rows of d features Z and memberships Π_j:

    R(Z, ε)       = ½ log|I + d/(m ε²) ZᵀZ|
    R_c(Z, ε | Π) = Σ_j tr(Π_j)/(2m) log|I + d/(tr(Π_j) ε²) Zᵀ Π_j Z|        ΔR = R − R_c

Wu et al.: Simplifying DINO via Coding Rate Regularization, ICML 2025: the regulariser
R_ε(Γ) = ½ log|I + d/ε² Γ| at the covariance Γ of the features, which keeps them from collapsing.
ZᵀZ/m above is not centred. (The code released with SimDINO does not centre either.)

    python examples/coding_rate.py
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from stib_fast import functional as F
from stib_fast.moments import Moments
from stib_fast.nn import MLP


def coding_rate(sample: Moments, eps: float = 0.5, *, centred: bool = False) -> Tensor:
    """R in nats: of the second moments (MCR²), or of the covariance (SimDINO)."""
    d = len(sample.mean)
    count = torch.where(sample.count > 0, sample.count, 1.0)  # no rows, as in an empty class: R = 0
    gamma = sample.scatter / count
    if not centred:
        gamma = gamma + torch.outer(sample.mean, sample.mean)
    return (d / eps**2 * torch.linalg.eigvalsh(gamma)).log1p().sum() / 2


def class_moments(z: Tensor, membership: Tensor) -> list[Moments]:
    """Moments of each class, the columns of membership [B, k] being the weights of the rows.

    For hard labels, ``F.moments(z[labels == j])`` is the same and reads each row once.
    """
    return [F.moments(z, weight=weight) for weight in membership.T]


def rate_reduction(classes: Sequence[Moments], eps: float = 0.5) -> Tensor:
    """ΔR in nats, to be maximised; the rows of a class weigh 1 in all (Σ_j Π_j = I).

    The classes together are the whole, so its moments are their sum. Moments of further batches
    add up class by class, and those of further processes come with ``sample.gathered(group)``.
    """
    whole = reduce(add, classes)
    within = [sample.count / whole.count * coding_rate(sample, eps) for sample in classes]
    return coding_rate(whole, eps) - torch.stack(within).sum()


def rings(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points on three noisy rings about one centre, and the ring of each."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (rows,), generator=generator)
    angle = 2 * torch.pi * torch.rand(rows, generator=generator)
    radius = 1 + label + 0.1 * torch.randn(rows, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), label


def cosines(z: Tensor, label: Tensor) -> tuple[float, float]:
    """Mean |cosine| between rows of one class, and between rows of different classes."""
    similarity, same = (z @ z.T).abs(), label[:, None] == label
    return similarity[same].mean().item(), similarity[~same].mean().item()


def main(steps: int = 300, d: int = 6) -> dict[str, float]:
    """Train an encoder by ΔR alone; the table is of fresh rows."""
    torch.manual_seed(0)
    encoder = MLP([2, 64, 64, d])
    optimiser = torch.optim.Adam(encoder.parameters(), lr=3e-3)

    def features(x: Tensor) -> Tensor:
        return torch.nn.functional.normalize(encoder(x))  # on the unit sphere, as in both papers

    x, label = rings(2000, seed=1)
    fresh, fresh_label = rings(1000, seed=2)
    result: dict[str, float] = {}
    print(f"{'step':>6} {'ΔR nats':>8} {'R(Cov)':>8} {'|cos| within':>13} {'|cos| between':>14}")
    for step in range(steps + 1):
        if step in (0, steps):
            with torch.no_grad():
                z = features(fresh)
            rate = rate_reduction([F.moments(z[fresh_label == j]) for j in range(3)]).item()
            spread = coding_rate(F.moments(z), centred=True).item()
            within, between = cosines(z, fresh_label)
            print(f"{step:6d} {rate:8.3f} {spread:8.3f} {within:13.3f} {between:14.3f}")
            name = "start" if step == 0 else "end"
            result |= {f"rate_{name}": rate, f"within_{name}": within, f"between_{name}": between}
        membership = torch.nn.functional.one_hot(label, 3).double()
        loss = -rate_reduction(class_moments(features(x), membership))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return result


if __name__ == "__main__":
    main()
