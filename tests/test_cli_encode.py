"""`stib encode` as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from stib_fast.chem import Vocabulary
from stib_fast.cli import main
from stib_fast.data import TokenCache

ROWS = 10_000
OPTIONS = ["--target", "x", "--rows-per-shard", "100"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 shards of 100 rows: seconds of work, so that it can be stopped in the middle."""
    path = tmp_path_factory.mktemp("encode") / "molecules.csv"
    rows = (f"{'C' * (i % 50)}O,{i}\n" for i in range(ROWS))
    path.write_text("smiles,x\n" + "".join(rows))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stopped(source: Path, folder: Path, number: int, shards: int) -> tuple[int, str]:
    """Encode in a process of its own that gets a signal after some shards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "stib_fast", "encode", str(source), "-o", str(folder), *OPTIONS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # Tests that a shell runs in the background ignore it, and so would their children.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (folder / f"tokens-{shards:05}.arrow").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    return process.returncode, error


def test_a_killed_and_stopped_command_continues_to_the_same_bytes(source, tmp_path, capsys):
    whole, folder = tmp_path / "whole", tmp_path / "cache"
    command = ["encode", str(source), "-o"]
    assert main([*command, str(whole), *OPTIONS]) == 0
    capsys.readouterr()

    assert stopped(source, folder, signal.SIGKILL, shards=5)[0] == -signal.SIGKILL
    after_kill = len(json.loads((folder / "cache.json").read_text())["shards"])
    assert 5 <= after_kill < ROWS // 100
    code, error = stopped(source, folder, signal.SIGINT, shards=after_kill + 5)
    assert (code, error) == (130, "stib: stopped; the same command continues\n")
    after_stop = len(json.loads((folder / "cache.json").read_text())["shards"])
    assert after_kill < after_stop < ROWS // 100
    with pytest.raises(ValueError, match="unfinished"):
        TokenCache(folder)

    assert main([*command, str(folder), *OPTIONS]) == 0
    assert f"{ROWS - 100 * after_stop} rows encoded" in capsys.readouterr().out
    assert contents(folder) == contents(whole)

    assert main([*command, str(folder), *OPTIONS]) == 0
    assert f"{folder} was complete; its digests are right" in capsys.readouterr().out
    assert main([*command, str(folder), *OPTIONS, "--bos"]) == 2
    error = capsys.readouterr().err
    assert "bos is False there and True here; name another folder, or delete that" in error
    assert error.count("\n") == 1


def test_the_table_counts_every_row(tmp_path, capsys):
    source = tmp_path / "molecules.csv"
    source.write_text('s,x\nCO,1\nCN,2\nC[,3\nC,\nCCCCCC,5\n"O\n",6\n')
    Vocabulary.from_smiles(["CO"]).save(tmp_path / "vocabulary.json")
    command = [
        "encode", str(source), "-o", str(tmp_path / "cache"), "--smiles", "s", "--target", "x",
        "--vocabulary", str(tmp_path / "vocabulary.json"), "--max-length", "4",
        "--on-unknown", "drop", "--on-overflow", "drop", "--on-bad-target", "drop", "--no-eos",
    ]  # fmt: skip
    assert main(command) == 0
    out, error = capsys.readouterr()
    *table, last = out.splitlines()
    found = {line[:30].strip(): line[30:].strip() for line in table}
    assert found.pop("bytes")
    assert found == {
        "rows read": "6",
        "kept": "2",
        "dropped: missing": "0",
        "dropped: malformed": "1",
        "dropped: with an unknown token": "1",
        "dropped: too long": "1",
        "dropped: with a bad target": "1",
        "tokens in the vocabulary": "6",
        "positions a row": "4",
        "shards": "1",
    }
    assert last.startswith("6 rows encoded in ")
    assert last.endswith(f" MB/s of {source}")
    assert error == ""  # no progress bar where there is no terminal
    cache = TokenCache(tmp_path / "cache", source)
    assert cache[[0, 1]].ids.tolist() == [[4, 5, 0, 0], [5, 0, 0, 0]]
    assert cache.target_names == ("x",)


def test_targets_may_be_named_one_by_one(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("smiles,x,y,z\nC,1,2,3\nO,4,5,\n")
    command = ["encode", str(tmp_path / "a.csv"), "-o", str(tmp_path / "cache")]
    command += ["--target", "x", "z", "--target", "y"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "column 'z', row 2: '' is not a finite number" in error
    # What the message says is done to the same folder.
    assert "--on-bad-target drop" in error
    assert main([*command, "--on-bad-target", "drop"]) == 0
    cache = TokenCache(tmp_path / "cache")
    assert cache.target_names == ("x", "z", "y")
    assert cache.targets.tolist() == [[1, 3, 2]]


@pytest.mark.parametrize("preset", ["qm9", "zinc250k"])
def test_presets(tmp_path, preset):
    (tmp_path / "a.smi").write_text("CC#N acetonitrile\nc1ccccc1\n")
    command = ["encode", str(tmp_path / "a.smi"), "-o", str(tmp_path / "cache"), "--bos"]
    assert main([*command, "--vocabulary", preset]) == 0
    cache = TokenCache(tmp_path / "cache")
    assert cache.vocabulary == Vocabulary.preset(preset)
    assert cache.max_length == 10  # c1ccccc1, bos and eos


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["missing.smi"], "missing.smi"),
        (["a.txt"], "ends in one of .smi"),
        (["a.smi", "--smiles", "s"], "a.smi: column 's' is missing; there are ['smiles', 'name']"),
        (["a.smi", "--target", "name"], "a.smi: column 'name', row 1: 'x' is not a finite number"),
        (["a.smi", "--max-length", "3"], "row 1: 'CCO' needs 4 positions but max_length is 3"),
        (["a.smi", "--max-length", "1"], "leaves no room"),
        (["a.smi", "--vocabulary", "v.json"], "row 1: token 'O' at column 3"),
        (["a.smi", "--vocabulary", "v.json", "--level", "char"], "is of level atom"),
        (["a.smi", "--vocabulary", "nowhere.json"], "nowhere.json"),
        (["a.smi", "--on-unknown", "ignore"], "invalid choice"),
        ([], "file"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    Path("a.smi").write_text("CCO x\n")
    Path("a.txt").write_text("CCO x\n")
    Vocabulary.from_smiles(["C"]).save("v.json")
    assert main(["encode", *options, "-o", "cache"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("stib: ")
    assert error.count("\n") == 1
