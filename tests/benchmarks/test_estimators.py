"""The known values against other derivations; the estimators where theory says what they must read.

Standard errors are those of the mean over the seeds; 4 of them.
"""

from __future__ import annotations

import math
import re
import statistics
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import ndtr
from scipy.stats import multivariate_normal, multivariate_t
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are not installed
from benchmarks import distributions, estimators, report
from benchmarks.distributions import DISTRIBUTIONS, Distribution
from stib_fast import functional as F

BY_NAME = {distribution.name: distribution for distribution in DISTRIBUTIONS}
SEEDS = 20
ROWS = 1000


def estimates(
    estimate: Callable[[Tensor, Tensor], Tensor], distribution: Distribution, rows: int = ROWS
) -> tuple[float, float]:
    """Mean over the seeds, and its standard error."""
    values = [estimate(*distribution.sample(rows, seed)).item() for seed in range(SEEDS)]
    return statistics.fmean(values), statistics.stdev(values) / SEEDS**0.5


def gaussian(z: Tensor, y: Tensor) -> Tensor:
    return F.gaussian_mi(z, y, bias_correction=True)


# ---- the known values ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_NAME)
def test_samples(name: str) -> None:
    n, m = map(int, re.match(r"(\d+)\+(\d+) ", name).groups())
    x, y = BY_NAME[name].sample(50, 3)
    assert (x.shape, y.shape) == ((50, n), (50, m))
    assert x.dtype == y.dtype == torch.float64
    again = BY_NAME[name].sample(50, 3)
    assert torch.equal(again[0], x)
    assert torch.equal(again[1], y)
    assert not torch.equal(BY_NAME[name].sample(50, 4)[0], x)


@pytest.mark.parametrize(
    ("matrix", "n", "dof"),
    [
        (distributions.dense(1, 1, 0.75), 1, None),
        (distributions.dense(2, 2, 0.5), 2, None),
        (distributions.sparse(16, 2, 2, 0.8), 16, None),
        (np.eye(4), 2, 3),
        (distributions.dense(2, 2, 0.5), 2, 3),
        (distributions.dense(2, 3, 0.5), 2, 1),
    ],
)
def test_value_is_the_mean_log_density_ratio(matrix, n: int, dof: float | None) -> None:
    kind = distributions.normal if dof is None else distributions.student
    distribution = kind("", matrix, n, *([] if dof is None else [dof]))
    x, y = (part.numpy() for part in distribution.sample(20_000, 0))

    def log_density(values, block):
        family = multivariate_normal if dof is None else multivariate_t
        return family(np.zeros(len(block)), block, **({} if dof is None else {"df": dof})).logpdf(
            values
        )

    ratio = (
        log_density(np.hstack([x, y]), matrix)
        - log_density(x.squeeze(), matrix[:n, :n])
        - log_density(y.squeeze(), matrix[n:, n:])
    )
    assert abs(ratio.mean() - distribution.mi) <= 4 * ratio.std() / len(ratio) ** 0.5


@pytest.mark.parametrize("width", [0.1, 0.5, 0.75, 3.0])
def test_value_of_uniform_noise(width: float) -> None:
    # I = h(y) - h(noise); the density of y is the share of [0, 1] within `width` of it.
    def entropy_density(y: float) -> float:
        share = (min(1, y + width) - max(0, y - width)) / (2 * width)
        return -share * math.log(share) if share > 0 else 0.0

    corners = sorted([-width, width, 1 - width, 1 + width])
    entropy = sum(quad(entropy_density, *ends)[0] for ends in pairwise(corners))
    found = distributions.uniform_noise("", width).mi
    assert abs(entropy - math.log(2 * width) - found) <= 1e-7  # of the quadrature


@pytest.mark.parametrize("function", [distributions.half_cube, distributions.wiggly, np.arcsinh])
def test_margins_are_strictly_increasing(function) -> None:
    assert (np.diff(function(np.linspace(-8, 8, 100_001))) > 0).all()


def test_bimodal_margin() -> None:
    # Up to 7 deviations; beyond, the normal distribution function rounds to 1.
    x = np.linspace(-7, 7, 10_001)
    mapped = distributions.bimodal(x)
    assert (np.diff(mapped) > 0).all()
    levels = (ndtr((mapped + 2) / 0.5) + ndtr((mapped - 2) / 0.5)) / 2
    np.testing.assert_allclose(levels, ndtr(x), rtol=0, atol=1e-8)  # the grid's step squared


def test_maps_of_several_columns_have_an_inverse() -> None:
    x = np.random.default_rng(0).standard_normal((1000, 3))
    there = distributions.spiral(0, 1, 1 / 3)(x)
    assert abs(there - x).max() > 1
    np.testing.assert_allclose(distributions.spiral(0, 1, -1 / 3)(there), x, rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        np.linalg.norm(distributions.rotation(3, 1)(x), axis=1), np.linalg.norm(x, axis=1)
    )
    position = np.random.default_rng(0).uniform(size=(1000, 1))
    angle = 21 * np.linalg.norm(distributions.swiss_roll(position), axis=1)
    np.testing.assert_allclose((angle / (1.5 * math.pi) - 1) / 2, position[:, 0], atol=1e-13)


