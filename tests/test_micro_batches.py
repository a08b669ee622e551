"""`gaussian_mi(whole=)`: micro-batches whose gradients add up to that of the whole sample."""

from __future__ import annotations

from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import stib_fast
from stib_fast import functional as F

N, M = 4, 2
# Sums of rows in another order, times the condition of the d x d step, at most 100 here.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-11}
Rows = tuple[Tensor, Tensor, Tensor]


def sample(rows: int, dtype: torch.dtype, seed: int = 0) -> Rows:
    """Inputs, targets under an offset, and weights with zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, N, generator=generator, dtype=torch.float64)
    y = x[:, :M] + torch.randn(rows, M, generator=generator, dtype=torch.float64) + 50
    weight = torch.rand(rows, generator=generator, dtype=torch.float64).sub(0.2).clamp(min=0)
    return x.to(dtype), y.to(dtype), weight


def gradients(rows: Rows, sizes: list[int] | None, weighted: bool, **options: bool) -> list[Tensor]:
    """Value, and gradients of an encoder's weights and of y: whole, or in micro-batches."""
    x, y, weight = rows
    torch.manual_seed(1)
    encoder = torch.nn.Linear(N, 2, dtype=x.dtype)
    y = y.clone().requires_grad_()
    weight = weight if weighted else None
    if sizes is None:
        value = F.gaussian_mi(encoder(x), y, weight=weight, **options)
        value.backward()
    else:
        weights = [None] * len(sizes) if weight is None else weight.split(sizes)
        batches = list(zip(x.split(sizes), y.split(sizes), weights, strict=True))
        with torch.no_grad():
            whole = reduce(add, (F.moments(encoder(a), b, weight=w) for a, b, w in batches))
        for a, b, w in batches:
            value = F.gaussian_mi(encoder(a), b, weight=w, whole=whole, **options)
            value.backward()
    return [value.detach(), encoder.weight.grad, y.grad]


@given(
    sizes=st.lists(st.integers(0, 80), min_size=1, max_size=6).filter(lambda s: sum(s) > 20),
    dtype=st.sampled_from(list(TOLERANCE)),
    weighted=st.booleans(),
    bias_correction=st.booleans(),
    backend=st.sampled_from(["auto", "eager"]),
    seed=st.integers(0, 1000),
)
def test_micro_batches_add_up(sizes, dtype, weighted, bias_correction, backend, seed) -> None:
    rows = sample(sum(sizes), dtype, seed)
    with stib_fast.backend(backend):
        ours = gradients(rows, sizes, weighted, bias_correction=bias_correction)
    expected = gradients(rows, None, weighted, bias_correction=bias_correction)
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() <= TOLERANCE[dtype] * (1 + other.norm())


def test_nan_anywhere_is_nan_everywhere() -> None:
    x, y, weight = sample(60, torch.float32)
    y[59, 0] = torch.nan
    value, gradient, of_y = gradients((x, y, weight), [30, 30], weighted=False)
    assert value.isnan()
    assert gradient.isnan().all()
    assert of_y.isnan().all()


def test_bad_arguments_are_named() -> None:
    x, y, _ = sample(60, torch.float32)
    whole = F.moments(x, y)
    with pytest.raises(ValueError, match=r"whole is of parts \(4, 2\) torch.float32, but z and y"):
        F.gaussian_mi(y, x, whole=whole)
    with pytest.raises(ValueError, match=r"whole is of parts"):
        F.gaussian_mi(x.double(), y.double(), whole=whole)
    with pytest.raises(ValueError, match="exclude each other"):
        F.gaussian_mi(x, y, whole=whole, group=object())
