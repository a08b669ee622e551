"""Blocks of the models: an encoder for each part of Z."""

import torch

from stib_fast.models import ScaledMLP, Towers


def test_a_part_of_z_has_its_tower_to_itself():
    towers = Towers([ScaledMLP([2, 8, 3]), ScaledMLP([2, 8, 1])])
    x = torch.randn(5, 2)
    mean = towers(x)
    assert torch.equal(mean[:, :3], towers[0](x))
    assert torch.equal(mean[:, 3:], towers[1](x))
    mean[:, 3:].square().sum().backward()
    assert all((p.grad == 0).all() for p in towers[0].parameters())
    assert all((p.grad != 0).any() for p in towers[1].parameters())
    layers = [f"{i}.mlp.{j}.{name}" for i in (0, 1) for j in (0, 2) for name in ("weight", "bias")]
    assert list(towers.state_dict()) == layers
