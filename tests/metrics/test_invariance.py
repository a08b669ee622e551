from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stib_fast.functional import knn_mi
from stib_fast.metrics.invariance import NOISE_SEED, invariance, posterior_draw
from stib_fast.metrics.probes import probe_r2

KEYS = [
    "mi_bits",
    "mi_bits_sampled",
    "mi_bits_whitened",
    "mi_bits_whitened_active",
    "active_units",
    "probe_r2_sampled",
    "probe_r2_active",
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_complete_leak_that_the_papers_figure_hides() -> None:
    # reference-notes: Z0 = (0.3 Y, six unit-noise dimensions), 5,790 rows: 0.036 bits.
    y = normal(1500, 2, seed=0)
    mu = torch.cat([0.3 * y, normal(1500, 6, seed=1)], dim=1)
    figures = invariance(mu, torch.full((8,), -5.0), y)
    assert list(figures) == KEYS
    assert abs(figures["mi_bits"]) < 0.08
    assert abs(figures["mi_bits_sampled"]) < 0.08
    assert figures["active_units"] == 8
    assert figures["probe_r2_sampled"] > 0.95
    assert figures["probe_r2_active"] > 0.95
    assert figures["mi_bits_whitened"] > 5 * figures["mi_bits"]


def test_switched_off_dimension_still_encodes_y() -> None:
    # A unit with sigma = 1 and sd(mu) = 0.01 (KL 5e-5 nats) holds Y beside an honest unit.
    y = normal(1500, 1, seed=2)
    mu = torch.cat([0.01 * y, normal(1500, 1, seed=3)], dim=1)
    figures = invariance(mu, torch.tensor([0.0, -3.0]), y)
    # The estimate of a true 0 has a standard deviation of about 0.01 bits at n = 1,500.
    assert abs(figures["mi_bits"]) < 0.05
    assert abs(figures["mi_bits_sampled"]) < 0.05
    assert figures["mi_bits_whitened"] > 2
    assert figures["active_units"] == 1
    assert abs(figures["mi_bits_whitened_active"]) < 0.05
    assert figures["probe_r2_sampled"] < 0.05
    assert figures["probe_r2_active"] < 0.05


def test_figures_are_those_of_the_parts() -> None:
    y = normal(300, 1, seed=4)
    mu = 3 * y + normal(300, 1, seed=5)
    log_sigma = normal(300, 1, seed=6) - 2
    figures = invariance(mu, log_sigma, y, k=5, seed=7)
    assert figures["mi_bits"] == pytest.approx(
        float(knn_mi(mu, y, 5, seed=7)) / math.log(2), abs=1e-6
    )
    generator = torch.Generator().manual_seed(NOISE_SEED + 7)
    noise = torch.randn(300, 1, generator=generator, dtype=torch.float64)
    z0 = mu + log_sigma.double().exp() * noise
    assert figures["mi_bits_sampled"] == float(knn_mi(z0, y, 5, seed=7)) / math.log(2)
    assert figures["probe_r2_sampled"] == probe_r2(z0, y, seed=7)
    whitened = mu.double() / mu.double().std()
    assert figures["mi_bits_whitened"] == pytest.approx(
        float(knn_mi(whitened, y, 5, seed=7)) / math.log(2), abs=1e-6
    )


def test_seed_breaks_ties_of_the_sampled_figure() -> None:
    # Each value of Y in four rows, a step of 1 apart, and k = 5: the jitter decides which rows that
    # are a step away are nearer than the fifth neighbour.
    y = torch.arange(40).remainder(10).double()[:, None]
    mu = y + normal(40, 1, seed=18).double()
    log_sigma = torch.tensor([-9.0])
    z0 = posterior_draw(mu, log_sigma, 7)
    of_seed = {seed: float(knn_mi(z0, y, 5, seed=seed)) / math.log(2) for seed in (0, 7)}
    assert of_seed[0] != of_seed[7]
    assert invariance(mu, log_sigma, y, k=5, seed=7)["mi_bits_sampled"] == of_seed[7]


def test_whitened_figure_does_not_change_under_a_linear_map() -> None:
    y = normal(400, 1, seed=8)
    mu = torch.cat([y + normal(400, 1, seed=9), normal(400, 1, seed=10)], dim=1).double()
    log_sigma = torch.full((2,), -1.0)
    stretched = mu * torch.tensor([1e-3, 10.0])
    a, b = (invariance(z, log_sigma, y) for z in (mu, stretched))
    # Rows and columns of the whitened data agree up to a rotation, which the maximum norm sees:
    # the estimate moves by less than its spread, 0.015 bits at 0 and more above.
    assert a["mi_bits_whitened"] == pytest.approx(b["mi_bits_whitened"], abs=0.1)
    assert abs(a["mi_bits"] - b["mi_bits"]) > 0.3


def test_active_units_are_counted_by_kl() -> None:
    y = normal(200, 1, seed=11)
    mu = torch.zeros(200, 4)
    mu[:, 1] = 0.2  # KL 0.02 from the offset alone: active, though constant
    mu[:, 2] = 0.1  # KL 0.005: not active
    log_sigma = torch.tensor([0.0, 0.0, 0.0, -0.2])  # last: KL 0.035, from sigma alone
    figures = invariance(mu, log_sigma, y)
    assert figures["active_units"] == 2
    # Without variance there is nothing to whiten, and nothing to know.
    assert figures["mi_bits_whitened"] == 0
    assert figures["mi_bits_whitened_active"] == 0
    assert figures["probe_r2_active"] == 0


def test_no_active_unit_gives_none() -> None:
    figures = invariance(1e-3 * normal(200, 2, seed=12), torch.zeros(2), normal(200, 1, seed=13))
    assert figures["active_units"] == 0
    assert figures["mi_bits_whitened_active"] is None
    assert figures["probe_r2_active"] is None
    assert isinstance(figures["mi_bits_whitened"], float)


def test_collinear_and_constant_directions_are_dropped() -> None:
    y = normal(500, 1, seed=14)
    z = normal(500, 1, seed=15).double()
    log_sigma = torch.tensor([-1.0])
    alone = invariance(z, log_sigma, y)
    copies = invariance(torch.cat([z, 2 * z, 0 * z + 0.1], 1), log_sigma.expand(3), y)
    # Without the cut, the rounding errors of the copy would be blown up to unit variance.
    assert copies["mi_bits_whitened"] == pytest.approx(alone["mi_bits_whitened"], abs=1e-6)


def test_seeded_and_without_gradient() -> None:
    mu = normal(100, 2, seed=16).requires_grad_()
    log_sigma = torch.zeros(2, requires_grad=True)
    y = normal(100, 1, seed=17)
    first = invariance(mu, log_sigma, y, k=3, seed=1)
    assert first == invariance(mu, log_sigma, y, k=3, seed=1)
    assert first["mi_bits_sampled"] != invariance(mu, log_sigma, y, k=3, seed=2)["mi_bits_sampled"]
    assert first == invariance(mu, log_sigma.expand(100, 2), y, k=3, seed=1)


@pytest.mark.parametrize(
    ("mu", "log_sigma", "y", "message"),
    [
        (torch.zeros(30), torch.zeros(1), torch.zeros(30, 1), r"mu must be a non-empty \[n, d\]"),
        (torch.zeros(30, 2), torch.zeros(3), torch.zeros(30, 1), "log_sigma must be"),
        (torch.zeros(30, 2), torch.zeros(1, 2), torch.zeros(30, 1), "log_sigma must be"),
        (torch.zeros(30, 2), torch.zeros(2), torch.zeros(29, 1), "y must have as many rows"),
        (torch.full((30, 2), math.nan), torch.zeros(2), torch.zeros(30, 1), "mu holds NaN"),
        (torch.zeros(30, 2), torch.full((2,), math.inf), torch.zeros(30, 1), "log_sigma holds"),
        (torch.zeros(30, 2), torch.zeros(2), torch.zeros(30, 1, dtype=torch.int64), "y must have"),
    ],
)
def test_bad_arguments_are_named(mu: Tensor, log_sigma: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        invariance(mu, log_sigma, y)
