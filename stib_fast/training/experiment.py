"""What the training loop asks of an experiment and of its stream of batches."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from stib_fast.models import Autoencoder
from stib_fast.training.execution import Execution
from stib_fast.training.optimisation import Optimisation
from stib_fast.training.run import Figure


class Stream(Protocol):
    """An endless source of batches (x, y, …) that can be resumed."""

    def __next__(self) -> tuple[Tensor, ...]:
        """Return the next batch."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return where the stream stands."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from there."""
        ...


class Experiment(Protocol):
    """A model, its data, and how it is measured."""

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what `measure` returns."""
        ...

    @property
    def selected_by(self) -> tuple[str, ...]:
        """Names of the figures by which a model is selected beside the last (`Selection`)."""
        ...

    @property
    def optimisation(self) -> Optimisation:
        """Settings of the optimisation."""
        ...

    @property
    def execution(self) -> Execution:
        """Where and how the steps run."""
        ...

    def model(self) -> Autoencoder:
        """Build the untrained model."""
        ...

    def stream(self, device: torch.device, share: slice) -> Stream:
        """Start the stream of training batches, of each a process's share, on a device."""
        ...

    def measure(self, model: Autoencoder) -> dict[str, Figure]:
        """Measure the figures that are followed along training, wherever the model is."""
        ...
