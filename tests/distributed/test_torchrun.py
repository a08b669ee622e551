"""``torchrun -m stib_fast``: the run of one process, by two; what happens when one of them dies."""

from __future__ import annotations

import csv
import itertools
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from stib_fast.cli import main
from stib_fast.cli import train as cli_train
from stib_fast.training import Processes
from stib_fast.training.checkpoint import load_checkpoint

STOPPED = Path(__file__).with_name("train_and_stop.py")
STEPS = 20
SIZES = ["--model.z0_dim", "4", "--model.z1_dim", "2", "--model.hidden", "[16]"]
SIZES += ["--model.channels", "8", "--model.encoder_hidden", "16", "--model.decoder_hidden", "16"]
SETTINGS = ["--batch", "64", "--optimisation.steps", str(STEPS), "--optimisation.evaluations", "2"]
# Sixty critic steps in float32 carry the rounding of its features up to 10 % of their mutual
# information, twenty up to 0.6 %; that they are shared as well is held to 1e-9 in test_step.
SETTINGS += ["--optimisation.critic_steps", "1"]
# A process that waits for a dead one would do so for half an hour.
LIMIT = 150


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A token cache of 480 molecules and their number of carbon atoms."""
    folder = tmp_path_factory.mktemp("data")
    arms = [f"{'C' * a}{bond}{'C' * b}" for a in range(1, 9) for b in range(1, 9) for bond in "ON"]
    molecules = [a + end for a, end in itertools.product(arms, ["F", "Cl", "Br", "S"])][:480]
    molecules.append(molecules[0])  # is left out, and told
    rows = [f"{smiles},{smiles.count('C')}" for smiles in molecules]
    (folder / "table.csv").write_text("smiles,carbons\n" + "\n".join(rows) + "\n")
    assert main(["encode", str(folder / "table.csv"), "--target", "carbons",
                 "-o", str(folder / "cache"), "--rows-per-shard", "100"]) == 0  # fmt: skip
    return folder / "cache"


def arguments(cache: Path, run: Path, *more: str) -> list[str]:
    return ["train", "zinc", "--data", str(cache), "--run", str(run),
            "--molecules.targets", "[carbons]", *SIZES, *SETTINGS, *more]  # fmt: skip


def torchrun(program: list[str], options: list[str], *torchrun_options: str, **environment: str):
    """Two processes, on a port that is free."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
    ]
    return subprocess.run(
        [*command, *torchrun_options, *program, "--", *options],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def two(cache, tmp_path_factory):
    """A run by two processes, and what they said."""
    run = tmp_path_factory.mktemp("two") / "run"
    return run, torchrun(["-m", "stib_fast"], arguments(cache, run))


def test_two_processes_train_as_one_does(cache, two, tmp_path):
    run, result = two
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("| ours: STIB (run)") == 1
    assert result.stderr.count("repeating a string") == 1
    assert main(arguments(cache, tmp_path / "one")) == 0
    found, expected = metrics(run), metrics(tmp_path / "one")
    assert [row["step"] for row in found] == [str(step) for step in range(1, STEPS + 1)]
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            assert bool(value) == bool(other[name])
            # float32 sums in another order, through up to twenty steps of Adam.
            if value:
                assert float(value) == pytest.approx(float(other[name]), rel=2e-2, abs=2e-3), name
    assert json.loads((run / "resources.json").read_text())["processes"] == 2


def test_a_process_that_dies_is_restarted_and_the_run_goes_on_bit_for_bit(cache, two, tmp_path):
    run = tmp_path / "run"
    result = torchrun(
        [str(STOPPED)], arguments(cache, run), "--max-restarts", "1", SIGNAL="SIGKILL"
    )
    assert result.returncode == 0, result.stderr
    assert (run / "metrics.csv").read_text() == (two[0] / "metrics.csv").read_text()
    # One that is left may end the process by abort() while the interpreter is taken down.
    assert result.stderr.count("attempt 1 left threads: []") == 2


def test_a_process_that_dies_ends_the_run_which_one_process_can_resume(cache, tmp_path, capsys):
    run = tmp_path / "run"
    result = torchrun([str(STOPPED)], arguments(cache, run), SIGNAL="SIGKILL")
    assert result.returncode != 0
    assert "stib: another process of the run ended" in result.stderr
    assert "`stib resume` continues from the last checkpoint" in result.stderr
    assert not (run / "evaluation.json").exists()
    assert main(["resume", str(run)]) == 0
    assert [row["step"] for row in metrics(run)] == [str(step) for step in range(1, STEPS + 1)]


def test_a_signal_to_one_process_stops_them_all_after_the_same_step(cache, tmp_path):
    run = tmp_path / "run"
    result = torchrun([str(STOPPED)], arguments(cache, run), SIGNAL="SIGTERM")
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if line.startswith("stib: ")]
    assert said == [f"stib: stopped after step 8 of 20; continue with `stib resume {run}`"]
    assert load_checkpoint(run / "checkpoint.pt")["step"] == 8


def test_what_the_processes_refuse_is_refused_after_a_restart_too(cache, two, tmp_path):
    """A restart does not take the run of another command for its own."""
    before = (two[0] / "evaluation.json").stat().st_mtime_ns
    result = torchrun(["-m", "stib_fast"], arguments(cache, two[0]), "--max-restarts", "1")
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if line.startswith("stib: ")]
    assert len(said) >= 2  # each process, in each attempt, unless torchrun was faster
    assert all("is not empty: continue that run with `stib resume" in line for line in said)
    assert (two[0] / "evaluation.json").stat().st_mtime_ns == before


def test_what_cannot_be_shared_or_restarted_is_refused_before_anything_is_read(
    tmp_path, capsys, monkeypatch
):
    run = tmp_path / "run"
    monkeypatch.setattr(cli_train, "joined_processes", lambda e: nullcontext(Processes(0, 2)))
    assert main([*arguments(tmp_path / "no cache", run), "--batch", "63"]) == 2
    assert "63, which 2 processes cannot share equally" in capsys.readouterr().err
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    assert main(["train", "zinc", "--data", "no cache"]) == 2
    assert "--max-restarts needs --run" in capsys.readouterr().err
    assert not run.exists()
