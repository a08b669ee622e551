"""The mutual information of a batch whose activations do not fit: two passes over micro-batches.

`gaussian_mi` is of the whole batch, not a mean over rows, so gradients of the values of parts would
be wrong. Moments add up: a first pass without a graph sums those of the whole, a second gives each
micro-batch its part of the gradient. Both passes draw the same random numbers (dropout): the state
of the generator is kept for each micro-batch. Layers that look across rows (batch norm in training)
see a micro-batch in either.

The same works for a critic: `InvarianceCritic.moments` in the first pass, ``losses(whole=)`` in the
second.

    python examples/micro_batches.py
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn

from stib_fast import functional as F


def backward_in_micro_batches(
    encoder: nn.Module, x: Tensor, y: Tensor, rows: int, weight: float = 1.0
) -> Tensor:
    """I(encoder(x); y) in nats; adds the gradients of weight · I to the encoder's parameters.

    Two forward passes instead of one; the activations of `rows` rows at a time.
    """
    generator = torch if x.device.type == "cpu" else torch.get_device_module(x.device)
    batches = list(zip(x.split(rows), y.split(rows), strict=True))
    states, moments = [], []
    with torch.no_grad():
        for part, target in batches:
            states.append(generator.get_rng_state())
            moments.append(F.moments(encoder(part), target))
    whole = reduce(add, moments)
    for state, (part, target) in zip(states, batches, strict=True):
        generator.set_rng_state(state)
        value = F.gaussian_mi(encoder(part), target, whole=whole)
        (weight * value).backward()
    return value.detach()


def backward_at_once(
    encoder: nn.Module, x: Tensor, y: Tensor, rows: int, weight: float = 1.0
) -> Tensor:
    """The same with all activations kept, encoded in the same parts so that dropout is the same."""
    value = F.gaussian_mi(torch.cat([encoder(part) for part in x.split(rows)]), y)
    (weight * value).backward()
    return value.detach()


class Activations(torch.autograd.graph.saved_tensors_hooks):
    """While in force: the most bytes at once that autograd kept for backward passes, in `peak`.

    Storages are counted once, and those of `others` (parameters and data) not at all.
    """

    def __init__(self, others: Iterable[Tensor]) -> None:
        self.peak = 0
        kept: dict[int, int] = {}
        known = {tensor.untyped_storage().data_ptr() for tensor in others}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                kept[storage.data_ptr()] = storage.nbytes()
                self.peak = max(self.peak, sum(kept.values()))
            return tensor

        def unpack(tensor: Tensor) -> Tensor:
            kept.pop(tensor.untyped_storage().data_ptr(), None)
            return tensor

        super().__init__(pack, unpack)


def encoder_with_dropout(width: int = 512) -> nn.Sequential:
    """Four columns to two, by way of two hidden layers with dropout."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, width), nn.SiLU(), nn.Dropout(0.1)]
    layers += [nn.Linear(width, width), nn.SiLU(), nn.Dropout(0.1), nn.Linear(width, 2)]
    return nn.Sequential(*layers)


def main(batch: int = 32_768, rows: int = 1024) -> dict[str, float]:
    """Gradients, memory and time of one batch, both ways."""
    x = torch.randn(batch, 4, generator=torch.Generator().manual_seed(1))
    y = x[:, :2] + torch.randn(batch, 2, generator=torch.Generator().manual_seed(2))
    gradients, megabytes = [], []
    print(f"{f'{batch:,} rows':<18} {'nats':>8} {'activations MB':>15} {'seconds':>8}")
    for name, backward in (
        ("at once", backward_at_once),
        (f"{rows:,} at a time", backward_in_micro_batches),
    ):
        encoder = encoder_with_dropout()  # seeded: the same weights, then the same dropout
        parameters = list(encoder.parameters())
        activations = Activations([*parameters, x, y])
        began = time.perf_counter()
        with activations:
            value = backward(encoder, x, y, rows)
        seconds = time.perf_counter() - began
        print(f"{name:<18} {value:8.4f} {activations.peak / 1e6:15.1f} {seconds:8.2f}")
        megabytes.append(activations.peak / 1e6)
        gradients.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
    error = ((gradients[1] - gradients[0]).norm() / gradients[0].norm()).item()
    print(f"the gradients differ by {error:.0e} of their norm")
    return {"error": error, "at_once": megabytes[0], "in_parts": megabytes[1]}


if __name__ == "__main__":
    main()
