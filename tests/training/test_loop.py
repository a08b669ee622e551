"""Runs: what they write, that they resume bit for bit, and how they fail."""

import csv
import signal
from dataclasses import replace

import pytest
import torch
import yaml

import stib_fast
from stib_fast.data import sample
from stib_fast.training import (
    Artificial,
    ArtificialConfig,
    Interrupted,
    Optimisation,
    Run,
    VectorModel,
    evaluation_points,
    experiment_of,
    train,
)
from stib_fast.training import loop as loop_module
from stib_fast.training.artificial import EVALUATION_SEED, VALIDATION_SEED
from stib_fast.training.checkpoint import load_checkpoint, save_checkpoint

SMALL = ArtificialConfig(
    VectorModel(hidden=(16,), feature_dim=2),
    Optimisation(steps=40, batch=64, evaluations=2),
)


class Quick(Artificial):
    """The artificial experiment without its slow measurements."""

    def measure(self, model):
        return dict.fromkeys(self.figures, 0.5)


def new_run(folder, config=SMALL):
    run = Run(folder)
    run.create(Artificial(config))
    return run


def test_a_run_writes_its_configuration_metrics_and_checkpoint(tmp_path):
    run = new_run(tmp_path / "run")
    train(Quick(SMALL), run)
    with run.metrics.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 41))
    assert [row["step"] for row in rows if row["mae_x"]] == ["20", "40"]
    assert float(rows[0]["lambda"]) == 1.0
    assert load_checkpoint(run.checkpoint)["step"] == 40
    assert any(run.tensorboard.iterdir())
    trained = stib_fast.load(run.folder)
    assert trained.experiment.config == SMALL
    assert trained.encode([[0.0, 1.0], [2.0, -1.0]]).z1.shape == (2, 1)


def stopping(experiment, number, after):
    """The experiment, sending a signal to its own process after some batches."""

    class Stream:
        def __init__(self, inner):
            self.inner, self.count = inner, 0

        def __next__(self):
            self.count += 1
            if self.count == after:
                signal.raise_signal(number)
            return next(self.inner)

        def state_dict(self):
            return self.inner.state_dict()

    inner = experiment.stream
    experiment.stream = lambda *given: Stream(inner(*given))
    return experiment


@pytest.mark.parametrize("critic_steps", [1, 2])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, critic_steps):
    config = replace(SMALL, optimisation=replace(SMALL.optimisation, critic_steps=critic_steps))
    whole = train(Quick(config), new_run(tmp_path / "whole", config))
    run = new_run(tmp_path / "parts", config)
    with pytest.raises(Interrupted, match="after step 17 of 40"):
        train(stopping(Quick(config), signal.SIGINT, after=17 * critic_steps), run)
    torch.randn(100)  # another session's random state
    resumed = train(Quick(config), run, resume=True)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    texts = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "parts")]
    assert texts[0] == texts[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is usable here")
def test_a_run_on_a_gpu_does_not_resume_without_one(tmp_path):
    run = new_run(tmp_path / "run")
    train(Quick(SMALL), run)
    save_checkpoint(run.checkpoint, load_checkpoint(run.checkpoint) | {"device": "cuda"})
    with pytest.raises(ValueError, match="finds no GPU here"):
        train(Quick(SMALL), run, resume=True)


def test_a_killed_run_resumes_from_its_checkpoint_and_drops_later_metrics(tmp_path, monkeypatch):
    run = new_run(tmp_path / "run")
    whole = train(Quick(SMALL), new_run(tmp_path / "whole"))

    class Dies(Quick):
        def measure(self, model):
            if (run.checkpoint).exists():
                raise OSError("disk full")
            return super().measure(model)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(OSError, match="disk full"):
            train(Dies(SMALL), run)
    assert load_checkpoint(run.checkpoint)["step"] == 19
    with run.metrics.open("a") as file:
        file.write("39,1,1,1,1,1,1,1,,,,\n")  # written after the checkpoint, before the kill
    resumed = train(Quick(SMALL), run, resume=True)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    with run.metrics.open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 41))


def test_sigterm_stops_like_ctrl_c(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="after step 5 of 40"):
        train(stopping(Quick(SMALL), signal.SIGTERM, after=5), new_run(tmp_path / "run"))
    assert signal.getsignal(signal.SIGTERM) == before


def test_divergence_is_an_error_that_names_the_remedy(tmp_path):
    settings = replace(SMALL.optimisation, learning_rate=1e30, steps=100)
    config = replace(SMALL, optimisation=settings)
    with pytest.raises(ValueError, match=r"the loss is .*lower optimisation\.learning_rate"):
        train(Quick(config), new_run(tmp_path / "run", config))


