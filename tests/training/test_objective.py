"""One backward pass gives the gradients of L1 and of L2 as the paper writes them."""

import pytest
import torch

from stib_fast.functional import gaussian_mi
from stib_fast.models import kl_per_dimension, vector_model
from stib_fast.training import stib_objective
from stib_fast.training.objective import z0_for_critic

LAMBDA, WEIGHT, TARGET_WEIGHT = 3.0, 5.0, 7.0


def given(critic_reads="draws"):
    model = vector_model(
        "stib", 2, 2, 2, 1, feature_dim=3, hidden=(16,), critic_reads=critic_reads
    ).double()
    return model, *torch.randn(2, 64, 2, dtype=torch.float64)


@pytest.mark.parametrize("critic_reads", ["draws", "means"])
def test_gradients_equal_those_of_two_separate_losses(critic_reads):
    model, x, y = given(critic_reads)
    torch.manual_seed(1)
    terms = stib_objective(model, x, y, LAMBDA, WEIGHT, target_weight=TARGET_WEIGHT)
    terms.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}

    torch.manual_seed(1)  # the same latent noise
    mean = model.encoder(x)
    z = model.sample(mean)
    z0, z1 = model.split(z)
    critic = model.critic
    read = mean[:, :2] if critic_reads == "means" else z0
    mi = gaussian_mi(critic.critic(read), critic.h(y / critic.y_scale))
    cycle = (critic.h_inverse(critic.h(y / critic.y_scale)) * critic.y_scale - y).square()
    main = {name: p for name, p in model.named_parameters() if not name.startswith("critic.")}
    adversary = {name: p for name, p in model.named_parameters() if name.startswith("critic.")}
    l1 = kl_per_dimension(mean, model.log_sigma).sum() + LAMBDA * (
        (model.decoder(z) - x).square().sum(1).mean()
        + TARGET_WEIGHT * (model.predictor(z1) - y).square().sum(1).mean()
        + WEIGHT * mi
    )
    l2 = -(mi - critic.cycle_weight * cycle.sum(1).mean())
    for loss, group in ((l1, main), (l2, adversary)):
        grads = torch.autograd.grad(loss, list(group.values()), retain_graph=True)
        for name, grad in zip(group, grads, strict=True):
            # float64 on both sides; the orders of summation differ.
            torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("critic_reads", ["draws", "means"])
def test_only_a_critic_of_draws_sees_the_noise(critic_reads):
    model, x, y = given(critic_reads)
    seen = []
    for noise in torch.randn(2, 64, 3, dtype=torch.float64):
        model.zero_grad()
        terms = stib_objective(model, x, y, LAMBDA, WEIGHT, noise=noise)
        terms.loss.backward()
        gradients = [p.grad.flatten() for p in model.critic.parameters()]
        z0 = z0_for_critic(model, x, noise)
        seen.append(torch.cat([z0.flatten(), terms.mi[None], *gradients]))
    assert torch.equal(*seen) == (critic_reads == "means")


def test_terms_are_reported_in_their_units():
    model, x, y = given()
    terms = stib_objective(model, x, y, LAMBDA, WEIGHT)
    expected = (
        terms.kl + LAMBDA * (terms.x + terms.y) + model.critic.cycle_weight * terms.cycle - terms.mi
    )
    torch.testing.assert_close(terms.loss.detach(), expected)