# ---- the estimators ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [d.name for d in DISTRIBUTIONS if "gaussian" in d.model_holds])
def test_gaussian_is_right_where_its_model_holds(name: str) -> None:
    mean, error = estimates(gaussian, BY_NAME[name])
    assert abs(mean - BY_NAME[name].mi) <= 4 * error


@pytest.mark.parametrize("name", [d.name for d in DISTRIBUTIONS if "copula" in d.model_holds])
def test_copula_is_right_where_its_model_holds(name: str) -> None:
    mean, error = estimates(F.gaussian_copula_mi, BY_NAME[name])
    # Its bias of a few -1 / ROWS where columns depend on each other is below one error.
    assert abs(mean - BY_NAME[name].mi) <= 4 * error


def half_cube_correlation() -> float:
    # E[g(x) g(y)] / E[g(x)^2] of a normal pair with correlation 0.75, on a fine grid.
    u, v = np.meshgrid(*[np.linspace(-9, 9, 1801)] * 2)
    weight = np.exp(-(u**2 + v**2) / 2)
    x, y = distributions.half_cube(u), distributions.half_cube(0.75 * u + (1 - 0.75**2) ** 0.5 * v)
    return float((weight * x * y).sum() / (weight * x * x).sum())


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        # corr^2 = (1/12) / (1/12 + width^2 / 3)
        ("1+1 uniform noise 0.1", 0.5 * math.log(1 + 1 / (4 * 0.1**2))),
        ("1+1 uniform noise 0.75", 0.5 * math.log(1 + 1 / (4 * 0.75**2))),
        ("1+1 normal, half-cube", -0.5 * math.log(1 - half_cube_correlation() ** 2)),
    ],
)
def test_gaussian_reads_the_correlation_alone(name: str, reads: float) -> None:
    distribution = BY_NAME[name]
    mean, error = estimates(gaussian, distribution)
    # The correction is that of normal columns: another 1 / rows for others.
    assert abs(mean - reads) <= 4 * error + 1 / ROWS
    assert mean < distribution.mi - 4 * error


@pytest.mark.parametrize("estimate", [gaussian, F.gaussian_copula_mi])
@pytest.mark.parametrize(
    "name", ["2+1 normal, Swiss roll", "3+3 normal, spiral", "2+2 Student, 3 dof, r = 0"]
)
def test_what_correlations_do_not_show(name: str, estimate) -> None:
    mean, error = estimates(estimate, BY_NAME[name])
    assert mean + 4 * error < 0.7 * BY_NAME[name].mi


@pytest.mark.parametrize("k", [5, 20])
@pytest.mark.parametrize(
    "name",
    [
        "1+1 normal, r = 0.75",
        "1+1 normal, wiggly",
        "1+1 normal, bimodal",
        "2+1 normal, Swiss roll",
        "1+1 uniform noise 0.75",
    ],
)
def test_neighbours_are_right_in_few_dimensions(name: str, k: int) -> None:
    mean, error = estimates(lambda x, y: F.knn_mi(x, y, k), BY_NAME[name])
    # A neighbourhood holds the share k / rows; the densities change by about its square root.
    assert abs(mean - BY_NAME[name].mi) <= 4 * error + 0.5 * (k / ROWS) ** 0.5


def test_neighbours_read_independent_as_independent() -> None:
    mean, error = estimates(F.knn_mi, BY_NAME["2+2 independent"])
    # Unbiased but for the edges of the square: Kraskov et al. 2004, section II.
    assert abs(mean) <= 4 * error + 1 / 20


def test_neighbours_read_too_low_in_many_dimensions() -> None:
    distribution = BY_NAME["16+2 normal, 2 pairs"]
    mean, error = estimates(lambda x, y: F.knn_mi(x, y, 5), distribution, rows=300)
    assert mean + 4 * error < distribution.mi / 2


# ---- the benchmark -------------------------------------------------------------------------------


def test_rows_and_figure(tmp_path: Path) -> None:
    chosen = estimators.ESTIMATORS[-2:]
    rows = [
        row | {"threads": 1}
        for distribution in DISTRIBUTIONS[:3]
        for count in (100, 200)
        for row in estimators.estimates(distribution, chosen, count, seeds=3)
    ]
    assert set(estimators.BENCHMARK.table) <= set(rows[0])
    assert len(rows) == 12
    for row in rows:
        assert row["bias"] == row["estimate"] - row["truth"]
        assert row["spread"] > 0
        assert row["model_holds"] is True
    values = [gaussian(*DISTRIBUTIONS[0].sample(100, seed)).item() for seed in range(3)]
    assert rows[0]["estimate"] == statistics.fmean(values)
    report.write(tmp_path, "estimators", rows, {}, estimators.draw)
    assert (tmp_path / "estimators.png").read_bytes().startswith(b"\x89PNG")
