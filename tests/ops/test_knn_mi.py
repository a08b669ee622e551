"""`knn_mi` against its formulas, and its ops against brute force, bit for bit."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch import Tensor

import stib_fast
from stib_fast.data.spiral import sample
from stib_fast.functional import knn_entropy, knn_mi, knn_mi_subsampled
from stib_fast.ops import knn_mi as ops

pytestmark = pytest.mark.filterwarnings("error")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
VARIANTS = pytest.mark.parametrize("variant", [1, 2])


def silent(rows: int) -> None:
    """A bar that shows nothing."""


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def distances(points: Tensor) -> Tensor:
    """[n, n] in the dtype of the points."""
    far = points.new_zeros(len(points), len(points))
    for column in points.T:
        far = torch.maximum(far, (column[:, None] - column).abs())
    return far


def expected_radii(points: Tensor, x_columns: int, k: int, variant: int) -> tuple[Tensor, Tensor]:
    far = distances(points)
    radius = far.sort(dim=1).values[:, k]
    if variant == 1:
        return radius, radius
    neighbours = far <= radius[:, None]
    sides = points[:, :x_columns], points[:, x_columns:]
    x, y = (distances(side).where(neighbours, 0).amax(dim=1) for side in sides)
    return x, y


def expected_counts(points: Tensor, radius: Tensor, closed: bool) -> Tensor:
    far, radius = distances(points), radius[:, None]
    return ((far <= radius) if closed else (far < radius)).sum(dim=1)


def kraskov(x: Tensor, y: Tensor, k: int, variant: int = 1) -> float:
    """Eq. (8) and (9) of Kraskov et al. (2004) as printed."""
    n = len(x)
    x, y = x.reshape(n, -1), y.reshape(n, -1)
    x_radius, y_radius = expected_radii(torch.cat([x, y], 1), x.shape[1], k, variant)
    others = [
        expected_counts(side, radius, variant == 2).clamp(min=1) - 1
        for side, radius in ((x, x_radius), (y, y_radius))
    ]
    psi = [(count + (variant == 1)).double().digamma().mean() for count in others]
    k_and_n = torch.tensor([k, n]).double().digamma().sum()
    return float(k_and_n - sum(psi) - (1 / k if variant == 2 else 0))


# ---- the estimate --------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(3, 300),
    d=st.integers(1, 4),
    m=st.integers(1, 3),
    variant=st.sampled_from([1, 2]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    backend=st.sampled_from(["auto", "eager"]),
    data=st.data(),
)
def test_equals_formula(seed, n, d, m, variant, dtype, backend, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, min(n - 1, 25)))
    x, y = normal(n, d, seed=seed, dtype=dtype), normal(n, m, seed=seed + 1, dtype=dtype)
    y += x[:, :1]
    with stib_fast.backend(backend):
        found = float(knn_mi(x, y, k, variant=variant, jitter=0))
    assert abs(found - kraskov(x, y, k, variant)) < 1e-9


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(3, 300),
    levels=st.integers(1, 6),
    variant=st.sampled_from([1, 2]),
    backend=st.sampled_from(["auto", "eager"]),
)
def test_equals_formula_with_ties(seed, n, levels, variant, backend) -> None:
    # Few levels on a grid: many equal distances, and exact copies whose radius is 0.
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(0, levels, (2, n, 2), generator=generator).double() * 0.1
    k = min(3, n - 1)
    with stib_fast.backend(backend):
        found = float(knn_mi(x, y, k, variant=variant, jitter=0))
    assert abs(found - kraskov(x, y, k, variant)) < 1e-9


def npeet(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """NPEET's published algorithm, in nats: the radius shrunk by 1e-15, counts with the row."""
    digamma = [
        torch.from_numpy((cdist(side, side, "chebyshev") <= radius[:, None] - 1e-15).sum(1) * 1.0)
        .digamma()
        .mean()
        for radius in [np.sort(cdist(np.hstack([x, y]), np.hstack([x, y]), "chebyshev"))[:, k]]
        for side in (x, y)
    ]
    return float(torch.tensor([k, len(x)]).double().digamma().sum() - sum(digamma))


