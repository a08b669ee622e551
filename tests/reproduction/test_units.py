"""Units with a runner that only writes files: what is begun, resumed, done and refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from stib_fast.reproduction.account import account_text
from stib_fast.reproduction.units import GENERATED, Unit, UnitStore, in_own_process, perform_all
from stib_fast.training import Interrupted

TRAINING = Unit("a", "train qm9 --data {data} --model vae", 10)
OTHER = Unit("b", "train qm9 --data {data}", 20)
GENERATION = Unit("c", "generate {runs}/b --target gap=6", 1)
UNITS = [TRAINING, OTHER, GENERATION]
CONFIG = {"optimisation": {"steps": 9, "rate": 1e-5}, "molecules": {"targets": ["gap"]}}


class Stib:
    """Writes what `stib` would, and notes how it was called."""

    def __init__(self, stops_in: str = "", code: int = 130) -> None:
        self.calls: list[list[str]] = []
        self.stops_in, self.code = stops_in, code

    def __call__(self, arguments: Sequence[str], lock: int) -> int:
        self.calls.append(list(arguments))
        folder = Path(arguments[-1])
        folder.mkdir(exist_ok=arguments[0] == "resume")
        if arguments[0] == "generate":
            files: tuple[str, ...] = GENERATED
        else:
            (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"data": __file__}))
            files = ("checkpoint.pt", "evaluation.json", "training.png")
        if folder.name == self.stops_in:
            (folder / files[0]).touch()
            return self.code
        for name in files:
            (folder / name).write_text(f"{len(self.calls)}")
        return 0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "my molecules.csv"
    path.write_text("smiles\nC\n")
    return path


@pytest.fixture
def store(tmp_path: Path, data: Path) -> UnitStore:
    return store_of(tmp_path / "runs", data)


def store_of(folder: Path, data: Path, settings: dict[str, Any] = CONFIG) -> UnitStore:
    return UnitStore(folder, data, settings=lambda arguments: settings)


def content(store: UnitStore) -> dict[str, bytes]:
    files = (path for path in store.folder.rglob("*") if path.is_file())
    return {str(path.relative_to(store.folder)): path.read_bytes() for path in files}


def test_units_are_performed_in_turn_and_only_once(
    store: UnitStore, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stib = Stib()
    perform_all(UNITS, store, stib, trial=False)
    runs = str(store.folder)
    assert stib.calls == [
        ["train", "qm9", "--data", str(data), "--model", "vae", "--run", f"{runs}/a"],
        ["train", "qm9", "--data", str(data), "--run", f"{runs}/b"],
        ["generate", f"{runs}/b", "--target", "gap=6", "--out", f"{runs}/c"],
    ]
    first, second, third = capsys.readouterr().err.splitlines()
    # The words of a command can be pasted: a space in a name is quoted.
    assert first.startswith(f"unit 1 of 3: a (stib train qm9 --data '{data}' --model vae")
    assert first.endswith("; 0 min so far, about 31 min left")
    # The units of this test take no time, and so do those that are left.
    assert second.endswith("0 min so far, about 1 min left")
    assert third.startswith("unit 3 of 3: c (stib generate ")

    before = content(store)
    perform_all([OTHER, TRAINING], store, stib, trial=False)
    assert len(stib.calls) == 3
    assert content(store) == before
    assert capsys.readouterr().err == "unit 1 of 2: b is done\nunit 2 of 2: a is done\n"


def test_a_trial_gives_no_estimate_before_it_has_one(
    store: UnitStore, capsys: pytest.CaptureFixture[str]
) -> None:
    perform_all(UNITS, store, Stib(), trial=True)
    first, second, _ = capsys.readouterr().err.splitlines()
    assert "left" not in first
    assert second.endswith("min left")


@pytest.mark.parametrize("code", [130, -2, -15])
def test_what_was_stopped_is_resumed_and_what_is_done_stays(store: UnitStore, code: int) -> None:
    with pytest.raises(Interrupted, match="stopped in b; the same command continues"):
        perform_all(UNITS, store, Stib("b", code), trial=False)
    first = json.loads((store.folder / "b.json").read_text())
    before = content(store)
    stib = Stib()
    perform_all(UNITS, store, stib, trial=False)
    assert [call[0] for call in stib.calls] == ["resume", "generate"]
    assert stib.calls[0][1] == str(store.of(OTHER))
    after = content(store)
    assert after["a.json"] == before["a.json"]
    assert after["a/evaluation.json"] == before["a/evaluation.json"]
    second = json.loads(after["b.json"])
    assert second["seconds"] > first["seconds"]
    assert second["cpu_seconds"] >= first["cpu_seconds"]


def test_a_training_that_never_made_its_folder_is_begun(store: UnitStore) -> None:
    def stopped_at_once(arguments: Sequence[str], lock: int) -> int:
        return 130

    with pytest.raises(Interrupted):
        perform_all([TRAINING], store, stopped_at_once, trial=False)
    stib = Stib()
    perform_all([TRAINING], store, stib, trial=False)
    assert stib.calls[0][0] == "train"


def test_half_a_generation_is_made_anew(store: UnitStore) -> None:
    with pytest.raises(Interrupted):
        perform_all(UNITS, store, Stib("c"), trial=False)
    assert (store.of(GENERATION) / GENERATED[0]).exists()
    assert not store.is_done(GENERATION)
    stib = Stib()
    perform_all(UNITS, store, stib, trial=False)  # its folder must be gone: `Stib` makes it
    assert [call[0] for call in stib.calls] == ["generate"]


def test_a_generation_of_a_model_that_is_no_more_is_made_anew(store: UnitStore) -> None:
    perform_all(UNITS, store, Stib(), trial=False)
    shutil.rmtree(store.of(OTHER))
    (store.folder / "b.json").unlink()
    stib = Stib()
    stib.calls = [[]] * 9  # it writes how often it was called: another checkpoint than the first
    perform_all(UNITS, store, stib, trial=False)
    assert [call[0] for call in stib.calls[9:]] == ["train", "generate"]


@pytest.mark.parametrize("code", [0, 2])
def test_a_unit_that_fails_is_named(store: UnitStore, code: int) -> None:
    stib = Stib("b", code)
    with pytest.raises(RuntimeError, match=rf"b failed with exit code {code}: `stib train qm9"):
        perform_all(UNITS, store, stib, trial=False)
    assert len(stib.calls) == 2


def test_folders_made_in_another_way_are_refused_before_anything_runs(
    store: UnitStore, data: Path
) -> None:
    perform_all([OTHER], store, Stib(), trial=False)
    stib = Stib()
    other = replace(OTHER, command=f"{OTHER.command} --optimisation.steps 5")
    with pytest.raises(ValueError, match=r"was made by `stib train qm9 --data {data}`, not by"):
        perform_all([TRAINING, other], store, stib, trial=True)

    moved = data.with_name("moved.csv")
    moved.write_bytes(data.read_bytes())
    store_of(store.folder, moved).check(OTHER)  # the content counts, not the place
    moved.write_text("smiles\nCC\n")
    with pytest.raises(ValueError, match=r"made from my molecules.csv, whose content is not that"):
        perform_all(UNITS, store_of(store.folder, moved), stib, trial=False)

    store.of(TRAINING).mkdir()
    with pytest.raises(ValueError, match=r"runs/a is not of `stib reproduce`: remove it, or name"):
        perform_all(UNITS, store, stib, trial=False)
    assert not stib.calls


@pytest.mark.parametrize(
    ("today", "message"),
    [
        ({"optimisation": {"steps": 9, "rate": 2e-5}}, "optimisation.rate 1e-05, which .* to 2e-0"),
        (
            {"optimisation": {"steps": 9, "rate": 1e-5, "new": 1}},
            r"optimisation.new \(no such sett",
        ),
        ({"optimisation": {"steps": 9}}, r"optimisation.rate 1e-05, which .* to \(no such sett"),
    ],
)
def test_a_training_whose_settings_are_others_today_is_refused(
    store: UnitStore, data: Path, today: dict[str, Any], message: str
) -> None:
    with pytest.raises(Interrupted):
        perform_all(UNITS, store, Stib("b"), trial=False)
    stib = Stib()
    changed = store_of(store.folder, data, CONFIG | today)
    for unit in (TRAINING, OTHER):  # done, and begun
        remedy = rf"remove .*runs/{unit.name} and .*runs/{unit.name}\.json, or name another"
        with pytest.raises(ValueError, match=rf"{unit.name} was made with {message}.*{remedy}"):
            perform_all([unit], changed, stib, trial=False)
    elsewhere = {"data": "other.csv", "execution": {"device": "cuda"}}
    resolved = {"molecules": {"targets": ["gap"], "max_length": 12}}
    perform_all(
        [TRAINING], store_of(store.folder, data, CONFIG | elsewhere | resolved), stib, trial=False
    )
    assert not stib.calls


def test_a_run_whose_data_file_has_moved_is_named(store: UnitStore, data: Path) -> None:
    perform_all([TRAINING], store, Stib(), trial=False)
    config = store.of(TRAINING) / "config.yaml"
    config.write_text(config.read_text().replace(__file__, "gone.csv"))
    with pytest.raises(ValueError, match=r"runs/a: its data file gone.csv is no longer there: wri"):
        perform_all([TRAINING], store, Stib(), trial=False)


def test_a_training_without_its_figure_is_resumed(store: UnitStore) -> None:
    perform_all([TRAINING], store, Stib(), trial=False)
    (store.of(TRAINING) / "training.png").unlink()
    stib = Stib()
    perform_all([TRAINING], store, stib, trial=False)
    assert stib.calls == [["resume", str(store.of(TRAINING))]]


def test_a_unit_that_failed_before_its_folder_was_made_is_begun_with_other_data(
    store: UnitStore, data: Path
) -> None:
    with pytest.raises(RuntimeError, match="a failed with exit code 2"):
        perform_all([TRAINING], store, lambda arguments, lock: 2, trial=False)
    right = data.with_name("right.csv")
    right.write_text("smiles\nCC\n")
    store = store_of(store.folder, right)
    perform_all([TRAINING], store, Stib(), trial=False)
    record = store.record(TRAINING)
    assert record is not None
    assert record.data == "right.csv"


def test_a_record_without_processor_time_keeps_none(store: UnitStore) -> None:
    with pytest.raises(Interrupted):
        perform_all([TRAINING], store, Stib("a"), trial=False)
    path = store.folder / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cpu_seconds": None}))
    perform_all([TRAINING], store, Stib(), trial=False)
    record = store.record(TRAINING)
    assert record is not None
    assert record.cpu_seconds is None
    assert record.seconds > 0


def test_a_session_that_was_killed_is_known_to_lack_its_time(store: UnitStore) -> None:
    def dies(arguments: Sequence[str], lock: int) -> int:
        Stib("a")(arguments, lock)
        raise SystemExit

    with pytest.raises(SystemExit):
        store.perform(TRAINING, dies)
    with pytest.raises(Interrupted):
        store.perform(TRAINING, Stib("a"))
    store.perform(TRAINING, Stib())
    record = store.record(TRAINING)
    assert record is not None
    assert (record.begun, record.counted) == (3, 2)
    unit = {"name": "a", "command": "stib", "seconds": 600.0, "cpu_seconds": 90.0}
    for lost, cells in ((0, "10.0 |     1.5"), (1, "> 10.0 |   > 1.5")):
        assert f" {cells} |" in account_text([{**unit, "lost_sessions": lost}])


def test_a_unit_that_was_killed_is_told_as_such(store: UnitStore) -> None:
    with pytest.raises(RuntimeError, match=r"a was killed by signal 9 .*; the same command cont"):
        store.perform(TRAINING, lambda arguments, lock: -9)


def test_a_unit_is_made_by_one_process_at_a_time(store: UnitStore, data: Path) -> None:
    """The second is refused while the first runs, and while its orphan does."""
    orphans = []

    def leaves_an_orphan(arguments: Sequence[str], lock: int) -> int:
        stib = Stib()
        with pytest.raises(RuntimeError, match="a is being made by another `stib reproduce`"):
            store_of(store.folder, data).perform(TRAINING, stib)
        assert not stib.calls
        sleep = [sys.executable, "-c", "input()"]
        orphans.append(subprocess.Popen(sleep, stdin=subprocess.PIPE, pass_fds=[lock]))
        return 130

    with pytest.raises(Interrupted):
        store.perform(TRAINING, leaves_an_orphan)
    with pytest.raises(RuntimeError, match="a is being made by another `stib reproduce`"):
        store.perform(TRAINING, Stib())
    orphans[0].communicate(b"\n")
    store.perform(TRAINING, Stib())
    assert store.is_done(TRAINING)


def test_a_unit_that_another_process_has_made_meanwhile_is_not_made_again(
    store: UnitStore,
) -> None:
    store.perform(TRAINING, Stib())
    stib = Stib()
    store.perform(TRAINING, stib)
    assert not stib.calls


def test_the_process_of_a_unit_holds_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = []

    class Process:
        def __init__(self, command: list[str], pass_fds: list[int]) -> None:
            passed.extend(pass_fds)

        def __enter__(self) -> Process:
            return self

        def __exit__(self, *error: object) -> None: ...

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    assert in_own_process(["doctor"], 7) == 0
    assert passed == [7]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seconds": 1}', '{"colour": "red"}'])
def test_a_damaged_record_is_named(store: UnitStore, text: str) -> None:
    perform_all([TRAINING], store, Stib(), trial=False)
    (store.folder / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"runs/a.json is damaged .*: remove it and .*runs/a"):
        perform_all([TRAINING], store, Stib(), trial=False)
