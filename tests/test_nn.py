from __future__ import annotations

from functools import reduce
from operator import add

import pytest
import torch
from torch import Tensor

import stib_fast
from stib_fast import functional as F
from stib_fast.nn import MLP, GaussianMILoss, InvarianceCritic, OneHotConv1d


def sample(rows: int = 200) -> tuple[Tensor, Tensor]:
    z = torch.randn(rows, 3, dtype=torch.float64)
    return z, torch.cat([z[:, :1] + 0.5 * torch.randn(rows, 1).double(), z[:, 1:2] ** 2], 1)


@pytest.fixture
def critic() -> InvarianceCritic:
    return InvarianceCritic(3, 2, feature_dim=4, hidden=(16,), cycle_weight=0.3, y_scale=2).double()


def gradients(module: torch.nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("weight", [1.0, 0.25, 7.0])
def test_one_pass_equals_both_losses(weight: float, critic: InvarianceCritic, backend: str) -> None:
    z, y = sample()
    for_encoder, in_one = z.clone().requires_grad_(), z.clone().requires_grad_()
    (weight * critic.encoder_loss(for_encoder, y)).backward()
    assert all(gradient is None for gradient in gradients(critic).values())
    critic.critic_loss(z, y).backward()
    expected = gradients(critic)
    critic.zero_grad(set_to_none=True)
    critic(in_one, y, weight=weight).backward()
    # Two paths through the same float64 arithmetic: rounding times a moderate condition.
    torch.testing.assert_close(in_one.grad, for_encoder.grad, rtol=1e-9, atol=1e-14)
    assert in_one.grad.norm() > 1e-4
    for name, gradient in gradients(critic).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-13, msg=name)
        assert gradient.norm() > 0


def test_losses_are_what_they_say(critic: InvarianceCritic, backend: str) -> None:
    z, y = sample()
    target = critic.h(y / 2)
    mi = F.gaussian_mi(critic.critic(z), target)
    cycle = ((critic.h_inverse(target) * 2 - y) ** 2).sum(1).mean()
    loss, reported_mi, reported_cycle = critic.losses(z, y, weight=3.0)
    torch.testing.assert_close(loss, 0.3 * cycle - mi)
    torch.testing.assert_close(reported_mi, mi.detach())
    torch.testing.assert_close(reported_cycle, cycle.detach())
    assert not reported_mi.requires_grad
    torch.testing.assert_close(critic.critic_loss(z, y), loss)
    torch.testing.assert_close(critic(z, y), loss)
    torch.testing.assert_close(critic.encoder_loss(z, y), mi)


def test_critic_loss_leaves_the_encoder_alone(critic: InvarianceCritic, backend: str) -> None:
    z, y = sample()
    z.requires_grad_()
    critic.critic_loss(z, y).backward()
    assert z.grad is None


def test_encoder_loss_has_no_gradient_for_the_critic(
    critic: InvarianceCritic, backend: str
) -> None:
    z, y = sample()
    loss = critic.encoder_loss(z, y)  # nothing in it needs a gradient
    assert not loss.requires_grad
    critic.encoder_loss(z.requires_grad_(), y).backward()
    assert all(gradient is None for gradient in gradients(critic).values())
    assert all(parameter.requires_grad for parameter in critic.parameters())


@pytest.mark.parametrize("loss", ["encoder_loss", "critic_loss", "forward"])
def test_micro_batches_of_the_critic_s_losses_add_up(
    loss: str, critic: InvarianceCritic, backend: str
) -> None:
    z, y = sample()
    whole, parts = z.clone().requires_grad_(), z.clone().requires_grad_()
    value = getattr(critic, loss)(whole, y)
    value.backward()
    expected = gradients(critic)
    critic.zero_grad(set_to_none=True)
    sizes = [90, 1, 109]
    batches = list(zip(parts.split(sizes), y.split(sizes), strict=True))
    moments = reduce(add, (critic.moments(*batch) for batch in batches))
    assert not moments.scatter.requires_grad
    for batch in batches:
        getattr(critic, loss)(*batch, whole=moments).backward()
    # Sums in another order: float64 rounding times a moderate condition.
    if whole.grad is not None:
        torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-9, atol=1e-13)
    for name, gradient in gradients(critic).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-13, msg=name)
    _, mi, cycles = zip(*(critic.losses(*batch, whole=moments) for batch in batches), strict=True)
    _, expected_mi, expected_cycle = critic.losses(z, y)
    torch.testing.assert_close(torch.stack(mi), expected_mi.expand(3))
    torch.testing.assert_close(torch.stack(cycles).sum(), expected_cycle)