@pytest.mark.parametrize("jitter", [0.0, 1e-10])
@pytest.mark.parametrize(("n", "d", "k"), [(2000, 2, 20), (1500, 16, 3), (600, 1, 599)])
def test_equals_npeet(n: int, d: int, k: int, jitter: float, backend: str) -> None:
    x, y = normal(n, d, seed=1), normal(n, 2, seed=2)
    y[:, 0] += x[:, 0]
    expected = [side.numpy() for side in (x, y)]
    if jitter > 0:
        rng = np.random.default_rng(7)
        for i, side in enumerate(expected):
            noise = jitter * side.std(axis=0) * rng.standard_normal(side.shape)
            expected[i] = side - side.mean(axis=0) + noise
    assert abs(float(knn_mi(x, y, k, jitter=jitter, seed=7)) - npeet(*expected, k)) < 1e-9


def test_jitter_moves_hardly_a_count() -> None:
    x, y, _ = sample(1000, generator=torch.Generator().manual_seed(0))
    assert abs(float(knn_mi(x, y, jitter=0)) - kraskov(x, y, 20)) < 1e-9
    # The jitter moves a distance by about 1e-10 of its size, float32 by 1e-7.
    assert abs(float(knn_mi(x.double(), y.double())) - kraskov(x, y, 20)) < 1e-4
    assert abs(float(knn_mi(x, y)) - kraskov(x, y, 20)) < 1e-4


@VARIANTS
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6, 0.9])
def test_correlated_gaussians(correlation: float, variant: int) -> None:
    x, noise = normal(5000, 2, seed=1).T
    y = correlation * x + math.sqrt(1 - correlation**2) * noise
    expected = -0.5 * math.log1p(-(correlation**2))
    # Over 12 seeds: bias at most 0.018, standard deviation at most 0.010; four of these.
    assert abs(float(knn_mi(x, y, variant=variant)) - expected) < 0.058


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


@VARIANTS
def test_symmetric_and_not_clipped(variant: int) -> None:
    x, y = normal(400, 2, seed=4), normal(400, 1, seed=5)
    both = [float(knn_mi(*sides, variant=variant, jitter=0)) for sides in ((x, y), (y, x))]
    assert both[0] == pytest.approx(both[1], abs=1e-12)
    order = torch.randperm(400)
    shuffled = float(knn_mi(x[order], y[order], variant=variant, jitter=0))
    assert shuffled == pytest.approx(both[0], abs=1e-12)
    estimates = [float(knn_mi(normal(300, seed=s), normal(300, seed=s + 100))) for s in range(20)]
    assert min(estimates) < 0 < max(estimates)


def test_numpy_integers_and_another_default_device() -> None:
    x, y = normal(50, seed=1), normal(50, seed=2)
    expected = knn_mi(x, y, 3, variant=2)
    assert torch.equal(knn_mi(x, y, np.int64(3), variant=np.int32(2)), expected)
    with torch.device("meta"):
        found = knn_mi(x, y, 3, variant=2)
    assert torch.equal(found, expected)


def test_many_neighbours_are_sorted_by_plain_pytorch(monkeypatch) -> None:
    x, y = normal(400, 2, seed=1), normal(400, seed=2)
    for k in (255, 256, 399):
        assert abs(float(knn_mi(x, y, k, jitter=0)) - kraskov(x, y, k)) < 1e-9
    monkeypatch.setattr(ops, "_by_tree", lambda *arguments: pytest.fail("the tree was asked"))
    knn_mi(x, y, 255)


