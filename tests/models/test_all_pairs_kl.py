"""The mean divergence of all pairs against a loop over the pairs in float64."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from stib_fast.models import PairSums, all_pairs_kl


def brute_force(mean, log_sigma):
    mean, sigma = mean.double(), log_sigma.double().exp().expand_as(mean)
    total = mean.new_zeros(())
    for i in range(len(mean)):
        for j in range(len(mean)):
            pair = kl_divergence(Normal(mean[i], sigma[i]), Normal(mean[j], sigma[j]))
            total = total + pair.sum()
    return total / len(mean) ** 2


def posteriors(rows, columns, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    mean, log_sigma = torch.randn(2, rows, columns, generator=generator, dtype=torch.float64)
    return mean, spread * log_sigma


def with_gradients(function, *inputs):
    inputs = [part.detach().clone().requires_grad_() for part in inputs]
    value = function(*inputs)
    return value.detach(), torch.autograd.grad(value, inputs)


def assert_close(found, expected, tolerance):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@given(
    rows=st.integers(1, 23),
    columns=st.integers(1, 7),
    seed=st.integers(0, 2**16),
    shared=st.booleans(),
    offset=st.sampled_from([0.0, 1e4, -1e4]),
)
@example(rows=1, columns=1, seed=0, shared=False, offset=1e4)
@example(rows=17, columns=3, seed=0, shared=False, offset=1e4)
def test_value_and_gradients_are_those_of_the_loop(rows, columns, seed, shared, offset):
    mean, log_sigma = posteriors(rows, columns, seed)
    mean = mean + offset
    log_sigma = log_sigma[0] if shared else log_sigma
    found = with_gradients(all_pairs_kl, mean, log_sigma)
    expected = with_gradients(brute_force, mean, log_sigma)
    # Normal draws beyond 4.5 are not met: 1/sigma² stays below 1e4 and a pair below 1e6 nats, and
    # differences of means about 1e4 are known to 1e-12 in float64, here as in the loop.
    assert_close(found, expected, 1e-8)


def test_float32_at_an_offset_loses_no_digit_of_its_inputs():
    mean, log_sigma = (part.float() for part in posteriors(31, 3))
    mean = mean + 1e4  # rounded to 1e-3 here; what comes after must not add to that
    value, gradients = with_gradients(all_pairs_kl, mean, log_sigma)
    expected, exact = with_gradients(brute_force, mean, log_sigma)
    assert value.dtype == torch.float32
    # One rounding at the end, u = 6e-8.
    torch.testing.assert_close(value.double(), expected, rtol=1e-7, atol=0.0)
    for found, gradient in zip(gradients, exact, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("sizes", [[40], [13, 27], [1, 38, 1], [1] * 40])
def test_micro_batches_add_up_to_the_whole(sizes):
    mean, log_sigma = posteriors(40, 3)
    mean = mean + 1e4
    value, expected = with_gradients(all_pairs_kl, mean, log_sigma)
    parts = list(zip(mean.split(sizes), log_sigma.split(sizes), strict=True))
    whole = PairSums.of(*parts[0])
    for part in parts[1:]:
        whole = whole + PairSums.of(*part)
    found = []
    for part in parts:
        of_part, gradients = with_gradients(lambda *p: all_pairs_kl(*p, whole=whole), *part)
        assert_close(of_part, value, 1e-10)
        found.append(gradients)
    assert_close([torch.cat(g) for g in zip(*found, strict=True)], list(expected), 1e-10)


def test_gradients_are_differentiable():
    inputs = [part.requires_grad_() for part in posteriors(5, 2, spread=0.3)]
    assert torch.autograd.gradcheck(all_pairs_kl, inputs)
    assert torch.autograd.gradgradcheck(all_pairs_kl, inputs)


def test_a_shared_deviation_leaves_the_spread_of_the_means():
    mean, log_sigma = posteriors(50, 4)
    found = all_pairs_kl(mean, log_sigma[0])
    expected = (mean.var(0, correction=0) / (2 * log_sigma[0]).exp()).sum()
    torch.testing.assert_close(found, expected)


def test_it_bounds_the_information_of_the_mixture():
    """E KL(q_i ‖ mean of all q_j), the mutual information of z and i, by numerical integration."""
    mean, log_sigma = posteriors(8, 1, spread=0.3)
    z = torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None]
    log_q = Normal(mean[:, 0], log_sigma[:, 0].exp()).log_prob(z)
    log_mixture = log_q.logsumexp(1, keepdim=True) - math.log(8)
    information = (log_q.exp() * (log_q - log_mixture)).sum() * (z[1] - z[0]) / 8
    assert 0.1 < information < all_pairs_kl(mean, log_sigma)


def test_memory_is_that_of_the_rows():
    """With all pairs of these rows a single intermediate would take 160 GB."""
    mean, log_sigma = (part.float() for part in posteriors(100_000, 2))
    assert all_pairs_kl(mean.requires_grad_(), 0.1 * log_sigma).isfinite()


@pytest.mark.parametrize(
    ("mean", "log_sigma"), [((3,), (3,)), ((0, 2), (0, 2)), ((3, 2), (2, 2)), ((3, 2), (3, 1))]
)
def test_shapes_that_do_not_agree_are_named(mean, log_sigma):
    with pytest.raises(ValueError, match=r"mean must be \[B, d\]"):
        all_pairs_kl(torch.zeros(mean), torch.zeros(log_sigma))
