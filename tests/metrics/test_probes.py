from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stib_fast.data.spiral import sample
from stib_fast.metrics.probes import probe_r2


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_independent_features_predict_nothing() -> None:
    r2 = probe_r2(normal(1000, 3, seed=1), normal(1000, 2, seed=2))
    # The mean of 10 neighbours gives -1/10; overfitted trees are worse. Never above 0 by much.
    assert -0.2 < r2 < 0.02


def test_nonlinear_dependence_without_correlation_is_found() -> None:
    x = normal(2000, 1, seed=3)
    assert probe_r2(x, x.cos()) > 0.99


def test_known_noise_bounds_r2() -> None:
    x = normal(3000, 1, seed=4)
    y = x + normal(3000, 1, seed=5)
    # The best possible R² is 1/2; standard error about 0.013. The probes lose some of it.
    assert 0.40 < probe_r2(x, y) < 0.54


def test_better_probe_counts_in_each_column() -> None:
    # Rows lie close around the corners of a cube in 6 dimensions. Their corner's parity is a matter
    # for neighbours (no single split helps a tree), the distance to the corner one for trees.
    generator = torch.Generator().manual_seed(6)
    corners = 2.0 * torch.randint(0, 2, (1500, 6), generator=generator) - 1
    offset = 0.01 * torch.randn(1500, 6, generator=generator)
    parity, first_offset = corners.prod(dim=1), offset[:, 0]
    features = corners + offset
    both = probe_r2(features, torch.stack([parity, first_offset], dim=1))
    assert both > 0.9
    separate = (probe_r2(features, parity) + probe_r2(features, first_offset)) / 2
    assert both == pytest.approx(separate, abs=1e-9)


def test_neighbours_do_not_depend_on_the_scale_of_columns() -> None:
    features = normal(500, 2, seed=8)
    y = (3 * features[:, 0]).sin() * (3 * features[:, 1]).sin()
    scaled = features * torch.tensor([1e-4, 1e4])
    # Trees bin by quantiles and neighbours standardise: up to rounding nothing changes.
    assert probe_r2(scaled, y) == pytest.approx(probe_r2(features, y), abs=1e-3)


def test_seeded_and_accepts_one_dimension() -> None:
    x, y, _ = sample(300, generator=torch.Generator().manual_seed(0))
    assert probe_r2(x, y, seed=1) == probe_r2(x, y, seed=1)
    assert probe_r2(x, y, seed=1) != probe_r2(x, y, seed=2)
    assert probe_r2(x[:, 0], y[:, 0]) == probe_r2(x[:, :1], y[:, :1])


def test_ten_rows_are_enough() -> None:
    assert math.isfinite(probe_r2(normal(10, 2), normal(10, seed=1)))


@pytest.mark.parametrize(
    ("features", "y", "message"),
    [
        (torch.zeros(9), torch.arange(9.0), "at least 10, got 9 and 9"),
        (torch.zeros(20), torch.arange(19.0), "got 20 and 19"),
        (torch.zeros(20), torch.stack([torch.arange(20.0), torch.ones(20)], 1), "y .* column 1"),
        (torch.zeros(20, dtype=torch.int64), torch.arange(20.0), "features must have"),
        (torch.zeros(20), torch.arange(20), "y must have"),
        (torch.full((20,), math.nan), torch.arange(20.0), "features holds NaN"),
        (torch.zeros(20), torch.full((20,), math.inf), "y holds NaN"),
        (torch.zeros(20, 0), torch.arange(20.0), "features must be a non-empty"),
    ],
)
def test_bad_arguments_are_named(features: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe_r2(features, y)