@pytest.mark.parametrize("columns", [2, 11])  # the tree, and plain PyTorch
def test_without_the_library_calls_are_short(columns: int, monkeypatch) -> None:
    """Ctrl-C is heard between them."""
    monkeypatch.setattr(ops, "TREE_ROWS", 100)
    monkeypatch.setattr(ops, "BLOCK_DISTANCES_CPU", 100 * 950)
    points, calls = normal(950, columns), []
    with stib_fast.backend("eager"):
        ops.neighbour_radii(points, 1, 3, 1, calls.append)
        ops.neighbour_counts(points, torch.ones(950).double(), True, calls.append)
    assert calls == 2 * [*[100] * 9, 50]


def test_result_and_arguments() -> None:
    x = normal(50, 1, seed=6).requires_grad_()
    y = normal(50, seed=7)
    mi = knn_mi(x, y, 3)
    assert mi.shape == ()
    assert mi.dtype == torch.float64
    assert not mi.requires_grad
    assert torch.equal(mi, knn_mi(x[:, 0], y[:, None], 3))
    assert torch.isfinite(knn_mi(x.bfloat16(), y.half(), 3))
    assert torch.equal(knn_mi(x.half(), y.half(), 3), knn_mi(x.half().float(), y.half().float(), 3))
    assert torch.equal(knn_mi(x.float(), y, 3), knn_mi(x.float().double(), y, 3))
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
    # Even float64 rounds it away.
    with pytest.raises(ValueError, match=r"rows \(first: .*torch.float64 rounds the jitter away"):
        knn_mi(x, y, jitter=1e-18)
    assert abs(float(knn_mi(x.float(), y.float(), jitter=1e-3))) < 0.05
    assert float(knn_mi(x.float(), y.float(), jitter=0)) == float(knn_mi(x, y, jitter=0))


@VARIANTS
@pytest.mark.parametrize("decimals", [0, 1, 2, 3])
def test_ties_of_rounded_float32_are_broken(decimals: int, variant: int) -> None:
    """float32 would round the jitter away, and the estimate would be of ties."""
    x = normal(3000, seed=1).round(decimals=decimals)
    y = (x + normal(3000, seed=2)).round(decimals=decimals)
    found = knn_mi(x.float(), y.float(), variant=variant)
    assert torch.equal(found, knn_mi(x.float().double(), y.float().double(), variant=variant))


def test_float32_is_kept_where_values_differ_and_ties_are_meant() -> None:
    dtypes = []

    def note(points, *arguments):
        dtypes.append(points.dtype)
        return ops.neighbour_radii(points, *arguments)

    x, y = normal(3000, seed=1, dtype=torch.float32), normal(3000, seed=2, dtype=torch.float32)
    few = x.clone()
    few[:21] = few[0]  # k = 20 equal a value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stib_fast.functional.knn.neighbour_radii", note)
        knn_mi(x, y)
        knn_mi(x.round(), y.round(), jitter=0)
        knn_mi(few, y)
        knn_mi(few, y, 21)
        knn_entropy(x.round())
    narrow, wide = torch.float32, torch.float64
    assert dtypes == [narrow, narrow, wide, narrow, wide]


def test_copies_on_one_side_alone_are_not_refused() -> None:
    x, y = normal(200, seed=1).sign(), normal(200, seed=2)
    assert torch.isfinite(knn_mi(x, y, 3, variant=2, jitter=1e-18))


def test_two_clusters_far_apart_in_float32() -> None:
    """Centring moves both away from 0, where float32 held one of them to more digits."""
    x, noise = normal(2000, seed=1), normal(2000, seed=2)
    y = x + noise
    x[1000:] += 1e6
    found = knn_mi(x.float(), y.float())
    assert torch.equal(found, knn_mi(x.float().double(), y.float().double()))


def test_large_offset_in_float32_keeps_what_the_input_holds() -> None:
    x, y = normal(500, seed=3), normal(500, seed=4)
    # At 1e8 float32 has steps of 8: scaled by 1e5, rounding moves a value by 4e-5 of its spread.
    moved = knn_mi((1e5 * x + 1e8).float(), 1e5 * y.float())
    assert abs(float(moved - knn_mi(x, y))) < 1e-3


