"""The QM9 experiment, on molecules made up here and on the real ones."""

import random
import signal
from dataclasses import replace

import pytest
import torch

import stib_fast
from stib_fast.metrics import mae, token_accuracy
from stib_fast.training import (
    QM9,
    Interrupted,
    Optimisation,
    QM9Config,
    Run,
    SmilesModel,
    experiment_of,
    train,
)

SMALL_MODEL = SmilesModel(
    z0_dim=4, z1_dim=2, feature_dim=2, hidden=(16,), channels=8, encoder_hidden=16,
    decoder_hidden=16, embedding_dim=4,
)  # fmt: skip


def small_config(path, **settings):
    return QM9Config(
        data=str(path),
        model=SMALL_MODEL,
        optimisation=Optimisation(**{"steps": 4, "batch": 16, "evaluations": 1} | settings),
    )


@pytest.fixture
def molecules(tmp_path):
    """Chains whose gap and polarisability follow from their composition."""
    draw = random.Random(0)
    strings = sorted({"".join(draw.choices("CNO", k=draw.randint(2, 9))) for _ in range(120)})
    path = tmp_path / "molecules.csv"
    rows = [
        f"{s},{60 + 5 * s.count('C')},{0.2 + 0.01 * s.count('O') + 0.001 * len(s)}" for s in strings
    ]
    path.write_text("\n".join(["smiles,alpha,gap", *rows]) + "\n")
    return path


def start(config, folder):
    experiment = QM9.from_file(config)
    run = Run(folder)
    run.create(experiment)
    return experiment, run


def test_trains_evaluates_and_loads(molecules, tmp_path):
    experiment, run = start(small_config(molecules), tmp_path / "run")
    model = train(experiment, run)
    figures = experiment.evaluate(model)
    assert {
        "token_accuracy", "string_accuracy", "mae_gap_ev", "mae_polarisability",
        "train_token_accuracy", "mi_bits", "mi_bits_sampled", "active_units", "probe_r2_sampled",
    } <= set(figures)  # fmt: skip
    trained = stib_fast.load(run.folder)
    strings = ["CCO", "NCC"]
    torch.testing.assert_close(
        trained.predict(strings),
        model.targets.inverse(model.predict(experiment.inputs(strings))).detach(),
    )
    # In their own units, not standardised: near the middle of the made-up molecules.
    assert (trained.predict(strings)[:, 1] > 50).all()


def test_targets_are_standardised_on_the_training_part_alone(molecules):
    experiment = QM9.from_file(small_config(molecules))
    data = experiment.encoded
    train_targets = data.targets[data.train_rows]
    torch.testing.assert_close(data.standardiser.mean.double(), train_targets.mean(0))
    parts = [data.train_rows, data.validation_rows, data.test_rows]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(data.ids)))
    assert len(data.validation_rows) == len(data.test_rows) == round(0.05 * len(data.ids))


def test_a_run_without_its_data_says_so(molecules):
    experiment = QM9.from_file(small_config(molecules))
    bare = QM9(experiment.config, experiment.vocabulary)
    with pytest.raises(ValueError, match="made without its molecules"):
        bare.stream(torch.device("cpu"), slice(None))


def test_unknown_tokens_name_the_row(molecules):
    experiment = QM9.from_file(small_config(molecules))
    with pytest.raises(ValueError, match="row 1"):
        experiment.inputs(["CCO", "CBr"])


def test_a_run_read_from_its_folder_continues_bit_for_bit(molecules, tmp_path):
    config = small_config(molecules, steps=12)
    experiment, whole_run = start(config, tmp_path / "whole")
    whole = train(experiment, whole_run)
    experiment, run = start(config, tmp_path / "parts")
    inner = experiment.stream(torch.device("cpu"), slice(None))

    class Stream:
        count = 0

        def __next__(self):
            self.count += 1
            if self.count == 5:
                signal.raise_signal(signal.SIGINT)
            return next(inner)

        state_dict = staticmethod(inner.state_dict)

    experiment.stream = lambda *given: Stream()
    with pytest.raises(Interrupted, match="after step 5"):
        train(experiment, run)
    resumed = train(experiment_of(run, with_data=True), run, resume=True)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_file_that_changed_since_is_refused(molecules, tmp_path):
    _, run = start(small_config(molecules), tmp_path / "run")
    molecules.write_text(molecules.read_text() + "CCCCO,75,0.2\n")
    with pytest.raises(ValueError, match="has changed since the run"):
        experiment_of(run, with_data=True)


@pytest.mark.data
def test_learns_on_real_molecules(data_dir, tmp_path):
    """700 steps at half the batch: clearly better than the likeliest token of each position."""
    default = QM9Config(data=str(data_dir / "qm9_c7h10o2.csv"))
    settings = replace(default.optimisation, steps=700, batch=128, evaluations=1)
    experiment, run = start(replace(default, optimisation=settings), tmp_path / "run")
    model = train(experiment, run)
    with torch.no_grad():
        figures = experiment.measure(model)
    data = experiment.encoded
    followed = data.ids[data.validation_rows]
    likeliest = data.ids[data.train_rows].mode(0).values.expand_as(followed)
    blind = token_accuracy(likeliest, followed, experiment.vocabulary.pad_id)
    assert figures["token_accuracy"] > blind + 0.1
    targets = data.targets[data.validation_rows]
    mean = data.standardiser.mean.double().expand_as(targets)
    assert figures["mae_gap_ev"] < 0.8 * mae(mean[:, :1], targets[:, :1])
    assert figures["mae_polarisability"] < 0.8 * mae(mean[:, 1:], targets[:, 1:])
