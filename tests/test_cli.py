"""The command `stib` as a user meets it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy
import pytest
import yaml

from stib_fast.cli import main
from stib_fast.data import sample
from stib_fast.training import Artificial, Run, experiment_of, selected_model

SMALL = ["--optimisation.steps", "20", "--optimisation.batch", "32", "--model.hidden", "[16]"]
SMALL += ["--optimisation.evaluations", "1"]
EVALUATION_KEYS = {
    "mae_x", "mae_y", "mi_bits", "mi_bits_sampled", "mi_bits_whitened", "mi_bits_whitened_active",
    "active_units", "probe_r2_sampled", "probe_r2_active",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "artificial", "--run", str(folder), *SMALL]) == 0
    return folder


def test_train_leaves_a_complete_run_folder(run):
    names = {path.name for path in run.iterdir()}
    assert {
        "config.yaml", "run.json", "metrics.csv", "checkpoint.pt", "evaluation.json",
        "table.md", "training.png", "latent.png", "tensorboard",
    } <= names  # fmt: skip
    assert "selected.json" not in names
    assert set(json.loads((run / "evaluation.json").read_text())) == EVALUATION_KEYS
    assert yaml.safe_load((run / "config.yaml").read_text())["optimisation"]["steps"] == 20


def test_table_sets_the_run_beside_the_paper(run, capsys):
    assert main(["table", str(run)]) == 0
    out = capsys.readouterr().out
    assert "paper: STIB " in out
    assert "ours: STIB (run)" in out


def test_runs_of_one_name_keep_a_row_each(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / run.name)
    assert main(["table", str(run), str(tmp_path / run.name)]) == 0
    assert capsys.readouterr().out.count("ours: STIB") == 2


def test_a_runs_own_configuration_starts_another(run, tmp_path, capsys):
    config = str(run / "config.yaml")
    with pytest.raises(SystemExit):
        main(["train", "artificial", "--config", config, "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["optimisation"]["steps"] == 20


def test_evaluate_prints_json_for_points_of_the_user(run, tmp_path, capsys):
    data = sample(300)
    numpy.savez(tmp_path / "points.npz", x=data.x, y=data.y)
    assert main(["evaluate", str(run), "--data", str(tmp_path / "points.npz")]) == 0
    assert set(json.loads(capsys.readouterr().out)) == EVALUATION_KEYS


def test_embed_writes_a_row_a_point(run, tmp_path):
    data = sample(50)
    numpy.savez(tmp_path / "points.npz", x=data.x)
    assert main(["embed", str(run), str(tmp_path / "points.npz")]) == 0
    with (tmp_path / "points.embedding.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 50
    assert list(rows[0]) == ["z0_0", "z0_1", "z1_0", "y0", "y1"]


def test_qm9_from_training_to_embedding(tmp_path, capsys):
    strings = [f"C{'C' * (i % 5)}{'O' * (i // 5)}N" for i in range(60)]
    rows = [f"{s},{60 + i % 7},{0.2 + 0.001 * i}" for i, s in enumerate(strings)]
    data = tmp_path / "molecules.csv"
    data.write_text("\n".join(["SMILES,alpha,gap", *rows]) + "\n")
    folder = tmp_path / "run"
    sizes = ["--model.channels", "4", "--model.encoder_hidden", "8", "--model.decoder_hidden", "8"]
    steps = ["--optimisation.steps", "2", "--optimisation.batch", "8"]
    command = ["train", "qm9", "--data", str(data), "--molecules.smiles", "SMILES"]
    assert main([*command, "--run", str(folder), *sizes, *steps]) == 0
    assert "gap eV" in capsys.readouterr().out
    assert main(["evaluate", str(folder)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {"token_accuracy", "string_accuracy", "mae_gap_ev", "mae_polarisability"} <= set(figures)
    assert main(["embed", str(folder), str(data)]) == 0
    header = (tmp_path / "molecules.embedding.csv").read_text().splitlines()[0]
    assert header.endswith("z1_3,gap_ev,polarisability")


TINY = ["--model.channels", "4", "--model.encoder_hidden", "8", "--model.decoder_hidden", "8"]
TINY += ["--optimisation.steps", "2", "--optimisation.batch", "8"]


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    """60 rows, of which 50 are of use: with every kind of dirt that a table can hold."""
    good = [f"C{'C' * (i % 5)}{'O' * (i // 5)}N,{60 + i % 7},{0.2 + 0.001 * i}" for i in range(50)]
    bad = ["CF,x,1", "CF,,1", "CF,1,nan", ",1,1", "C[F,1,1", "C F,1,1", "C1CC,1,1", "FFF,1,1"]
    repeats = [good[4], "NC,1,1"]  # the second: the first molecule, read from its other end
    path = tmp_path_factory.mktemp("table") / "dirty.csv"
    path.write_text("\n".join(["name,logS,pKa", *good, *bad, *repeats]) + "\n")
    return path


@pytest.fixture(scope="module")
def table_run(dirty):
    folder = dirty.parent / "run"
    command = ["train", "table", "--data", str(dirty), "--smiles", "name", "--run", str(folder)]
    assert main([*command, "--target", "pKa", "logS", *TINY]) == 0
    return folder


def test_a_dirty_table_is_trained_on_and_accounted_for(table_run, dirty, capsys):
    assert main(["table", str(table_run)]) == 0
    shown = capsys.readouterr().out
    header = [cell.strip() for cell in shown.splitlines()[0].strip("|").split("|")]
    assert header[3:7] == ["MAE pKa", "expl.", "MAE logS", "expl."]
    assert "paper" not in shown.splitlines()[2]
    assert shown.splitlines()[-1] == (
        "Data (run): 60 rows read, 50 kept; 3 with a target that is not a finite number; "
        "1 without SMILES; 2 with a malformed SMILES; 2 with a SMILES that RDKit does not read; "
        "2 repeating a molecule."
    )
    # Names its file with its full path, so that it resumes from anywhere.
    assert yaml.safe_load((table_run / "config.yaml").read_text())["data"] == str(dirty)
    assert {"training.png", "table.md", "data.json"} <= {path.name for path in table_run.iterdir()}


def test_a_table_run_is_evaluated_embedded_and_resumed(table_run, dirty, capsys):
    assert main(["evaluate", str(table_run)]) == 0
    output = capsys.readouterr()
    assert {"mae_pKa", "mae_logS", "r2_pKa", "mi_bits"} <= set(json.loads(output.out))
    assert output.err == ""
    assert main(["evaluate", str(table_run), "--data", str(dirty)]) == 0
    output = capsys.readouterr()
    assert "train_mae_pKa" not in json.loads(output.out)
    assert output.err.count(": of 60 rows left out ") == 5
    small = dirty.with_name("small.csv")
    small.write_text("name,logS,pKa\nCON,1,1\nCCO,1,2\n")
    assert main(["evaluate", str(table_run), "--data", str(small)]) == 2
    assert "2 usable rows are too few: at least 21" in capsys.readouterr().err
    clean = dirty.with_name("clean.csv")
    clean.write_text("name\nCON\nNOC\nCON\n")
    assert main(["embed", str(table_run), str(clean)]) == 0
    lines = clean.with_suffix(".embedding.csv").read_text().splitlines()
    assert lines[0].endswith("z1_3,pKa,logS")
    assert len(lines) == 4
    (table_run / "evaluation.json").unlink()
    assert main(["resume", str(table_run)]) == 0
    assert (table_run / "evaluation.json").is_file()


def test_parquet_and_repeated_target_options(dirty, tmp_path):
    import pyarrow.csv
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.csv.read_csv(dirty), tmp_path / "t.parquet")
    command = [
        "train",
        "table",
        "--data",
        str(tmp_path / "t.parquet"),
        "--run",
        str(tmp_path / "r"),
    ]
    options = ["--smiles", "name", "--target", "pKa", "--molecules.check", "false"]
    assert main([*command, *options, *TINY]) == 0
    account = json.loads((tmp_path / "r" / "data.json").read_text())
    # Without RDKit: what it alone refuses, and the molecule read from its other end, stay.
    assert (account["read"], account["kept"]) == (60, 54)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--molecules.strict", "true"],
            "3 with a target that is not a finite number: row 51: 'x'",
        ),
        (["--target", "mass"], "column 'mass' is missing; there are ['name', 'logS', 'pKa']"),
        (["--target", "pKa", "--target", "pKa"], "target 'pKa' is named more than once"),
        (["--target", "name"], "column 'name' is asked for more than once"),
        (["--smiles", "logS"], "column 'logS' is asked for more than once"),
        (["--optimisation.batch", "400"], "46 training molecules are fewer than"),
        (["--data", "table.xlsx"], "ends in one of .smi, .smi.gz, .csv, .csv.gz, .parquet"),
        (["--data", "."], "is not a token cache: it has no cache.json"),
    ],
)
def test_tables_that_cannot_be_used(options, message, dirty, tmp_path, capsys):
    command = [
        "train",
        "table",
        "--data",
        str(dirty),
        "--smiles",
        "name",
        "--target",
        "pKa",
        "logS",
    ]
    if options[0] == "--target":
        command = command[:-3]
    folder = tmp_path / "run"
    assert main([*command, *TINY, "--run", str(folder), *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not folder.exists()


def test_zinc_predicts_druglikeness_beside_the_paper(dirty, tmp_path, capsys):
    _, *rows = dirty.read_text().splitlines()
    data = tmp_path / "zinc.csv"
    data.write_text("\n".join(["smiles,logP,qed", *rows]) + "\n")
    command = ["train", "zinc", "--data", str(data), *TINY]
    assert main([*command, "--run", str(tmp_path / "qed")]) == 0
    shown = capsys.readouterr().out
    assert "paper: STIB " in shown
    assert "MAE qed" in shown
    both = [*command, "--molecules.targets", "[qed, logP]", "--run", str(tmp_path / "both")]
    assert main(both) == 0
    shown = capsys.readouterr().out
    assert "paper: STIB " not in shown
    assert "MAE logP" in shown
    assert main(["table", str(tmp_path / "qed"), str(tmp_path / "both")]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert next(row for row in rows if "STIB (qed)" in row).count("–") == 2


def test_zinc_takes_columns_as_any_table_does(dirty, tmp_path, capsys):
    command = ["train", "zinc", "--data", str(dirty), "--run", str(tmp_path / "run"), *TINY]
    assert main([*command, "--smiles", "name", "--target", "pKa"]) == 0
    shown = capsys.readouterr().out
    assert "MAE pKa" in shown
    account = "; 2 with a malformed SMILES; 2 repeating a molecule; not checked by RDKit.\n"
    assert account in shown


def test_runs_of_one_name_keep_an_account_each(table_run, tmp_path, capsys):
    twin = tmp_path / table_run.name
    shutil.copytree(table_run, twin)
    account = json.loads((twin / "data.json").read_text())
    (twin / "data.json").write_text(json.dumps(account | {"read": 61}))
    assert main(["table", str(table_run), str(twin)]) == 0
    accounts = [row for row in capsys.readouterr().out.splitlines() if row.startswith("Data ")]
    assert [row.partition(",")[0] for row in accounts] == [
        f"Data ({table_run}): 60 rows read",
        f"Data ({twin}): 61 rows read",
    ]


def test_doctor_explains_every_backend(capsys):
    assert main(["doctor", "--json"]) == 0
    backends = json.loads(capsys.readouterr().out)["backends"]
    assert set(backends) == {"cpp", "cpp (smiles)", "eager", "triton", "cuda"}
    assert backends["eager"]["usable"]
    assert all(state["reason"] for state in backends.values())
    assert main(["doctor"]) == 0
    assert "eager usable" in " ".join(capsys.readouterr().out.split())


def test_doctor_works_where_the_backend_asked_for_does_not():
    found = subprocess.run(
        [sys.executable, "-m", "stib_fast", "doctor"],
        env=os.environ | {"STIB_FAST_BACKEND": "bogus"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0
    assert "STIB_FAST_BACKEND: bogus" in found.stdout


def test_options_count_on_either_side_of_paper(capsys):
    for options in (
        ["--optimisation.steps", "9", "--paper"],
        ["--paper", "--optimisation.steps=9"],
    ):
        with pytest.raises(SystemExit):
            main(["train", "artificial", *options, "--print_config"])
        settings = yaml.safe_load(capsys.readouterr().out)["optimisation"]
        assert (settings["steps"], settings["batch"]) == (9, 60)


def test_the_papers_settings(capsys):
    with pytest.raises(SystemExit):
        main(["train", "artificial", "--paper", "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["optimisation"]["steps"] == 150_000
    assert settings["optimisation"]["batch"] == 60
    assert settings["model"]["feature_dim"] == 2
    assert settings["model"]["activation"] == "softplus"
    assert settings["select_by_validation"] is True
    assert settings["optimisation"]["evaluations"] == 500  # every 300 steps


def test_a_selected_model_has_a_row_beside_the_last(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("stib_fast.training.artificial.EVALUATION_POINTS", 400)
    # As if the model of step 10 were the better one.
    measured = iter([0.5, 0.6])
    monkeypatch.setattr(
        Artificial, "measure", lambda self, model: dict.fromkeys(self.figures, next(measured))
    )
    folder = tmp_path / "run"
    command = ["train", "artificial", "--run", str(folder), *SMALL, "--optimisation.evaluations"]
    assert main([*command, "2", "--select_by_validation", "true"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    last = json.loads((folder / "evaluation.json").read_text())
    chosen = json.loads((folder / "selected.json").read_text())
    assert chosen.pop("step") == 10
    assert set(chosen) == set(last) == EVALUATION_KEYS
    assert chosen["mae_x"] != last["mae_x"]
    assert f"| ours: STIB (run), step 10 | {chosen['mae_x']:.3f} |" in shown
    assert f"| ours: STIB (run), last step | {last['mae_x']:.3f} |" in shown
    assert "Step …: selected by validation" in shown
    run = Run(folder)
    step, model = selected_model(run, experiment_of(run, with_data=False))
    assert step == 10
    assert experiment_of(run, with_data=False).evaluate(model) == chosen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nowhere"], "nowhere is not a run folder"),
        (["table"], "the following arguments are required"),
        (["bogus"], "invalid choice: 'bogus'"),
        (["train", "artificial", "--optimisation.steps", "0"], "steps must be at least 1; got 0"),
        (["train", "artificial", "--optimisation.stps", "3"], "stps"),
        (["train", "qm9", "--data", "a.csv", "--select_by_validation", "true"], "select_by_valid"),
        (["train", "qm9", "--data", "missing.csv"], "missing.csv"),
        (["train", "artificial", "--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("stib: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_unusable_files_are_named(run, tmp_path, capsys):
    numpy.savez(tmp_path / "only_x.npz", x=numpy.zeros((5, 2)))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "short.npz").write_bytes((tmp_path / "only_x.npz").read_bytes()[:200])
    numpy.savez(tmp_path / "strings.npz", x=numpy.array([["a", "b"]]), y=numpy.zeros((1, 2)))
    for name, message in (
        ("only_x.npz", "no array 'y'"),
        ("text.npz", "not a readable npz"),
        ("empty.npz", "not a readable npz"),
        ("short.npz", "not a readable npz"),
        ("strings.npz", "array 'x' is <U1 (1, 2), not numbers"),
    ):
        assert main(["evaluate", str(run), "--data", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


def test_ctrl_c_leaves_a_run_that_resumes(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "stib_fast"]
    options = ["--run", str(folder), "--model.hidden", "[16]", "--optimisation.batch", "32"]
    process = subprocess.Popen(
        [
            *command,
            "train",
            "artificial",
            *options,
            "--optimisation.steps",
            "2000",
            "--optimisation.evaluations",
            "1",
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    metrics = folder / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.splitlines()[-1].endswith(f"continue with `stib resume {folder}`")
    assert "Traceback" not in error
    assert main(["resume", str(folder)]) == 0
    assert set(json.loads((folder / "evaluation.json").read_text())) == EVALUATION_KEYS