def test_adversary_sees_and_removes_dependence(backend: str) -> None:
    """A linear encoder of (y + e, e') ends where y is not; 60 steps of both players."""
    torch.manual_seed(0)
    y = torch.randn(512, 1)
    x = torch.cat([y + 0.3 * torch.randn(512, 1), torch.randn(512, 1)], 1)
    encoder = torch.nn.Linear(2, 1)
    critic = InvarianceCritic(1, 1, feature_dim=4, hidden=(16,))
    optimizer = torch.optim.Adam([*encoder.parameters(), *critic.parameters()], lr=0.03)
    before = F.gaussian_mi(encoder(x), y).item()
    for _ in range(60):
        optimizer.zero_grad()
        # Held at unit variance: mutual information does not see the scale.
        z = encoder(x)
        critic((z - z.mean()) / z.std(), y, weight=1.0).backward()
        optimizer.step()
    after = F.gaussian_mi(encoder(x), y).item()
    assert before > 0.1
    assert after < before / 4


def test_gaussian_mi_loss_passes_its_options_on(backend: str) -> None:
    z, y = sample()
    weight = torch.rand(200)
    options = {"eps": 0.01, "bias_correction": True, "precision": "fast"}
    module = GaussianMILoss(**options)
    assert torch.equal(module(z, y, weight), F.gaussian_mi(z, y, weight=weight, **options))
    assert torch.equal(GaussianMILoss()(z, y), F.gaussian_mi(z, y))
    whole = F.moments(z, y)
    part = GaussianMILoss()(z[:50], y[:50], whole=whole)
    assert torch.equal(part, F.gaussian_mi(z[:50], y[:50], whole=whole))
    assert "eps=0.01, bias_correction=True, precision='fast'" in repr(module)


def test_modules_compile(critic: InvarianceCritic) -> None:
    torch.compiler.reset()
    z, y = sample()
    compiled = torch.compile(critic, fullgraph=True, backend="aot_eager")
    compiled(z, y, weight=0.5).backward()
    ours = gradients(critic)
    critic.zero_grad(set_to_none=True)
    critic(z, y, weight=0.5).backward()
    for name, gradient in gradients(critic).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-13)
    torch.compiler.reset()


def test_mlp() -> None:
    mlp = MLP([3, 5, 2], activation="tanh", bias=False)
    x = torch.randn(7, 3)
    torch.testing.assert_close(mlp(x), torch.tanh(x @ mlp[0].weight.mT) @ mlp[2].weight.mT)
    assert mlp[0].bias is None
    with pytest.raises(ValueError, match=r"activation must be one of gelu.*got 'sin'"):
        MLP([1, 2], activation="sin")


def test_backend_in_force_at_the_call_does_the_backward() -> None:
    z, y = sample()
    z.requires_grad_()
    with stib_fast.backend("eager"):
        value = GaussianMILoss()(z, y)
    assert "GaussianMI" not in type(value.grad_fn).__name__
    torch.testing.assert_close(
        torch.autograd.grad(value, z)[0], torch.autograd.grad(F.gaussian_mi(z, y), z)[0]
    )


def test_one_column_without_its_axis_is_explained() -> None:
    critic = InvarianceCritic(2, 1, hidden=(4,))
    z, y = torch.randn(8, 2), torch.randn(8)
    for call in (critic, critic.encoder_loss, critic.critic_loss):
        with pytest.raises(ValueError, match=r"y must have shape .*y\[:, None\]"):
            call(z, y)
        with pytest.raises(ValueError, match="z has 8 rows but y has 7"):
            call(z, y[:7, None])


@pytest.mark.parametrize("bias", [True, False])
def test_one_hot_conv1d_is_a_conv1d(bias: bool, backend: str) -> None:
    options = {"stride": 2, "padding": 3, "dilation": 2, "bias": bias, "dtype": torch.float64}
    torch.manual_seed(3)
    theirs = torch.nn.Conv1d(11, 7, 5, **options)
    torch.manual_seed(3)
    ours = OneHotConv1d(11, 7, 5, **options)
    states = ours.state_dict(), theirs.state_dict()
    assert list(states[0]) == list(states[1])
    for one, other in zip(*(state.values() for state in states), strict=True):
        assert torch.equal(one, other)

    ids = torch.randint(11, (6, 20), dtype=torch.uint8)
    one_hot = F.one_hot(ids, 11, torch.float64, layout="BVL")
    # Six terms of size 1 in another order.
    torch.testing.assert_close(ours(ids), theirs(one_hot), rtol=0, atol=1e-14)
    for module, inputs in ((ours, ids), (theirs, one_hot)):
        module(inputs).square().sum().backward()
    for one, other in zip(gradients(ours).values(), gradients(theirs).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_one_hot_conv1d_takes_the_state_of_a_conv1d_and_gives_it_back(backend: str) -> None:
    ours, theirs = OneHotConv1d(4, 3, 2), torch.nn.Conv1d(4, 3, 2)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.weight, theirs.weight)
    torch.nn.Conv1d(4, 3, 2).load_state_dict(ours.state_dict())


def test_one_hot_conv1d_padding_idx(backend: str) -> None:
    module = OneHotConv1d(4, 3, 2, padding_idx=1)
    ids = torch.tensor([[0, 1, 1, 2]])
    assert torch.equal(module(ids)[0, :, 1], module.bias)
    module(ids).square().sum().backward()
    assert not module.weight.grad[:, 1].any()
    assert module.weight.grad[:, 0].any()
    assert "4, 3, kernel_size=2" in repr(module)
    assert "padding_idx=1" in repr(module)
