from __future__ import annotations

import pickle

import pytest
import torch

from stib_fast.data.spiral import SpiralStream, sample


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_x_is_uniform_on_the_square() -> None:
    x = sample(200_000, generator=generator()).x
    assert x.min() >= -4
    assert x.max() <= 4
    # Standard error of the mean: (8 / sqrt 12) / sqrt 200,000 = 0.005; five of them.
    torch.testing.assert_close(x.mean(0), torch.zeros(2), atol=0.026, rtol=0)
    # Var of (x - 0)² for U[-4, 4]: 256/5 - (16/3)² = 22.8, standard error 0.0107; five of them.
    torch.testing.assert_close(x.var(0), torch.full((2,), 16 / 3), atol=0.053, rtol=0)
    # Nine equal bins of each axis: 22,222 expected, standard deviation 141; five of them.
    for column in x.T:
        assert (torch.histc(column, 9, -4, 4) - 200_000 / 9).abs().max() < 705


def test_noises_have_the_papers_sizes_and_are_independent() -> None:
    x, y, t = (part.double() for part in sample(200_000, generator=generator(1)))
    angle_noise = t - (2 * x[:, 0] + x[:, 1])
    radius = 5e-2 * (t + 10 * t)
    target_noise = y - torch.stack([radius * t.cos(), radius * t.sin()], dim=1)
    noise = torch.cat([angle_noise[:, None] / 0.1, target_noise / 0.2], dim=1)
    # Standard errors: mean 0.0022, (co)variance at most sqrt(2/n) = 0.0032; five of them.
    torch.testing.assert_close(noise.mean(0), torch.zeros(3).double(), atol=0.012, rtol=0)
    torch.testing.assert_close(noise.T.cov(), torch.eye(3).double(), atol=0.016, rtol=0)


def test_same_samples_in_every_dtype() -> None:
    single = sample(100, generator=generator(2))
    double = sample(100, generator=generator(2), dtype=torch.float64)
    for a, b in zip(single, double, strict=True):
        assert b.dtype == torch.float64
        assert torch.equal(a.double(), b)


def test_default_generator_is_used_without_one() -> None:
    torch.manual_seed(7)
    first = sample(5)
    torch.manual_seed(7)
    assert torch.equal(first.y, sample(5).y)
    assert not torch.equal(first.y, sample(5).y)


def test_stream_is_seeded_and_fresh() -> None:
    stream = SpiralStream(60, seed=3)
    first, second = next(stream), next(stream)
    assert first.x.shape == (60, 2)
    assert not torch.equal(first.x, second.x)
    assert torch.equal(first.y, next(SpiralStream(60, seed=3)).y)
    assert not torch.equal(first.y, next(SpiralStream(60, seed=4)).y)


def test_stream_resumes_bit_for_bit_from_a_pickled_state() -> None:
    stream = SpiralStream(7, seed=0, dtype=torch.float64)
    for _ in range(3):
        next(stream)
    state = pickle.dumps(stream.state_dict())
    expected = [next(stream) for _ in range(3)]
    resumed = SpiralStream(7, seed=99, dtype=torch.float64)
    resumed.load_state_dict(pickle.loads(state))
    for batch, other in zip(expected, resumed, strict=False):
        for a, b in zip(batch, other, strict=True):
            assert torch.equal(a, b)


def test_state_survives_safe_loading(tmp_path) -> None:
    stream = SpiralStream(4, seed=5)
    next(stream)
    torch.save(stream.state_dict(), tmp_path / "state.pt")
    expected = next(stream)
    stream.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(next(stream).y, expected.y)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        sample(0)
    with pytest.raises(ValueError, match=r"dtype must be .* torch.int64"):
        sample(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        SpiralStream(0, seed=0)
    with pytest.raises(ValueError, match="state has no entry 'generator'"):
        SpiralStream(1, seed=0).load_state_dict({})
