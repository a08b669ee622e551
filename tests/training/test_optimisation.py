import math

import pytest

from stib_fast.training import Optimisation


def test_lambda_follows_the_authors_schedule():
    paper = Optimisation(
        steps=150_000, lambda_start=0.7, lambda_growth=1.03, lambda_every=300, lambda_max=math.inf
    )
    assert paper.lambda_at(0) == pytest.approx(0.7)
    assert paper.lambda_at(299) == pytest.approx(0.7)
    assert paper.lambda_at(300) == pytest.approx(0.7 * 1.03)
    # reference: about 1.8e6 after 150,000 iterations
    assert paper.lambda_at(149_999) == pytest.approx(0.7 * 1.03**499, rel=1e-9)


def test_lambda_stops_growing_at_its_maximum():
    assert Optimisation().lambda_at(10**7) == pytest.approx(100.0)


def test_learning_rate_warms_up_and_falls_as_a_cosine():
    settings = Optimisation(steps=1000, learning_rate=1.0, learning_rate_end=0.1, warmup=10)
    assert settings.learning_rate_at(0) == pytest.approx(0.1)
    assert settings.learning_rate_at(500) == pytest.approx(0.55)
    assert settings.learning_rate_at(1000) == pytest.approx(0.1)


def test_a_constant_learning_rate():
    settings = Optimisation(steps=10, learning_rate=0.5, learning_rate_end=1.0)
    assert {settings.learning_rate_at(step) for step in range(10)} == {0.5}


def test_evaluations_end_with_the_run():
    assert Optimisation(steps=7, evaluations=3).evaluation_steps() == [2, 4, 7]
    assert Optimisation(steps=2, evaluations=10).evaluation_steps() == [1, 2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch", -1),
        ("critic_steps", 0),
        ("learning_rate", 0.0),
        ("lambda_growth", -1.0),
        ("target_weight", -0.1),
        ("target_weight", math.nan),
        ("seed", -1),
    ],
)
def test_impossible_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must"):
        Optimisation(**{name: value})


def test_lambda_cannot_start_above_its_maximum():
    with pytest.raises(ValueError, match="lambda_start must not be above lambda_max; got 64"):
        Optimisation(lambda_start=64.0, lambda_max=16.0)
