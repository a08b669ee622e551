from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stib_fast.data.preprocessing import Standardiser, split

FRACTIONS = st.floats(0.01, 0.45)


@given(st.integers(20, 500), FRACTIONS, FRACTIONS | st.just(0.0), st.integers(0, 2**31))
def test_split_parts_all_rows(n: int, validation: float, test: float, seed: int) -> None:
    parts = split(n, validation, test, seed)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(n))
    assert len(parts[1]) == max(1, round(n * validation))
    assert len(parts[2]) == (max(1, round(n * test)) if test else 0)
    assert all(bool((part.diff() > 0).all()) for part in parts)
    again = split(n, validation, test, seed)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))


@given(st.integers(20, 500), FRACTIONS, FRACTIONS, st.integers(0, 2**31))
def test_test_rows_are_taken_from_the_training_rows(
    n: int, validation: float, test: float, seed: int
) -> None:
    """The validation rows, which settings are chosen by, are the same without a test part."""
    train_before, validation_before, none = split(n, validation, 0.0, seed)
    train, validation_rows, test_rows = split(n, validation, test, seed)
    assert len(none) == 0
    assert torch.equal(validation_rows, validation_before)
    assert torch.equal(torch.cat([train, test_rows]).sort().values, train_before)


def test_a_seed_always_gives_the_same_validation_rows() -> None:
    assert split(100)[1].tolist() == [19, 44, 71, 90, 93]
    assert split(40, 0.1, seed=3)[1].tolist() == [20, 26, 33, 37]


def test_seeds_part_differently_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    assert not torch.equal(split(1000, seed=0)[1], split(1000, seed=1)[1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("n", "fraction"), [(10, 0.0), (10, 1.0), (10, float("nan")), (1, 0.5), (0, 0.5), (3, 0.9)]
)
def test_split_refuses_empty_parts(n: int, fraction: float) -> None:
    with pytest.raises(ValueError, match="validation_fraction"):
        split(n, fraction)


@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        (-0.1, r"test_fraction must lie in \[0, 1\)"),
        (1.0, r"test_fraction must lie in \[0, 1\)"),
        (float("nan"), r"test_fraction must lie in \[0, 1\)"),
        (0.95, "validation_fraction 0.05 and test_fraction 0.95 of 100 rows leave none to train"),
    ],
)
def test_split_refuses_a_test_part(fraction: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(100, 0.05, fraction)


def test_standardised_columns() -> None:
    targets = torch.randn(1000, 3, dtype=torch.float64) * torch.tensor([1e-3, 1, 1e3]) + 50
    standardised = Standardiser.fit(targets).transform(targets)
    # mean and std are kept in float32: relative error 2^-24 of the mean 50 against a std of 1e-3.
    assert standardised.mean(0) == pytest.approx(torch.zeros(3), abs=50 * 2**-24 / 1e-3)
    assert standardised.std(0, correction=0) == pytest.approx(torch.ones(3), abs=2**-23)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float32, 2**-24), (torch.float64, 2**-53)])
def test_inverse_undoes_transform(dtype: torch.dtype, unit: float) -> None:
    targets = torch.rand(64, 2, dtype=dtype) * torch.tensor([5, 10]) + torch.tensor([4, 70])
    standardiser = Standardiser.fit(targets)
    back = standardiser.inverse(standardiser.transform(targets))
    assert back.dtype == dtype
    # Four roundings, none of a number above 80.
    assert (back - targets).abs().max() <= 4 * unit * 80


def test_figures_travel_with_the_state() -> None:
    fitted = Standardiser.fit(torch.tensor([[1.0, 2.0], [3.0, 8.0]]))
    fresh = Standardiser(torch.zeros(2), torch.ones(2))
    fresh.load_state_dict(fitted.state_dict())
    assert fresh.mean.tolist() == [2, 5]
    assert fresh.std.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([[1.0, 7.1], [2.0, 7.1], [3.0, 7.1]]), "column 1 is 7.09.* in all 3 rows"),
        (torch.tensor([[1.0], [float("nan")]]), "column 0 holds NaN"),
        (torch.tensor([[1.0, 1.0], [2.0, float("inf")]]), "column 1 holds NaN or infinity"),
        (torch.tensor([1.0, 2.0]), r"\[N, T\]"),
        (torch.tensor([[1], [2]]), "floating point"),
        (torch.zeros(0, 2), "with rows"),
    ],
)
def test_fit_refuses(targets: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Standardiser.fit(targets)