def test_constant_columns_carry_no_information() -> None:
    y = normal(200, 2, seed=11)
    constant = torch.full((200, 1), 0.1)
    # Every row is a neighbour in x, so the two digammas of each side cancel.
    assert abs(float(knn_mi(constant, y))) < 1e-9
    # Nor do they beside columns of any size: their jitter is relative to those.
    for scale in (1.0, 1e-12, 1e-200, 1e200):
        with_constant = torch.cat([scale * y[:, :1], constant], dim=1)
        alone = knn_mi(scale * y[:, :1], scale * y[:, 1:])
        assert abs(float(knn_mi(with_constant, scale * y[:, 1:]) - alone)) < 1e-9
    # Two constants: independent jitter on both; standard deviation at n = 200: 0.013.
    assert abs(float(knn_mi(constant, constant))) < 0.065


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_rows_are_named_or_omitted(bad: float) -> None:
    x = normal(30, 2, seed=1, dtype=torch.float32)
    y = normal(30, seed=2, dtype=torch.float32)
    x[7, 1] = bad
    x[11] = bad
    with pytest.raises(ValueError, match=r"x holds NaN or infinity in 2 rows \(first: 7, 11\)"):
        knn_mi(x, y, 3)
    with pytest.raises(ValueError, match=r"y holds NaN or infinity in 2 rows"):
        knn_mi(y, x, 3)
    with pytest.raises(ValueError, match=r"x holds NaN or infinity in 2 rows"):
        knn_entropy(x, 3)
    y[4] = bad
    with pytest.warns(UserWarning, match=r"omitted 3 rows \(first: 4, 7, 11\) of 30") as told:
        found = knn_mi(x, y, 3, nan_policy="omit")
    assert told[0].filename == __file__
    kept = [i for i in range(30) if i not in (4, 7, 11)]
    assert torch.equal(found, knn_mi(x[kept], y[kept], 3))
    with (
        pytest.warns(UserWarning, match="omitted"),
        pytest.raises(ValueError, match="rows 27, got 27"),
    ):
        knn_mi(x, y, 27, nan_policy="omit")


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (torch.zeros(5), torch.zeros(6), {"k": 2}, "same number of rows, got 5 and 6"),
        (torch.zeros(5), torch.zeros(5), {"k": 5}, "k must be .* 5, got 5"),
        (torch.zeros(5), torch.zeros(5), {"k": 0}, "k must be"),
        (torch.zeros(5), torch.zeros(5), {"k": 2.0}, "k must be"),
        (torch.zeros(0, 2), torch.zeros(0), {"k": 1}, "x must be a non-empty"),
        (torch.zeros(5), torch.zeros(5, 0), {"k": 1}, "y must be a non-empty"),
        (torch.zeros(5, 1, 1), torch.zeros(5), {"k": 1}, r"x must be .* got \(5, 1, 1\)"),
        (torch.tensor(1.0), torch.zeros(5), {"k": 1}, "x must be"),
        (np.zeros(5), torch.zeros(5), {"k": 1}, "x must be a torch tensor, got ndarray"),
        (torch.zeros(5, dtype=torch.int32), torch.zeros(5), {"k": 1}, r"x must .*int32.*x.double"),
        (torch.zeros(5), torch.zeros(5, dtype=torch.bool), {"k": 1}, "y must have .*bool"),
        (torch.zeros(5, dtype=torch.complex64), torch.zeros(5), {"k": 1}, "x must have"),
        (torch.zeros(5).to_sparse(), torch.zeros(5), {"k": 1}, "x must be a dense"),
        (
            torch.zeros(5),
            torch.zeros(5, device="meta"),
            {"k": 1},
            "y is on the meta device and holds no",
        ),
        (torch.zeros(5), torch.zeros(5), {"k": 1, "jitter": -1.0}, "jitter must be"),
        (torch.zeros(5), torch.zeros(5), {"k": 1, "jitter": math.nan}, "jitter must be"),
        (torch.zeros(5), torch.zeros(5), {"k": 1, "jitter": None}, "jitter must be"),
        (torch.zeros(5), torch.zeros(5), {"k": 1, "seed": 1.5}, "seed must be an integer"),
        (torch.zeros(5), torch.zeros(5), {"k": 1, "variant": 1.0}, "variant must be an integer"),
        (torch.zeros(5), torch.zeros(5), {"k": 1, "variant": 3}, "variant must be 1 or 2, got 3"),
        (torch.zeros(5), torch.zeros(5), {"k": 1, "nan_policy": "drop"}, "nan_policy must be"),
    ],
)
def test_bad_arguments_are_named(x: Tensor, y: Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        knn_mi(x, y, **options)


@pytest.mark.parametrize("jitter", [0.0, 1e-10])
def test_ranges_that_overflow_are_refused(jitter: float) -> None:
    y = torch.linspace(-1, 1, 9)
    with pytest.raises(ValueError, match=r"x has a column .*float32; scale it down or give x.do"):
        knn_mi(3e38 * y, y, 2, jitter=jitter)
    with pytest.raises(ValueError, match=r"y has a column .*float64; scale it down$"):
        knn_mi(y, 1.7e308 * y.double(), 2, jitter=jitter)
    assert torch.isfinite(knn_mi(1e38 * y, y, 2, jitter=jitter))


# ---- entropy and subsamples ----------------------------------------------------------------------


@DTYPES
def test_entropy_equals_formula(dtype: torch.dtype, backend: str) -> None:
    x = normal(700, 3, seed=1, dtype=dtype)
    radius = expected_radii(x, 3, 5, 1)[0].double()
    psi = torch.tensor([700, 5]).double().digamma()
    expected = psi[0] - psi[1] + 3 * (2 * radius).log().mean()
    assert abs(float(knn_entropy(x, 5, jitter=0) - expected)) < 1e-9


def test_entropy_of_a_gaussian() -> None:
    x = normal(5000, 2, seed=1) * torch.tensor([2.0, 0.5])
    # Exact: log(2 pi e). Over 12 seeds: bias 0.018, standard deviation 0.015; four of these.
    assert abs(float(knn_entropy(x)) - math.log(2 * math.pi * math.e)) < 0.078
    assert float(knn_entropy(4 * x, jitter=0) - knn_entropy(x, jitter=0)) == pytest.approx(
        2 * math.log(4), abs=1e-9
    )


def test_entropy_of_copies() -> None:
    x = torch.zeros(20).double()
    assert knn_entropy(x, 3, jitter=0) == -math.inf
    assert -25 < float(knn_entropy(x, 3)) < -20  # of the jitter: log(1e-10) = -23
    with pytest.raises(ValueError, match="rounds the jitter away"):
        knn_entropy(torch.tensor([0.0, 0.0, 1.0, 1.0]).double().repeat(5), 3, jitter=1e-18)


def test_subsamples_are_disjoint_and_their_error_is_that_of_the_mean() -> None:
    x, y = normal(3000, seed=1), normal(3000, seed=2)
    y += x
    found = knn_mi_subsampled(x, y, 5, subsample=300, seed=3)
    assert found == knn_mi_subsampled(x, y, 5, subsample=300, seed=3)
    assert found != knn_mi_subsampled(x, y, 5, subsample=300, seed=4)
    # Exact: log(2) / 2. The bias at 300 rows is below 0.01.
    assert abs(found.value - math.log(2) / 2) < 4 * found.standard_error + 0.01
    parts = torch.from_numpy(np.random.default_rng([3, 1]).permutation(3000)).split(300)
    for variant in (1, 2):
        found = knn_mi_subsampled(x, y, 5, subsample=300, seed=3, variant=variant, jitter=0)
        each = [knn_mi(x[part], y[part], 5, variant=variant, jitter=0) for part in parts]
        assert found.value == pytest.approx(float(torch.stack(each).mean()), rel=1e-12)
        error = float(torch.stack(each).std()) / math.sqrt(10)
        assert found.standard_error == pytest.approx(error, rel=1e-12)
    means = torch.tensor(
        [
            knn_mi_subsampled(normal(3000, seed=s), normal(3000, seed=s + 50), 5, subsample=300)
            for s in range(20)
        ]
    )
    # The spread of 20 means is known to 16 %; the mean of 20 errors of 9 degrees to 5 %.
    assert 0.4 < means[:, 0].std() / means[:, 1].mean() < 1.6


def test_copies_in_subsamples_are_refused() -> None:
    x = normal(300, seed=1).sign()
    with pytest.raises(ValueError, match="rounds the jitter away"):
        knn_mi_subsampled(x, x, 3, subsample=100, repetitions=2, jitter=1e-18)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subsample": 5}, "subsample must be more than k = 5 .* 30 rows, got 5"),
        ({"subsample": 31}, "subsample must be"),
        ({"subsample": 10}, "repetitions must be from 2 to 3, .* got 10"),
        ({"subsample": 10, "repetitions": 1}, "repetitions must be"),
        ({"subsample": 10, "repetitions": 2, "variant": 0}, "variant must be"),
        ({"subsample": 10, "repetitions": 2, "k": 30}, "k must be"),
        ({"subsample": 10.0, "repetitions": 2}, "subsample must be an integer, got 10.0"),
        ({"subsample": 10, "repetitions": 2.5}, "repetitions must be an integer"),
    ],
)
def test_bad_subsamples_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        knn_mi_subsampled(normal(30), normal(30, seed=1), **({"k": 5} | options))


