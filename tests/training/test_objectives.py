"""The objectives of the models beside STIB against their equations, written out in float64."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from stib_fast.models import CVAE, CVIB, VAE, STIBWithoutAdversary, vector_model
from stib_fast.training.objective import OBJECTIVES

KINDS = {"stib-no-adv": STIBWithoutAdversary, "vae": VAE, "cvae": CVAE, "cvib": CVIB}
LAMBDA, WEIGHT, TARGET_WEIGHT, ROWS = 3.0, 5.0, 7.0, 33


def given(kind):
    """A model, a batch and its latent noise."""
    model = vector_model(kind, 2, 2, 2, 1, hidden=(16,), x_scale=2.0, y_scale=3.0).double()
    for parameter in model.parameters():  # log sigma starts at 0, where errors hide
        parameter.data += 0.1 * torch.randn_like(parameter)
    x, y = torch.randn(2, ROWS, 2, dtype=torch.float64)
    return model, x, y, model.noise(ROWS)


def mlp(network, x):
    """The layers of a `ScaledMLP` one by one."""
    x = x / network.input_scale
    for layer in network.mlp:
        x = x @ layer.weight.T + layer.bias if hasattr(layer, "weight") else x * x.sigmoid()
    return x * network.output_scale


def equation(model, x, y, noise):
    """Loss and terms as the papers write them, row by row."""
    conditional = isinstance(model, CVAE)
    encoded = mlp(model.encoder, x)
    mean = encoded[:, :3]
    log_sigma = encoded[:, 3:] if conditional else model.log_sigma.expand(ROWS, 3)
    sigma = log_sigma.exp()
    z = mean + sigma * noise
    kl = kl_divergence(Normal(mean, sigma), Normal(0.0, 1.0)).sum() / ROWS
    x_hat = mlp(model.decoder, torch.cat([z, y / 3.0], dim=1) if conditional else z)
    x_loss = sum(((x_hat[i] - x[i]) ** 2).sum() for i in range(ROWS)) / ROWS
    if not conditional:
        read = z if isinstance(model, VAE) else z[:, 2:]
        y_hat = mlp(model.predictor, read)
        y_loss = sum(((y_hat[i] - y[i]) ** 2).sum() for i in range(ROWS)) / ROWS
        return kl + LAMBDA * (x_loss + TARGET_WEIGHT * y_loss), kl, x_loss, y_loss
    if not isinstance(model, CVIB):
        return kl + LAMBDA * x_loss, kl, x_loss
    pairs = sum(
        kl_divergence(Normal(mean[i], sigma[i]), Normal(mean[j], sigma[j])).sum()
        for i in range(ROWS)
        for j in range(ROWS)
    )
    pairs = pairs / ROWS**2
    # A tenth of this, with lambda = 10 and weight 1: 0.1 KL + 2 x + all pairs.
    return kl + LAMBDA * ((1 + WEIGHT) * x_loss + WEIGHT * pairs), kl, x_loss, pairs


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_are_those_of_the_equation(kind):
    model, x, y, noise = given(kind)
    assert type(model) is KINDS[kind]
    objective = OBJECTIVES[type(model)]
    found = objective.function(
        model, x, y, LAMBDA, WEIGHT, target_weight=TARGET_WEIGHT, noise=noise
    )
    expected = equation(model, x, y, noise)
    assert found._fields == objective.terms._fields
    # float64 on both sides; the orders of summation differ.
    torch.testing.assert_close(tuple(found), expected, rtol=1e-11, atol=1e-11)
    assert not any(term.requires_grad for term in found[1:])
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(found.loss, parameters)
    exact = torch.autograd.grad(expected[0], parameters)
    torch.testing.assert_close(gradients, exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 10, 32])
def test_parts_add_up(kind, size):
    model, x, y, noise = given(kind)
    objective = OBJECTIVES[type(model)]
    expected = objective.function(model, x, y, LAMBDA, WEIGHT, noise=noise)
    expected.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    parts = list(zip(x.split(size), y.split(size), noise.split(size), strict=True))
    whole = objective.of_whole(model, *parts[0])
    for part in parts[1:]:
        whole = whole + objective.of_whole(model, *part)
    total = torch.zeros(len(expected), dtype=torch.float64)
    for x_part, y_part, noise_part in parts:
        terms = objective.function(
            model, x_part, y_part, LAMBDA, WEIGHT, noise=noise_part, whole=whole
        )
        terms.loss.backward()
        total += torch.stack(terms).detach()
    torch.testing.assert_close(total, torch.stack(expected).detach(), rtol=1e-11, atol=1e-11)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_of_invariance_is_cvibs_alone(kind):
    model, x, y, noise = given(kind)
    function = OBJECTIVES[type(model)].function
    losses = [function(model, x, y, LAMBDA, weight, noise=noise).loss for weight in (0.0, 5.0)]
    assert torch.equal(*losses) == (kind != "cvib")


def test_a_cvib_without_its_bound_is_a_cvae():
    model, x, y, noise = given("cvib")
    cvib, cvae = (
        OBJECTIVES[model_type].function(model, x, y, LAMBDA, 0.0, noise=noise).loss
        for model_type in (CVIB, CVAE)
    )
    torch.testing.assert_close(cvib, cvae)
