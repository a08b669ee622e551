"""Predicting income from a table without using age: `InvarianceCritic` where the truth is known.

The table is made up. Ability s and age a (standardised) are independent standard normals, and the
columns are s + sin 2a (schooling: it went by generation), a + 0.3 s (seniority), s a / 2 (rank) and
two of noise. Income is s + 0.6 a + 0.5 e. The columns give s and a away exactly, so the least mean
squared error is 0.25; without any knowledge of age it is 0.25 + 0.6² = 0.61. Between the two, age
must be paid for: `optimum` is the best that any encoder can do against weight · I(z; a).

    python examples/fairness.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stib_fast import functional as F
from stib_fast.metrics import probe_r2
from stib_fast.nn import MLP, InvarianceCritic

NOISE, SLOPE = 0.5, 0.6  # of income: s + SLOPE a + NOISE e


def table(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Columns [rows, 5], age [rows, 1] and income [rows, 1]."""
    generator = torch.Generator().manual_seed(seed)
    s, a, e, *noise = torch.randn(5, rows, generator=generator)
    columns = torch.stack([s + (2 * a).sin(), a + 0.3 * s, s * a / 2, *noise], 1)
    return columns, a[:, None], (s + SLOPE * a + NOISE * e)[:, None]


def optimum(weight: float) -> tuple[float, float]:
    """Least error + weight · I(z; a) of any z: its mean squared error, and its bits on age.

    The prediction p made from z knows no more of a than z does, and I(p; a) >= -½ log(1 - ρ²) for
    its correlation ρ with a. A linear p meets the bound, and at a given ρ has the least error: p is
    s + SLOPE a projected onto a direction in the plane of s and a, at the angle asin ρ from s.
    """
    theta = math.atan(SLOPE)
    phi = torch.linspace(0, theta, 10_001, dtype=torch.float64)
    error = NOISE**2 + (1 + SLOPE**2) * (theta - phi).sin().square()
    nats = -phi.cos().log()
    best = int((error + weight * nats).argmin())
    return error[best].item(), nats[best].item() / math.log(2)


class Noise(torch.nn.Module):
    """Part of the representation: fine detail, where age escapes the critic, is lost in it."""

    def forward(self, z: Tensor) -> Tensor:
        """Return z with noise of standard deviation 0.1."""
        return z + 0.1 * torch.randn_like(z)


def train(weight: float, steps: int, batch: int = 512) -> torch.nn.Sequential:
    """An encoder to two features and the head that predicts income from them, as one module."""
    torch.manual_seed(0)
    columns, age, income = table(50_000, seed=1)
    encoder = torch.nn.Sequential(MLP([5, 64, 64, 2]), Noise())
    model = torch.nn.Sequential(encoder, MLP([2, 64, 1]))
    critic = InvarianceCritic(z_dim=2, y_dim=1, hidden=(64, 64))
    optimiser = torch.optim.Adam([*model.parameters(), *critic.parameters()], lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        rows = torch.randint(len(columns), (batch,))
        z = model[0](columns[rows])
        loss = (model[1](z) - income[rows]).square().mean()
        if weight:
            ramp = min(1.0, 2 * step / steps)  # the full weight at once can empty z for good
            loss = loss + critic(z, age[rows], ramp * weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model


@torch.no_grad()
def measure(model: torch.nn.Sequential, rows: int) -> dict[str, float]:
    """On rows that were not trained on: error of the task, and what z tells of age."""
    columns, age, income = table(rows, seed=2)
    z = model[0](columns)
    return {
        "mse": (model[1](z) - income).square().mean().item(),
        "r2": probe_r2(z, age),
        "bits": F.knn_mi((z - z.mean(0)) / z.std(0), age).item() / math.log(2),
    }


def main(
    weights: Sequence[float] = (0, 1, 5), steps: int = 1000, rows: int = 5000
) -> dict[float, dict[str, float]]:
    """Train at each weight of I(z; a), 0 being without the critic; the table is of held-out rows.

    R² is that of the better of two regressions, and reads -0.1 to 0 where there is nothing to know.
    """
    results = {}
    print(f"{'weight':>6} {'MSE':>8} {'optimum':>8} {'R² of age':>10} {'I bits':>8} {'optimum':>8}")
    for weight in weights:
        found = results[weight] = measure(train(weight, steps), rows)
        error, bits = optimum(weight)
        print(
            f"{weight:6.0f} {found['mse']:8.3f} {error:8.3f} {found['r2']:10.3f} "
            f"{found['bits']:8.3f} {bits:8.3f}"
        )
    return results


if __name__ == "__main__":
    main()
