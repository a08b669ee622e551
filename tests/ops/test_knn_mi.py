from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stib_fast.data.spiral import sample
from stib_fast.ops.knn_mi import knn_mi

pytestmark = pytest.mark.filterwarnings("error")


def brute_force(x: Tensor, y: Tensor, k: int) -> float:
    """The formula as printed in Kraskov et al. (2004), Eq. (8), all distances in memory."""
    n = len(x)
    x, y = x.double().reshape(n, -1), y.double().reshape(n, -1)
    distance_x = (x[:, None] - x[None]).abs().amax(dim=2)
    distance_y = (y[:, None] - y[None]).abs().amax(dim=2)
    joint = torch.maximum(distance_x, distance_y)
    total = 0.0
    for i in range(n):
        others = torch.arange(n) != i
        radius = joint[i, others].sort().values[k - 1]
        n_x = (distance_x[i, others] < radius).sum().double()
        n_y = (distance_y[i, others] < radius).sum().double()
        total += float(torch.digamma(n_x + 1) + torch.digamma(n_y + 1)) / n
    return float(torch.digamma(torch.tensor([k, n]).double()).sum()) - total


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(3, 120),
    d=st.integers(1, 4),
    m=st.integers(1, 3),
    data=st.data(),
)
def test_equals_brute_force(seed: int, n: int, d: int, m: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, min(n - 1, 25)))
    x, y = normal(n, d, seed=seed), normal(n, m, seed=seed + 1)
    y += x[:, :1]
    assert abs(float(knn_mi(x, y, k, jitter=0)) - brute_force(x, y, k)) < 1e-9


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(3, 80), levels=st.integers(1, 6))
def test_equals_brute_force_with_ties(seed: int, n: int, levels: int) -> None:
    # Few levels on a grid: many equal distances, and exact copies whose radius is 0.
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(0, levels, (2, n, 2), generator=generator).double() * 0.1
    k = min(3, n - 1)
    assert abs(float(knn_mi(x, y, k, jitter=0)) - brute_force(x, y, k)) < 1e-9


def test_equals_brute_force_at_two_thousand_rows_in_float32() -> None:
    x, y, _ = sample(2000, generator=torch.Generator().manual_seed(0))
    assert abs(float(knn_mi(x, y, jitter=0)) - brute_force(x, y, 20)) < 1e-9
    # The jitter moves a distance by about 1e-10 of its size: hardly a count changes.
    assert abs(float(knn_mi(x, y)) - brute_force(x, y, 20)) < 1e-4


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6, 0.9])
def test_correlated_gaussians(correlation: float) -> None:
    x, noise = normal(5000, 2, seed=1).T
    y = correlation * x + math.sqrt(1 - correlation**2) * noise
    expected = -0.5 * math.log1p(-(correlation**2))
    # Over 12 seeds: bias at most 0.018, standard deviation at most 0.010; four of these.
    assert abs(float(knn_mi(x, y)) - expected) < 0.058


def test_two_gaussian_columns_add_up() -> None:
    x, noise = normal(5000, 2, seed=2), normal(5000, 2, seed=3)
    y = 0.8 * x + 0.6 * noise
    # Over 8 seeds: bias -0.020, standard deviation 0.021; four of these.
    assert abs(float(knn_mi(x, y)) + math.log1p(-0.64)) < 0.104


def test_reference_values_of_the_spiral() -> None:
    x, y, _ = sample(10_000, generator=torch.Generator().manual_seed(0))
    t = 2 * x[:, 0] + x[:, 1]
    first = ((t - 4) / 2).clamp(min=-4)
    last = ((t + 4) / 2).clamp(max=4)
    along_segment = (x[:, 0] - first) / (last - first)

    def bits(z: Tensor) -> float:
        return float(knn_mi(z, y)) / math.log(2)

    # Over 24 seeds: 0.276 ± 0.008 (0.264 to 0.300), 4.565 ± 0.016 and 0.001 ± 0.003; four
    # standard deviations. Another sample gave 0.291, 4.6 and -0.002.
    assert abs(bits(x[:, 0] - 2 * x[:, 1]) - 0.276) < 0.034
    assert abs(bits(t) - 4.565) < 0.064
    assert abs(bits(along_segment) - 0.001) < 0.012