# ---- the ops, bit for bit ------------------------------------------------------------------------


def draw(kind: str, n: int, d: int, dtype: torch.dtype) -> Tensor:
    """Points that the pruning, the ties or the rounding could be wrong on."""
    points = normal(n, d, seed=n + d)
    if kind == "clusters":
        points = 1e-3 * points + 5 * torch.randint(-3, 4, (n, 1))
    elif kind == "grid":
        points = points.mul(2).round() / 10
    elif kind == "copies":
        points = points[torch.randint(0, max(2, n // 40), (n,))]
    elif kind == "constant column":
        points[:, -1] = 0.1
    elif kind == "constant":
        points = torch.full_like(points, 0.1)
    elif kind == "offset":
        points += 1e8
    elif kind == "denormal":
        points *= 30 * torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    elif kind == "outliers":
        points[:3] *= 1e30
    return points.to(dtype)


KINDS = ["normal", "clusters", "grid", "copies", "constant column", "constant", "offset"]
KINDS += ["denormal", "outliers"]


def assert_exact(points: Tensor, k: int) -> None:
    x_columns = max(1, points.shape[1] // 2)
    for variant in (1, 2) if points.shape[1] > 1 else (1,):
        expected = expected_radii(points, x_columns, k, variant)
        found = ops.neighbour_radii(points, x_columns, k, variant, silent)
        assert all(map(torch.equal, found, expected)), variant
    radius = expected_radii(points, x_columns, k, 1)[0]
    for closed in (True, False):
        expected_count = expected_counts(points, radius, closed)
        assert torch.equal(ops.neighbour_counts(points, radius, closed, silent), expected_count)


@DTYPES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("d", "k"), [(1, 1), (3, 20), (17, 5)])
def test_kinds_of_points(kind: str, d: int, k: int, dtype: torch.dtype, backend: str) -> None:
    assert_exact(draw(kind, 600, d, dtype), k)


@DTYPES
# A block holds 16 points, a leaf 256.
@pytest.mark.parametrize("n", [2, 15, 16, 17, 31, 33, 255, 256, 257, 271, 273, 511, 512, 513, 769])
def test_numbers_of_points(n: int, dtype: torch.dtype, backend: str) -> None:
    for k in {1, min(15, n - 1), min(16, n - 1), n - 1}:
        assert_exact(draw("normal", n, 2, dtype), k)


@pytest.mark.usefixtures("library")
@DTYPES
@pytest.mark.parametrize("kind", ["normal", "clusters", "copies"])
# A group holds 4096 points: plain PyTorch, tested above, is the reference.
@pytest.mark.parametrize("n", [4096, 4097, 9000])
def test_groups_of_leaves(n: int, kind: str, dtype: torch.dtype) -> None:
    points = draw(kind, n, 3, dtype)
    radii = ops.neighbour_radii(points, 1, 9, 2, silent)
    counts = ops.neighbour_counts(points, radii[0], True, silent)
    with stib_fast.backend("eager"):
        assert all(map(torch.equal, radii, ops.neighbour_radii(points, 1, 9, 2, silent)))
        assert torch.equal(counts, ops.neighbour_counts(points, radii[0], True, silent))


@DTYPES
def test_many_columns(dtype: torch.dtype, backend: str) -> None:
    assert_exact(draw("normal", 300, 130, dtype), 7)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_pytorch_where_the_tree_would_run(kind: str, monkeypatch) -> None:
    monkeypatch.setattr(ops, "TREE_COLUMNS_RADII", 0)
    monkeypatch.setattr(ops, "TREE_COLUMNS_COUNTS", 0)
    monkeypatch.setattr(ops, "BLOCK_DISTANCES_CPU", 1000)
    with stib_fast.backend("eager"):
        assert_exact(draw(kind, 333, 3, torch.float64), 6)


DIGEST = """
import hashlib, torch
from stib_fast.ops import knn_mi as ops
digest = hashlib.sha256()
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64):
    for d in (1, 2, 7, 18):
        points = torch.randn(1111, d, dtype=torch.float64).mul(8).round().div(8).to(dtype)
        points[::2] = torch.randn(556, d, dtype=torch.float64).to(dtype)
        for variant in (1, 2) if d > 1 else (1,):
            radii = ops.neighbour_radii(points, 1, 11, variant, lambda rows: None)
            for closed in (True, False):
                count = ops.neighbour_counts(points, radii[1], closed, lambda rows: None)
                digest.update(count.numpy().tobytes())
            digest.update(torch.cat(radii).numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.usefixtures("library")
def test_instruction_sets_agree(capsys) -> None:
    exec(DIGEST, {})
    with stib_fast.backend("eager"):
        exec(DIGEST, {})
    found = capsys.readouterr().out.splitlines()
    found += [
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env=os.environ | {"STIB_FAST_CPU": instruction_set},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for instruction_set in ("avx2", "baseline")
    ]
    assert len(found) == 4
    assert len(found[0]) == 64
    assert len(set(found)) == 1


@VARIANTS
def test_threads_do_not_matter(variant: int) -> None:
    x, y = normal(3000, 2, seed=1), normal(3000, 1, seed=2)
    alone = knn_mi(x, y, variant=variant)
    torch.set_num_threads(3)
    assert torch.equal(alone, knn_mi(x, y, variant=variant))


@pytest.mark.usefixtures("library")
class TestOps:
    @staticmethod
    def ordered(dtype: torch.dtype = torch.float64) -> Tensor:
        points = normal(1000, 3, seed=1, dtype=dtype)
        return points[torch.ops.stib_fast.knn_order(points)]

    @VARIANTS
    @pytest.mark.parametrize("cuts", [(0, 1000), (0, 256, 1000), (0, 1, 100, 300, 513, 513, 1000)])
    def test_ranges_give_the_same_as_one_call(self, cuts: tuple[int, ...], variant: int) -> None:
        points = self.ordered()
        radius = expected_radii(points, 1, 4, variant)
        counts = expected_counts(points, radius[0], False)
        for begin, end in pairwise(cuts):
            found = torch.ops.stib_fast.knn_radii(points, 1, 4, variant, begin, end)
            assert all(torch.equal(a, b[begin:end]) for a, b in zip(found, radius, strict=True))
            found = torch.ops.stib_fast.knn_counts(
                points, radius[0][begin:end].contiguous(), False, begin, end
            )
            assert torch.equal(found, counts[begin:end])

    @DTYPES
    def test_opcheck(self, dtype: torch.dtype) -> None:
        points = self.ordered(dtype)
        namespace = torch.ops.stib_fast
        torch.library.opcheck(namespace.knn_order.default, (points,))
        torch.library.opcheck(namespace.knn_radii.default, (points, 1, 4, 2, 10, 300))
        radius = torch.rand(290, dtype=dtype)
        torch.library.opcheck(namespace.knn_counts.default, (points, radius, True, 10, 300))

    def test_infinite_radius_counts_every_point_once(self) -> None:
        points = self.ordered()
        radius = torch.full((1000,), math.inf, dtype=torch.float64)
        found = torch.ops.stib_fast.knn_counts(points, radius, True, 0, 1000)
        assert (found == 1000).all()

    def test_bad_arguments_of_direct_calls(self) -> None:
        points = self.ordered()
        radius = torch.ones(5).double()
        for call in (
            lambda op: op.knn_order(points.T),
            lambda op: op.knn_order(points.half()),
            lambda op: op.knn_radii(points, 1, 1000, 1, 0, 5),
            lambda op: op.knn_radii(points, 0, 4, 2, 0, 5),
            lambda op: op.knn_radii(points, 1, 4, 3, 0, 5),
            lambda op: op.knn_radii(points, 1, 4, 1, 5, 1001),
            lambda op: op.knn_counts(points, radius, True, 0, 6),
            lambda op: op.knn_counts(points, radius.float(), True, 0, 5),
        ):
            with pytest.raises(RuntimeError, match="knn_mi"):
                call(torch.ops.stib_fast)


# ---- long runs -----------------------------------------------------------------------------------


def test_ranges_grow_until_a_call_takes_long(monkeypatch) -> None:
    monkeypatch.setattr(ops, "FIRST_DISTANCES", 10_000 * 300)
    clock = iter([0, 0.1, 1, 1.1, 2, 2.4, 3, 3.4, 4, 4.4, 5, 5.4, 6, 6.1])
    monkeypatch.setattr(ops.time, "perf_counter", lambda: next(clock))
    done: list[int] = []
    found = list(ops.ranges(torch.zeros(10_000, 1), done.append))
    starts = [0, 512, 1536, 3584, 5632, 7680, 9728, 10_000]
    assert found == list(pairwise(starts))
    assert sum(done) == 10_000


@pytest.mark.usefixtures("library")
def test_interrupt_between_ranges_leaves_nothing_broken(monkeypatch) -> None:
    x, y = normal(5000, 2, seed=1), normal(5000, 1, seed=2)
    expected = knn_mi(x, y)
    monkeypatch.setattr(ops, "FIRST_DISTANCES", 1)
    assert torch.equal(knn_mi(x, y), expected)
    before, starts = ops.ranges, []

    def interrupted(points, advance):
        for begin, end in before(points, advance):
            starts.append(begin)
            if begin > 0:
                raise KeyboardInterrupt
            yield begin, end

    with monkeypatch.context() as patch:
        patch.setattr(ops, "ranges", interrupted)
        with pytest.raises(KeyboardInterrupt):
            knn_mi(x, y)
    assert starts == [0, 256]
    assert torch.equal(knn_mi(x, y), expected)


def test_bar_counts_all_rows_and_is_silent_without_a_terminal(capfd, monkeypatch, backend) -> None:
    import stib_fast.functional.knn as module

    bars = []

    class Bar(module.tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **(options | {"disable": False, "delay": 0}))
            bars.append(self)

    x, y = normal(3000, 9, seed=1), normal(3000, 9, seed=2)
    knn_mi(x, y)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(module, "tqdm", Bar)
    knn_mi(x, y)
    assert bars[0].n == bars[0].total == 9000
    assert "knn_mi: 100%" in capfd.readouterr().err
