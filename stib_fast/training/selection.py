"""Which model of a run is kept beside the last one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from stib_fast.training.run import Figure


class Selection:
    """The last model none of whose errors was above those of the model selected before it.

    The rule of the paper's code. There the errors are of the test points; here they are whatever
    is followed along training.

    Parameters
    ----------
    errors : sequence of str
        Names of the figures that are compared. One that is None, which a model lacks, is passed
        over. With no name, no model is selected.
    kept : dict, optional
        Where an earlier selection stood: its `kept`, from a checkpoint.

    Examples
    --------
    >>> selection = Selection(["mae_x", "mae_y"])
    >>> for step, figures in enumerate([(0.3, 0.9), (0.2, 1.0), (0.25, 0.8), (0.24, 0.9)]):
    ...     selection.offer(step, dict(zip(["mae_x", "mae_y"], figures)), nn.Identity())
    >>> selection.kept["step"], selection.kept["errors"]
    (2, {'mae_x': 0.25, 'mae_y': 0.8})
    """

    def __init__(self, errors: Sequence[str], kept: dict[str, Any] | None = None) -> None:
        self._names = tuple(errors)
        self.kept = kept

    def offer(self, step: int, figures: Mapping[str, Figure], model: nn.Module) -> None:
        """Select the model of a step, if its errors say so; a copy of its weights is kept."""
        found = ((name, figures[name]) for name in self._names)
        errors = {name: value for name, value in found if value is not None}
        best = {} if self.kept is None else self.kept["errors"]
        if errors and all(value <= best.get(name, math.inf) for name, value in errors.items()):
            weights = {name: value.cpu().clone() for name, value in model.state_dict().items()}
            self.kept = {"step": step, "errors": errors, "model": weights}