def test_symmetric_and_not_clipped() -> None:
    x, y = normal(400, 2, seed=4), normal(400, 1, seed=5)
    assert float(knn_mi(x, y, jitter=0)) == pytest.approx(float(knn_mi(y, x, jitter=0)), abs=1e-12)
    estimates = [float(knn_mi(normal(300, seed=s), normal(300, seed=s + 100))) for s in range(20)]
    assert min(estimates) < 0 < max(estimates)


def test_result_and_arguments() -> None:
    x = normal(50, 1, seed=6).requires_grad_()
    y = normal(50, seed=7)
    mi = knn_mi(x, y, 3)
    assert mi.shape == ()
    assert mi.dtype == torch.float64
    assert not mi.requires_grad
    assert torch.equal(mi, knn_mi(x[:, 0], y[:, None], 3))
    assert torch.isfinite(knn_mi(x.bfloat16(), y.half(), 3))
    assert torch.equal(knn_mi(normal(2, 50).T, y, 3), knn_mi(normal(2, 50).T.contiguous(), y, 3))


def test_jitter_is_seeded() -> None:
    x = normal(300, seed=8).round()
    y = x + normal(300, seed=9).round()
    assert torch.equal(knn_mi(x, y, 3, seed=1), knn_mi(x, y, 3, seed=1))
    assert not torch.equal(knn_mi(x, y, 3, seed=1), knn_mi(x, y, 3, seed=2))


def test_jitter_breaks_ties_under_a_large_offset_and_at_any_scale() -> None:
    # Labels 0 and 1 on both sides, equal in half of the rows at random: independent.
    generator = torch.Generator().manual_seed(10)
    x, y = torch.randint(0, 2, (2, 1000), generator=generator).double()
    plain = float(knn_mi(x, y))
    # The estimator's standard deviation at n = 1000 and k = 20 is 0.010: five of them.
    assert abs(plain) < 0.05
    assert float(knn_mi(x + 1e9, y)) == pytest.approx(plain, abs=1e-12)
    assert float(knn_mi(1024 * x, 1024 * y)) == pytest.approx(plain, abs=1e-12)


def test_constant_columns_carry_no_information() -> None:
    y = normal(200, 2, seed=11)
    constant = torch.full((200, 1), 0.1)
    # Every row is a neighbour in x, so the two digammas of each side cancel.
    assert abs(float(knn_mi(constant, y))) < 1e-9
    # Two constants: independent jitter on both; standard deviation at n = 200: 0.013.
    assert abs(float(knn_mi(constant, constant))) < 0.065


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_rows_are_named(bad: float) -> None:
    x = torch.zeros(30, 2)
    x[7, 1] = bad
    x[11] = bad
    with pytest.raises(ValueError, match=r"x holds NaN or infinity in 2 rows \(first: 7, 11\)"):
        knn_mi(x, torch.zeros(30), 3)
    with pytest.raises(ValueError, match=r"y holds NaN or infinity in 2 rows"):
        knn_mi(torch.zeros(30), x, 3)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (torch.zeros(5), torch.zeros(6), {"k": 2}, "same number of rows, got 5 and 6"),
        (torch.zeros(5), torch.zeros(5), {"k": 5}, "k must be .* 5, got 5"),
        (torch.zeros(5), torch.zeros(5), {"k": 0}, "k must be"),
        (torch.zeros(0, 2), torch.zeros(0), {"k": 1}, "x must be a non-empty"),
        (torch.zeros(5), torch.zeros(5, 0), {"k": 1}, "y must be a non-empty"),
        (torch.zeros(5, 1, 1), torch.zeros(5), {"k": 1}, r"x must be .* got \(5, 1, 1\)"),
        (torch.tensor(1.0), torch.zeros(5), {"k": 1}, "x must be"),
        (torch.zeros(5, dtype=torch.int32), torch.zeros(5), {"k": 1}, "x must have .*int32"),
        (torch.zeros(5), torch.zeros(5, dtype=torch.bool), {"k": 1}, "y must have .*bool"),
        (torch.zeros(5, dtype=torch.complex64), torch.zeros(5), {"k": 1}, "x must have"),
        (torch.zeros(5), torch.zeros(5), {"k": 1, "jitter": -1.0}, "jitter must be"),
        (torch.zeros(5), torch.zeros(5), {"k": 1, "jitter": math.nan}, "jitter must be"),
    ],
)
def test_bad_arguments_are_named(x: Tensor, y: Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        knn_mi(x, y, **options)
