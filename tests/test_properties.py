"""Laws of the ops, on examples that hypothesis makes up.

Tolerance of a mutual information: the ridge of 1e-12, times the condition of a side's correlations
(100 of the map, 100 of the sample), over the least 1 - rho^2 (0.01): 1e-6. Rounding has 1e-16 for
1e-12.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import stib_fast
from stib_fast import functional as F

TOLERANCE = 1e-6
seeds = st.integers(0, 2**32 - 1)
few = st.integers(1, 5)


@pytest.fixture(autouse=True, scope="module", params=["cpp", "eager"])
def _each_backend(request: pytest.FixtureRequest):
    """Of the module: hypothesis runs all examples of a test inside one fixture anyway."""
    if request.param == "cpp":
        request.getfixturevalue("library")
    with stib_fast.backend(request.param):
        yield


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def dependent(seed: int, n: int, m: int, rows: int = 200) -> tuple[Tensor, Tensor]:
    """Columns that share some of their variance; noise keeps 1 - rho^2 away from 0."""
    z, noise, mixing = normal(seed, rows, n), normal(seed + 1, rows, m), normal(seed + 2, n, m)
    return z, z @ mixing / n**0.5 + 0.5 * noise


def affine(seed: int, x: Tensor, condition: float, offset: float) -> Tensor:
    d = x.shape[1]
    left, right = (torch.linalg.qr(normal(seed + i, d, d)).Q for i in (3, 4))
    spread = torch.logspace(0, 1, d, base=condition, dtype=torch.float64)
    return x @ left * spread @ right + offset * normal(seed + 5, d)


@given(seeds, few, few, st.floats(1, 10), st.floats(1, 10), st.floats(-100, 100))
def test_affine_maps_of_either_side_change_nothing(
    seed: int, n: int, m: int, first: float, second: float, offset: float
) -> None:
    z, y = dependent(seed, n, m)
    mapped = F.gaussian_mi(affine(seed, z, first, offset), affine(seed + 9, y, second, -offset))
    assert abs(mapped - F.gaussian_mi(z, y)) <= TOLERANCE


@given(seeds, few, few)
def test_symmetric(seed: int, n: int, m: int) -> None:
    z, y = dependent(seed, n, m)
    assert abs(F.gaussian_mi(z, y) - F.gaussian_mi(y, z)) <= TOLERANCE


@given(seeds, few, few)
def test_never_negative_and_no_less_with_more_columns(seed: int, n: int, m: int) -> None:
    z, y = dependent(seed, n, m + 1)
    fewer = F.gaussian_mi(z, y[:, 1:])
    assert fewer >= -TOLERANCE
    assert F.gaussian_mi(z, y) >= fewer - TOLERANCE


def uncorrelated(seed: int, rows: int, *sizes: int) -> list[Tensor]:
    """Parts whose columns have mean 0 and are orthogonal across parts, to rounding."""
    ones = torch.ones(rows, 1, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([ones, normal(seed, rows, sum(sizes))], 1)).Q[:, 1:]
    return [
        part @ (torch.eye(part.shape[1]) + 0.2 * normal(seed + i, *(2 * [part.shape[1]]))) + i
        for i, part in enumerate(basis.split(list(sizes), dim=1))
    ]


@given(seeds, st.integers(20, 300), few, few)
def test_zero_for_uncorrelated_parts(seed: int, rows: int, n: int, m: int) -> None:
    z, y = (part.requires_grad_() for part in uncorrelated(seed, rows, n, m))
    value = F.gaussian_mi(z, y)
    # rho is at rounding, times the condition of each side (below 1e3), and MI is rho^2 / 2.
    assert abs(value) <= 1e-13
    # Zero is the least value there is: the gradient, in units of the columns, is rho.
    value.backward()
    assert (z.grad.abs() * z.detach().std(0)).max() <= 1e-12


@given(seeds, st.integers(50, 300), few, few, few, few)
def test_independent_blocks_add(seed: int, rows: int, n: int, m: int, k: int, j: int) -> None:
    # Exactly: y_1 is made of z_1 and of noise that is uncorrelated with it, y_2 likewise.
    z1, z2, e1, e2 = uncorrelated(seed, rows, n, k, m, j)
    y1 = z1 @ normal(seed + 6, n, m) + e1
    y2 = z2 @ normal(seed + 7, k, j) + e2
    together = F.gaussian_mi(torch.cat([z1, z2], 1), torch.cat([y1, y2], 1))
    assert abs(together - F.gaussian_mi(z1, y1) - F.gaussian_mi(z2, y2)) <= TOLERANCE


@given(seeds, few, few, st.lists(st.integers(0, 60), min_size=1, max_size=6), st.randoms())
def test_moments_add_in_any_order_and_grouping(
    seed: int, n: int, m: int, rows: list[int], random
) -> None:
    z, y = dependent(seed, n, m, rows=40 + sum(rows))
    pieces = [
        F.moments(*piece) for piece in zip(z.split([40, *rows]), y.split([40, *rows]), strict=True)
    ]
    while len(pieces) > 1:
        random.shuffle(pieces)
        pieces.append(pieces.pop() + pieces.pop())
    whole = F.moments(z, y)
    assert pieces[0].count == whole.count
    torch.testing.assert_close(pieces[0].mean, whole.mean, rtol=0, atol=1e-13)
    # Sums of at most 340 squares below 100, each rounded: 340 * 100 u.
    torch.testing.assert_close(pieces[0].scatter, whole.scatter, rtol=1e-13, atol=1e-11)
    assert abs(F.gaussian_mi_of(pieces[0]) - F.gaussian_mi(z, y)) <= TOLERANCE


@given(seeds, few, few, st.integers(1, 5))
def test_rows_in_any_order_and_repeated(seed: int, n: int, m: int, times: int) -> None:
    z, y = dependent(seed, n, m)
    rows = torch.cat([torch.arange(200)] * times)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    assert abs(F.gaussian_mi(z[rows], y[rows]) - F.gaussian_mi(z, y)) <= TOLERANCE


@given(seeds, few, few)
def test_gradient_is_orthogonal_to_affine_maps(seed: int, n: int, m: int) -> None:
    # The value is constant along x A + b, so the gradient's columns sum to 0 and x^T gradient is 0.
    z, y = (part.requires_grad_() for part in dependent(seed, n, m))
    for part, gradient in zip(
        (z, y), torch.autograd.grad(F.gaussian_mi(z, y), (z, y)), strict=True
    ):
        size = float(part.detach().norm() * gradient.norm())
        assert gradient.sum(0).abs().max() <= 1e-10 * (1 + size)
        assert (part.mT @ gradient).abs().max() <= 1e-10 * (1 + size)


@given(
    seeds,
    st.tuples(st.integers(0, 5), st.integers(1, 20), st.integers(1, 8)),
    st.tuples(st.integers(1, 20), st.integers(1, 6)),
    st.tuples(st.integers(1, 4), st.integers(0, 6), st.integers(1, 4)),
    st.booleans(),
)
def test_convolution_of_one_hot(
    seed: int,
    strings: tuple[int, int, int],
    kernel: tuple[int, int],
    geometry: tuple[int, int, int],
    leave_out: bool,
) -> None:
    (batch, length, classes), (filters, taps), (stride, padding, dilation) = (
        strings,
        kernel,
        geometry,
    )
    assume(length + 2 * padding > dilation * (taps - 1))
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(classes, (batch, length), generator=generator)
    weight, bias = normal(seed, filters, classes, taps), normal(seed + 1, filters)
    padding_idx = classes - 1 if leave_out else None
    one_hot = F.one_hot(ids, classes, torch.float64, layout="BVL", padding_idx=padding_idx)
    expected = torch.nn.functional.conv1d(one_hot, weight, bias, stride, padding, dilation)
    ours = F.one_hot_conv1d(ids, weight, bias, stride, padding, dilation, padding_idx)
    assert ours.shape == expected.shape
    # At most 7 terms below 10, in another order.
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)
