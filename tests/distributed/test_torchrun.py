"""``torchrun -m stib_fast``: the run of one process, by two; what happens when one of them dies."""

from __future__ import annotations

import csv
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stib_fast.cli import main

DYING = Path(__file__).with_name("train_and_die.py")
STEPS = 20
SIZES = ["--model.z0_dim", "4", "--model.z1_dim", "2", "--model.hidden", "[16]"]
SIZES += ["--model.channels", "8", "--model.encoder_hidden", "16", "--model.decoder_hidden", "16"]
SETTINGS = ["--batch", "64", "--optimisation.steps", str(STEPS), "--optimisation.evaluations", "2"]
# A process that waits for a dead one would do so for half an hour.
LIMIT = 150


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A token cache of 480 molecules and their number of carbon atoms."""
    folder = tmp_path_factory.mktemp("data")
    arms = [f"{'C' * a}{bond}{'C' * b}" for a in range(1, 9) for b in range(1, 9) for bond in "ON"]
    molecules = [a + end for a, end in itertools.product(arms, ["F", "Cl", "Br", "S"])][:480]
    rows = [f"{smiles},{smiles.count('C')}" for smiles in molecules]
    (folder / "table.csv").write_text("smiles,carbons\n" + "\n".join(rows) + "\n")
    assert main(["encode", str(folder / "table.csv"), "--target", "carbons",
                 "-o", str(folder / "cache"), "--rows-per-shard", "100"]) == 0  # fmt: skip
    return folder / "cache"


def arguments(cache: Path, run: Path, *more: str) -> list[str]:
    return ["train", "zinc", "--data", str(cache), "--run", str(run),
            "--molecules.targets", "[carbons]", *SIZES, *SETTINGS, *more]  # fmt: skip


def torchrun(program: list[str], options: list[str], *torchrun_options: str):
    """Two processes; the temporary ports of torchrun keep tests apart."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, *torchrun_options, *program, "--", *options],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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
    result = torchrun([str(DYING)], arguments(cache, run), "--max-restarts", "1")
    assert result.returncode == 0, result.stderr
    assert (run / "metrics.csv").read_text() == (two[0] / "metrics.csv").read_text()


def test_a_process_that_dies_ends_the_run_which_one_process_can_resume(cache, tmp_path, capsys):
    run = tmp_path / "run"
    result = torchrun([str(DYING)], arguments(cache, run))
    assert result.returncode != 0
    assert "stib: another process of the run ended" in result.stderr
    assert "`stib resume` continues from the last checkpoint" in result.stderr
    assert not (run / "evaluation.json").exists()
    assert main(["resume", str(run)]) == 0
    assert [row["step"] for row in metrics(run)] == [str(step) for step in range(1, STEPS + 1)]


def test_what_one_process_refuses_ends_them_all(cache, two):
    result = torchrun(["-m", "stib_fast"], arguments(cache, two[0]))
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if line.startswith("stib: ")]
    assert len(said) == 2
    assert all("is not empty: continue that run with `stib resume" in line for line in said)
