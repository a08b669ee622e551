"""The model that is kept beside the last: which one, and that an interruption changes nothing."""

import math
import signal
from dataclasses import replace

import pytest
import torch

from stib_fast.training import (
    Artificial,
    ArtificialConfig,
    Interrupted,
    Optimisation,
    Run,
    VectorModel,
    selected_model,
    train,
)
from stib_fast.training.checkpoint import load_checkpoint
from stib_fast.training.selection import Selection

ERRORS = ("mae_x", "mae_y")


def selected(figures, names=ERRORS):
    """The position that is selected in a sequence of errors."""
    selection = Selection(names)
    for step, row in enumerate(figures):
        selection.offer(step, dict(zip(ERRORS, row, strict=True)), torch.nn.Identity())
    return None if selection.kept is None else selection.kept["step"]


@pytest.mark.parametrize(
    ("figures", "step"),
    [
        ([(0.3, 0.9)], 0),
        ([(0.3, 0.9), (0.2, 0.8), (0.1, 0.7)], 2),
        ([(0.3, 0.9), (0.2, 1.0), (0.4, 0.8)], 0),  # either one alone does not count
        ([(0.3, 0.9), (0.3, 0.9), (0.3, 1.0)], 1),  # as good counts, as in the paper's code
        # Against the one selected, not against the lowest of each: 0.25 is above 0.2.
        ([(0.3, 0.9), (0.2, 1.0), (0.25, 0.8)], 2),
        ([(0.1, 0.5), (0.2, 0.4), (0.09, 0.45), (0.08, 0.46)], 2),
        ([(math.nan, 0.9), (0.3, 0.9), (math.nan, 0.1), (0.1, math.nan)], 1),
        ([(math.nan, math.nan)], None),
        ([(0.3, None), (0.2, None), (0.4, None)], 1),  # of a model that does not predict Y
        ([], None),
    ],
)
def test_the_last_that_is_worse_in_nothing(figures, step):
    assert selected(figures) == step


def test_nothing_is_selected_by_no_figure():
    assert selected([(0.3, 0.9)], names=()) is None


def test_the_weights_are_those_of_the_step():
    model = torch.nn.Linear(1, 1)
    selection = Selection(["mae_x"])
    selection.offer(1, {"mae_x": 0.5}, model)
    weight = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    selection.offer(2, {"mae_x": 0.6}, model)
    assert torch.equal(selection.kept["model"]["weight"], weight)


CONFIG = ArtificialConfig(
    VectorModel(hidden=(8,), feature_dim=2),
    Optimisation(steps=20, batch=16, evaluations=10),  # at steps 2, 4, … 20
    select_by_validation=True,
)
# Step 10 is selected; the later ones would be, too, if what was selected were forgotten.
COURSE = [(9, 9), (8, 8), (7, 9), (6, 6), (3, 3), (2, 4), (5, 5), (4, 4), (6, 6), (5, 2)]


class Followed(Artificial):
    """The artificial experiment with a made-up course of its errors, stopped at a measurement."""

    def __init__(self, config, measured=0, stop_at=None):
        super().__init__(config)
        self.measured, self.stop_at = measured, stop_at

    def measure(self, model):
        errors = dict(zip(ERRORS, COURSE[self.measured], strict=True))
        self.measured += 1
        if self.measured == self.stop_at:
            signal.raise_signal(signal.SIGINT)
        return dict.fromkeys(self.figures, 0.5) | errors


def new_run(folder, config=CONFIG):
    run = Run(folder)
    run.create(Artificial(config))
    return run


@pytest.mark.parametrize("stop_at", [5, 8], ids=["at the selected step", "later"])
def test_an_interrupted_run_selects_the_model_of_an_uninterrupted_one(tmp_path, stop_at):
    whole = new_run(tmp_path / "whole")
    train(Followed(CONFIG), whole)
    run = new_run(tmp_path / "parts")
    with pytest.raises(Interrupted, match=f"after step {2 * stop_at} of 20"):
        train(Followed(CONFIG, stop_at=stop_at), run)
    train(Followed(CONFIG, measured=stop_at), run, resume=True)
    (step, model), (other_step, other) = (
        selected_model(r, Artificial(CONFIG)) for r in (whole, run)
    )
    assert step == other_step == 10
    for (name, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    # Not by chance those of the last step.
    last = load_checkpoint(run.checkpoint)["model"]
    assert not all(torch.equal(a, last[name]) for name, a in model.state_dict().items())


def test_without_selection_no_model_is_kept(tmp_path):
    config = replace(CONFIG, select_by_validation=False)
    run = new_run(tmp_path / "run", config)
    train(Followed(config), run)
    assert "selected" not in load_checkpoint(run.checkpoint)
    assert selected_model(run, Artificial(config)) is None