def test_a_checkpoint_is_never_of_a_diverged_model(tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "CHECKPOINT_SECONDS", 0.0)
    settings = replace(SMALL.optimisation, learning_rate=1e30, steps=1000)
    config = replace(SMALL, optimisation=settings)
    run = new_run(tmp_path / "run", config)
    with pytest.raises(ValueError, match="the last checkpoint is kept"):
        train(Quick(config), run)
    if run.checkpoint.exists():
        model = load_checkpoint(run.checkpoint)["model"]
        assert all(value.isfinite().all() for value in model.values())


def test_a_folder_in_use_is_refused(tmp_path):
    run = new_run(tmp_path / "run")
    with pytest.raises(ValueError, match="is not empty: continue that run with `stib resume"):
        run.create(Artificial(SMALL))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(ValueError, match="is not empty: name another folder with --run"):
        Run(tmp_path / "other").create(Artificial(SMALL))


def test_a_folder_that_was_left_half_made_is_made_anew(tmp_path):
    class Killed(Artificial):
        def save_into(self, folder):
            raise KeyboardInterrupt

    run = Run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run.create(Killed(SMALL), "job")
    assert not run.exists()
    assert not run.is_of("job")
    run.create(Artificial(SMALL), "job")
    assert run.is_of("job")
    assert not run.is_of("another")
    assert not run.is_of(None)


def test_a_damaged_checkpoint_is_named(tmp_path):
    run = new_run(tmp_path / "run")
    train(Quick(SMALL), run)
    content = run.checkpoint.read_bytes()
    run.checkpoint.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"checkpoint\.pt: not a readable checkpoint"):
        stib_fast.load(run.folder)


def test_a_run_of_another_version_is_told_as_such(tmp_path):
    run = new_run(tmp_path / "run")
    train(Quick(SMALL), run)
    config = run.folder / "config.yaml"
    content = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(content | {"model": content["model"] | {"hidden": [8]}}))
    for use in (
        lambda: stib_fast.load(run.folder),
        lambda: train(experiment_of(run, with_data=True), run, resume=True),
    ):
        with pytest.raises(
            ValueError, match=r"checkpoint\.pt does not fit .* see run\.json"
        ) as told:
            use()
        assert "\n" not in str(told.value)
    del content["model"]["cycle_weight"]
    config.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"model\.cycle_weight is missing: .* see run\.json$"):
        stib_fast.load(run.folder)


def test_saving_never_leaves_half_a_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, {"step": lambda: 2})
    assert load_checkpoint(path)["step"] == 1


def test_a_short_training_learns(tmp_path):
    """A seventh of the demo at half its batch: far from the limits (0, 0.43) and from nothing."""
    settings = Optimisation(steps=600, batch=512, lambda_growth=1.03, evaluations=1)
    config = ArtificialConfig(optimisation=settings)
    experiment = Artificial(config)
    model = train(experiment, new_run(tmp_path / "run", config))
    with torch.no_grad():
        figures = experiment.measure(model)
    # Predicting the mean gives MAE(X) = 4 and MAE(Y) about 3.7; all of X holds 3.2 bits about Y.
    assert figures["mae_x"] < 0.5
    assert figures["mae_y"] < 1.5
    assert figures["mi_bits"] < 0.5


def test_training_is_followed_by_other_points_than_those_of_the_evaluation(monkeypatch):
    draws = []

    def draw(n, *, generator):
        draws.append(generator.initial_seed())
        return sample(400, generator=generator)

    monkeypatch.setattr("stib_fast.training.artificial.sample", draw)
    experiment = Artificial(SMALL)
    model = experiment.model().eval()
    with torch.no_grad():
        experiment.measure(model)
        experiment.measure(model)
    experiment.evaluate(model)
    assert draws == [VALIDATION_SEED, VALIDATION_SEED, EVALUATION_SEED]
    points = [sample(400, generator=torch.Generator().manual_seed(seed)).x for seed in draws[1:]]
    assert torch.cat(points).unique(dim=0).shape == (800, 2)


def test_the_figures_along_training_are_those_of_the_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr("stib_fast.training.artificial.validation_points", evaluation_points)
    experiment = Artificial(SMALL)
    model = train(Quick(SMALL), new_run(tmp_path / "run"))
    with torch.no_grad():
        along = experiment.measure(model)
    final = experiment.evaluate(model)
    # The means meet the estimator as float32 here and as float64 there.
    assert along == pytest.approx({name: final[name] for name in along}, abs=1e-4)
