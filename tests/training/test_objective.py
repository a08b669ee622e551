"""One backward pass gives the gradients of L1 and of L2 as the paper writes them."""

import torch

from stib_fast.functional import gaussian_mi
from stib_fast.models import kl_per_dimension, vector_stib
from stib_fast.training import stib_objective

LAMBDA, WEIGHT, TARGET_WEIGHT = 3.0, 5.0, 7.0


def given():
    model = vector_stib(2, 2, 2, 1, feature_dim=3, hidden=(16,)).double()
    return model, *torch.randn(2, 64, 2, dtype=torch.float64)


def test_gradients_equal_those_of_two_separate_losses():
    model, x, y = given()
    torch.manual_seed(1)
    terms = stib_objective(model, x, y, LAMBDA, WEIGHT, target_weight=TARGET_WEIGHT)
    terms.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}

    torch.manual_seed(1)  # the same latent noise
    mean = model.encoder(x)
    z = model.sample(mean)
    z0, z1 = model.split(z)
    critic = model.critic
    mi = gaussian_mi(critic.critic(z0), critic.h(y / critic.y_scale))
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


def test_terms_are_reported_in_their_units():
    model, x, y = given()
    terms = stib_objective(model, x, y, LAMBDA, WEIGHT)
    expected = (
        terms.kl + LAMBDA * (terms.x + terms.y) + model.critic.cycle_weight * terms.cycle - terms.mi
    )
    torch.testing.assert_close(terms.loss.detach(), expected)
