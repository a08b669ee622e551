"""STIB: its parts read what they should, and nothing else."""

import pytest
import torch

from stib_fast.models import kl_per_dimension, vector_stib


@pytest.fixture
def model():
    return vector_stib(x_dim=2, y_dim=3, z0_dim=2, z1_dim=2, hidden=(16,), feature_dim=4)


def test_the_predictor_reads_z1_alone_and_the_decoder_all_of_z(model):
    z = torch.randn(5, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(model.predictor(model.split(z).z1).sum(), z)
    assert (grad[:, :2] == 0).all()
    assert (grad[:, 2:] != 0).all()
    (grad,) = torch.autograd.grad(model.decoder(z).sum(), z)
    assert (grad != 0).all()


def test_the_latent_noise_has_the_learned_spread(model):
    with torch.no_grad():
        model.log_sigma.copy_(torch.tensor([0.0, -1.0, 1.0, -3.0]))
        draws = model.sample(torch.zeros(200_000, 4))
    # The standard error of a standard deviation is sigma / sqrt(2 n) = 0.16 %: five of them.
    torch.testing.assert_close(draws.std(0), model.log_sigma.detach().exp(), rtol=0.008, atol=0)


def test_kl_agrees_with_torch_distributions():
    mean = torch.randn(50, 3, dtype=torch.float64)
    log_sigma = torch.tensor([-2.0, 0.0, 0.5], dtype=torch.float64)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, log_sigma.exp()), torch.distributions.Normal(0.0, 1.0)
    ).mean(0)
    torch.testing.assert_close(kl_per_dimension(mean, log_sigma), expected)


def test_the_authors_settings_give_the_authors_sizes():
    model = vector_stib(2, 2, 2, 1, feature_dim=2, hidden=(256, 256), encoder_bias=False)
    # 2·256 + 256·256 + 256·3 weights and no biases.
    assert sum(p.numel() for p in model.encoder.parameters()) == 66816


def test_glorot_sets_the_biases_to_zero():
    model = vector_stib(2, 2, 2, 1, glorot=True)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert biases
    assert all((bias == 0).all() for bias in biases)


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match=r"activation must be one of .*softplus.*got 'sofplus'"):
        vector_stib(2, 2, 2, 1, activation="sofplus")
