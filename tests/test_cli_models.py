"""`stib train --model`: the five models from the command line to tables, figures and refusals."""

import csv
import json
import random
import shutil

import numpy
import pytest
import torch
import yaml

import stib_fast
from stib_fast.cli import main
from stib_fast.cli.train import settings_of
from stib_fast.data import sample
from stib_fast.models import CVAE, CVIB, STIB, VAE, STIBWithoutAdversary
from stib_fast.training import artificial

MODELS = {
    "stib": (STIB, "STIB", "kl,x,y,mi,cycle"),
    "stib-no-adv": (STIBWithoutAdversary, "STIB w/o adv.", "kl,x,y"),
    "vae": (VAE, "VAE", "kl,x,y"),
    "cvae": (CVAE, "CVAE", "kl,x"),
    "cvib": (CVIB, "CVIB", "kl,x,all_pairs_kl"),
}
CONDITIONAL = ("cvae", "cvib")
# Columns of Z0 and Z1.
PARTS = {"stib": (2, 1), "stib-no-adv": (2, 1), "vae": (0, 3), "cvae": (3, 0), "cvib": (3, 0)}
SHORT = ["--optimisation.steps", "20", "--optimisation.batch", "32", "--model.hidden", "[16]"]
SHORT += ["--optimisation.evaluations", "1"]
TINY = ["--model.channels", "4", "--model.encoder_hidden", "8", "--model.decoder_hidden", "8"]
TINY += ["--optimisation.steps", "2", "--optimisation.batch", "8"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A short run of each model on the artificial data."""
    folder = tmp_path_factory.mktemp("artificial")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artificial, "EVALUATION_POINTS", 400)
        for name in MODELS:
            command = ["train", "artificial", "--model", name, "--run", str(folder / name)]
            assert main([*command, *SHORT]) == 0
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_a_run_records_its_model_and_loads_as_it(runs, name):
    kind, _, terms = MODELS[name]
    assert yaml.safe_load((runs / name / "config.yaml").read_text())["model"]["kind"] == name
    trained = stib_fast.load(runs / name)
    assert type(trained.model) is kind
    assert [part.shape[1] for part in trained.encode(torch.zeros(4, 2))] == [*PARTS[name]]
    header = (runs / name / "metrics.csv").read_text().splitlines()[0]
    assert header.startswith(f"step,lambda,learning_rate,{terms},mae_x,")
    assert {"table.md", "training.png", "latent.png"} <= {p.name for p in (runs / name).iterdir()}


@pytest.mark.parametrize("name", MODELS)
def test_figures_that_a_model_lacks_are_none(runs, name, capsys):
    assert main(["evaluate", str(runs / name), "--data", str(points(runs, 300))]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["mae_y"] is None) == (name in CONDITIONAL)
    assert all(figures[key] is not None for key in ("mae_x", "mi_bits", "probe_r2_sampled"))
    with (runs / name / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert (last["mae_y"] == "") == (name in CONDITIONAL)
    assert last["mi_bits"] != ""


def points(folder, rows):
    data = sample(rows)
    numpy.savez(folder / "points.npz", x=data.x, y=data.y)
    return folder / "points.npz"


def test_the_table_names_the_models_beside_the_papers(runs, capsys):
    assert main(["table", *(str(runs / name) for name in MODELS)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (_, title, _) in MODELS.items():
        (row,) = [line for line in lines if line.startswith(f"| ours: {title} ({name}) ")]
        assert (row.split("|")[3].strip() == "–") == (name in CONDITIONAL)
    assert "VAE, CVAE, CVIB: all of Z in place of Z0" in " ".join(lines)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_measured_is_all_of_z_where_it_has_no_parts(runs, name):
    model = stib_fast.load(runs / name).model
    mean, log_sigma = model.invariant_part(torch.randn(5, 2))
    assert mean.shape == log_sigma.shape == (5, 2 if name.startswith("stib") else 3)


@pytest.mark.parametrize("name", MODELS)
def test_embedding_holds_the_parts_and_the_predictions_that_there_are(runs, name, tmp_path):
    assert main(["embed", str(runs / name), str(points(tmp_path, 5))]) == 0
    header = (tmp_path / "points.embedding.csv").read_text().splitlines()[0].split(",")
    n0, n1 = PARTS[name]
    predictions = [] if name in CONDITIONAL else ["y0", "y1"]
    parts = [f"z0_{i}" for i in range(n0)] + [f"z1_{i}" for i in range(n1)]
    assert header == parts + predictions


def test_a_conditional_model_says_what_it_cannot_do(runs):
    trained = stib_fast.load(runs / "cvae")
    with pytest.raises(ValueError, match="a CVAE is told y and predicts nothing"):
        trained.predict(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="reads y beside z"):
        trained.model.reconstruct(torch.zeros(4, 2))


def test_a_resumed_run_is_of_its_model(runs, capsys):
    (runs / "cvib" / "evaluation.json").unlink()
    assert main(["resume", str(runs / "cvib")]) == 0
    assert "ours: CVIB (cvib)" in capsys.readouterr().out


def settings(arguments, capsys):
    with pytest.raises(SystemExit):
        main(["train", "artificial", *arguments, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def test_a_typed_model_counts_before_that_of_a_configuration_file(runs, capsys):
    config = ["--config", str(runs / "stib" / "config.yaml")]
    for form in (["--model", "vae"], ["--model=vae"]):
        for arguments in ([*form, *config], [*config, *form]):
            model = settings(arguments, capsys)["model"]
            assert (model["kind"], model["hidden"]) == ("vae", [16])


def test_cvib_has_a_weight_of_its_own_which_typed_options_change(capsys):
    weight = ["--optimisation.invariance_weight", "0.5"]
    for name, arguments, expected in (
        ("cvib", [], 1.0),
        ("cvib", weight, 0.5),
        ("vae", [], 2.0),
        ("stib", [], 2.0),
    ):
        found = settings([*arguments, "--model", name], capsys)["optimisation"]
        assert found["invariance_weight"] == expected
    assert settings([], capsys) == settings(["--model", "stib"], capsys)
    for experiment in ("qm9", "zinc", "table"):
        config = settings_of(["train", experiment, "--data", "no.csv", "--model", "cvib"])
        assert config["optimisation"]["invariance_weight"] == 0.03


def test_settings_of_a_command_line_are_those_of_its_run(capsys):
    config = settings_of(["train", "artificial", "--batch", "64"])
    assert config["optimisation"]["batch"] == 64


@pytest.mark.parametrize("experiment", ["artificial", "table"])
@pytest.mark.parametrize("size", ["z0_dim", "z1_dim", "feature_dim"])
def test_sizes_of_nothing_are_a_line(experiment, size, molecules, tmp_path, capsys):
    data = ["--data", str(molecules), "--target", "qed"] if experiment == "table" else []
    options = [*data, "--batch", "8", f"--model.{size}", "0", "--run", str(tmp_path / "run")]
    assert main(["train", experiment, *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"stib: {size} must be at least 1; got 0"


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_damaged_evaluation_is_named(text, runs, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs / "vae", run)
    (run / "evaluation.json").write_text(text)
    assert main(["table", str(run)]) == 2
    error = capsys.readouterr().err
    assert f"{run}/evaluation.json is damaged (" in error
    assert f"remove it, and `stib resume {run}` writes it" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "gan"], "Got value: gan"),
        (["--model"], "Got value:"),
        (["--paper", "--model", "vae"], "--paper has the authors' settings of STIB, not of vae"),
    ],
)
def test_models_that_cannot_be_had_are_a_line(options, message, capsys, tmp_path):
    assert main(["train", "artificial", "--run", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    draw = random.Random(0)
    strings = sorted({"".join(draw.choices("CCNO", k=draw.randint(2, 7))) for _ in range(90)})
    rows = [f"{s},{60 + len(s)},{0.2 + 0.01 * s.count('O')},0.{len(s)}" for s in strings]
    path = tmp_path_factory.mktemp("molecules") / "molecules.csv"
    path.write_text("\n".join(["smiles,alpha,gap,qed", *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    ("experiment", "name"),
    [("qm9", "stib-no-adv"), ("qm9", "cvae"), ("zinc", "cvib"), ("table", "vae"), ("zinc", "stib")],
)
def test_molecules_from_training_to_generation(experiment, name, molecules, tmp_path, capsys):
    command = ["train", experiment, "--model", name, "--data", str(molecules)]
    command += ["--target", "qed"] if experiment == "table" else []
    run = str(tmp_path / "run")
    assert main([*command, "--run", run, *TINY]) == 0
    shown = capsys.readouterr().out
    assert f"ours: {MODELS[name][1]} (run) " in shown
    assert "on training part (run)" in shown
    figures = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    error = figures["mae_gap_ev" if experiment == "qm9" else "mae_qed"]
    assert (error is None) == (name in CONDITIONAL)
    assert figures["token_accuracy"] is not None
    assert main(["evaluate", run, "--data", str(molecules)]) == 0
    assert main(["embed", run, str(molecules)]) == 0
    capsys.readouterr()

    generate = ["generate", run, "--reference", "CCO", "-n", "5", "--out", str(tmp_path / "new")]
    code = main(generate)
    said = capsys.readouterr()
    if name.startswith("stib"):
        assert code == 0
    else:
        assert code == 2
        assert said.err.count("\n") == 1
        assert f"is a run of {MODELS[name][1]}: there is no Z1 to hold fixed" in said.err
        assert not (tmp_path / "new").exists()
