"""The QM9 experiment, on molecules made up here and on the real ones."""

import random

import pytest
import torch

import stib_fast
from stib_fast.training import QM9, Optimisation, QM9Config, Run, SmilesModel, train
from stib_fast.training.qm9 import VOCABULARY_FILE

SMALL_MODEL = SmilesModel(
    z0_dim=4, z1_dim=2, feature_dim=2, hidden=(16,), channels=8, encoder_hidden=16,
    decoder_hidden=16, embedding_dim=4,
)  # fmt: skip


def small_config(path, **settings):
    return QM9Config(
        path=str(path),
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
    run.create("qm9", experiment.config)
    experiment.vocabulary.save(run.folder / VOCABULARY_FILE)
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
    assert set(data.train_rows.tolist()).isdisjoint(data.held_out_rows.tolist())
    assert len(data.held_out_rows) == round(0.05 * len(data.ids))


def test_a_run_without_its_data_says_so(molecules):
    experiment = QM9.from_file(small_config(molecules))
    bare = QM9(experiment.config, experiment.vocabulary)
    with pytest.raises(ValueError, match="made without its molecules"):
        bare.stream()


def test_unknown_tokens_name_the_row(molecules):
    experiment = QM9.from_file(small_config(molecules))
    with pytest.raises(ValueError, match="row 1"):
        experiment.inputs(["CCO", "CBr"])


@pytest.mark.data
def test_learns_on_real_molecules(data_dir, tmp_path):
    """300 steps: half the tokens of held-out molecules, which at the start is a few per cent."""
    config = QM9Config(
        path=str(data_dir / "qm9_c7h10o2.csv"),
        optimisation=Optimisation(
            steps=300, batch=128, learning_rate=4e-3, warmup=50, gradient_clip=1.0,
            lambda_start=33.0, lambda_growth=1.0, lambda_max=33.0, evaluations=1,
        ),
    )  # fmt: skip
    experiment, run = start(config, tmp_path / "run")
    model = train(experiment, run)
    with torch.no_grad():
        figures = experiment.measure(model)
    assert figures["token_accuracy"] > 0.5
    # Predicting the mean gives 0.87 eV and 1.86 bohr³ on this split.
    assert figures["mae_gap_ev"] < 0.7
    assert figures["mae_polarisability"] < 1.6
