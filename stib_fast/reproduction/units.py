"""Units: calls of `stib` that fill a folder each, done once, resumed where they were stopped."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stib_fast.data.replacing import write_text
from stib_fast.data.token_cache import file_digest
from stib_fast.machine import cpu_name
from stib_fast.training import Interrupted, Run
from stib_fast.training.molecule_data import digest

# Until its training listens, Ctrl-C ends it without a word: the process that waits has one.
_PROGRAM = """\
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
from stib_fast.cli import main
sys.exit(main())
"""
_ANOTHER = "or name another folder with --out"
INTERRUPTED = (130, -signal.SIGINT, -signal.SIGTERM)
GENERATED = ("molecules.csv", "summary.json", "index.html")

# Of config.yaml: where the data lie and how the steps run, and what the data decide.
NO_SETTINGS = ("data", "execution.", "molecules.max_length")

Runner = Callable[[Sequence[str], int], int]
"""Runs a command line of `stib`, without the name of the program, and returns its exit code; the
descriptor of the unit's lock has to stay open as long as it runs."""

Settings = Callable[[Sequence[str]], dict[str, Any]]
"""What the ``config.yaml`` of a ``train`` command line would hold today."""


@dataclass(frozen=True)
class Unit:
    """A call of `stib` and the name of the folder that it fills.

    Parameters
    ----------
    name : str
    command : str
        Without its folder: ``train qm9 --data {data}``, ``generate {runs}/qm9-stib --target …``.
        ``{data}`` stands for the data file, ``{runs}`` for the folder of all units.
    minutes : float
        About how long it takes on two cores, for the estimate of what is left.

    Examples
    --------
    >>> unit = Unit("qm9-vae", "train qm9 --data {data} --model vae", 7)
    >>> " ".join(unit.arguments("runs", "my.csv"))
    'train qm9 --data my.csv --model vae --run runs/qm9-vae'
    """

    name: str
    command: str
    minutes: float

    @property
    def trains(self) -> bool:
        """Whether it is a training, not a generation."""
        return self.command.startswith("train ")

    @property
    def model(self) -> str:
        """Name of the training whose model a generation takes."""
        return self.command.split()[1].removeprefix("{runs}/")

    def arguments(self, runs: str, data: str) -> list[str]:
        """Its command line, with its folder."""
        places = {"data": data, "runs": runs}
        option = "--run" if self.trains else "--out"
        words = [word.format(**places) for word in self.command.split()]
        return [*words, option, f"{runs}/{self.name}"]


@dataclass(frozen=True)
class Record:
    """What is kept of a unit beside its folder.

    Parameters
    ----------
    command : str
        Of the unit, as it was begun.
    data, data_sha256 : str or None
        Name and digest of its data file.
    processor : str
    cores : int
    gpu : str or None
    model_sha256 : str or None
        Digest of the checkpoint that a generation takes.
    seconds, cpu_seconds : float
        Wall clock and processor time of its sessions: loading, training, measuring, drawing; the
        latter None where it was not counted yet.
    begun, counted : int
        Sessions, and those whose time is counted: not if `stib reproduce` itself was killed.
    """

    command: str
    data: str | None
    data_sha256: str | None
    processor: str
    cores: int
    gpu: str | None
    model_sha256: str | None = None
    seconds: float = 0.0
    cpu_seconds: float | None = None
    begun: int = 0
    counted: int = 0


class UnitStore:
    """The folder of all units, of every experiment.

    Parameters
    ----------
    folder : Path
    data : Path, optional
        The data file of the units whose commands name it.
    settings : callable
    """

    def __init__(self, folder: Path, data: Path | None = None, *, settings: Settings) -> None:
        self.folder = folder
        self._settings = settings
        self.data = data
        self._digest = digest(str(data)) if data else None

    def of(self, unit: Unit) -> Path:
        """The folder of a unit."""
        return self.folder / unit.name

    def product(self, unit: Unit) -> Path:
        """The file that tells one making of a unit from another."""
        return Run(self.of(unit)).checkpoint if unit.trains else self.of(unit) / "summary.json"

    def record(self, unit: Unit) -> Record | None:
        """What is kept of a unit, if it was begun: one that failed early has left no folder.

        Raises
        ------
        ValueError
            The file is damaged.
        """
        path = self._record_path(unit)
        if not (path.exists() and self.of(unit).exists()):
            return None
        try:
            return Record(**json.loads(path.read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error}): remove it and {self.of(unit)}"
            ) from error

    def check(self, unit: Unit) -> None:
        """Raise a ValueError if a unit was not made by its command, data and today's settings."""
        self.check_settings(unit)
        record, folder = self.record(unit), self.of(unit)
        if record is None or "{data}" not in unit.command:
            return
        if record.data_sha256 != self._digest:
            raise ValueError(
                f"{folder} was made from {record.data}, whose content is not that of {self.data}: "
                f"{self._remedy(unit)}"
            )
        if Run(folder).exists() and not Path(Run(folder).config()["data"]).exists():
            raise ValueError(
                f"{folder}: its data file {Run(folder).config()['data']} is no longer there: write "
                f"where it is into {folder}/config.yaml, or {self._remedy(unit)}"
            )

    def check_settings(self, unit: Unit) -> None:
        """Raise a ValueError if a unit was not made by its command and today's settings."""
        record, folder = self.record(unit), self.of(unit)
        if record is None:
            if folder.exists():
                raise ValueError(f"{folder} is not of `stib reproduce`: remove it, {_ANOTHER}")
            return
        if record.command != unit.command:
            raise ValueError(
                f"{folder} was made by `stib {record.command}`, not by `stib {unit.command}`: "
                f"{self._remedy(unit)}"
            )
        if not (unit.trains and Run(folder).exists()):
            return
        made = dict(_settings_in(Run(folder).config()))
        today = dict(_settings_in(self._settings(unit.arguments("runs", "data"))))
        for name in (*today, *(made.keys() - today.keys())):
            then, now = (values.get(name, "(no such setting)") for values in (made, today))
            if then != now:
                raise ValueError(
                    f"{folder} was made with {name} {then}, which `stib {unit.command}` now sets "
                    f"to {now}: {self._remedy(unit)}"
                )

    def _remedy(self, unit: Unit) -> str:
        return f"remove {self.of(unit)} and {self._record_path(unit)}, {_ANOTHER}"

    def is_done(self, unit: Unit) -> bool:
        """Whether a unit has written all that it writes."""
        record, folder = self.record(unit), self.of(unit)
        if record is None:
            return False
        if unit.trains:  # the figure comes after the evaluation
            return Run(folder).evaluation.exists() and (folder / "training.png").exists()
        written = all((folder / name).exists() for name in GENERATED)
        return written and record.model_sha256 == self._model_digest(unit)

    def arguments(self, unit: Unit) -> list[str]:
        """The command line that begins a unit, or resumes it."""
        folder = self.of(unit)
        if unit.trains and Run(folder).exists():
            return ["resume", str(folder)]
        return unit.arguments(str(self.folder), str(self.data))

    def perform(self, unit: Unit, run: Runner) -> None:
        """Begin or resume a unit, and keep how long it took.

        Raises
        ------
        Interrupted
            It was stopped; the same call resumes it.
        RuntimeError
            It failed, with a message of its own, or another process is making it.
        """
        with self._locked(unit) as lock:
            self.check(unit)
            if not self.is_done(unit):  # another process may have made it meanwhile
                self._perform(unit, run, lock)

    def _perform(self, unit: Unit, run: Runner, lock: int) -> None:
        arguments = self.arguments(unit)
        if not unit.trains or self.record(unit) is None:
            # Half a generation, or one of a model that is no more, is made anew.
            shutil.rmtree(self.of(unit), ignore_errors=True)
            self._begin(unit)
        else:
            self._begin_again(unit)
        start, cpu_start = time.perf_counter(), _cpu_seconds()
        code = run(arguments, lock)
        self._add_time(unit, time.perf_counter() - start, _cpu_seconds() - cpu_start)
        if code in INTERRUPTED:
            raise Interrupted(f"stopped in {unit.name}; the same command continues")
        if code < 0:
            raise RuntimeError(
                f"{unit.name} was killed by signal {-code} (9: for want of memory, perhaps): "
                f"`stib {shlex.join(arguments)}`; the same command continues"
            )
        if code or not self.is_done(unit):
            raise RuntimeError(
                f"{unit.name} failed with exit code {code}: `stib {shlex.join(arguments)}`; "
                "its message stands above"
            )

    @contextmanager
    def _locked(self, unit: Unit) -> Iterator[int]:
        """Hold the lock of a unit, whose descriptor keeps it in every process that has it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{unit.name}.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(
                    f"{unit.name} is being made by another `stib reproduce`: wait for that, or "
                    "name another folder with --out"
                ) from None
            yield file.fileno()

    def _record_path(self, unit: Unit) -> Path:
        return self.folder / f"{unit.name}.json"

    def _model_digest(self, unit: Unit) -> str | None:
        checkpoint = Run(self.folder / unit.model).checkpoint
        return file_digest(checkpoint) if checkpoint.exists() else None

    def _begin(self, unit: Unit) -> None:
        uses_data = "{data}" in unit.command
        self._write(
            unit,
            Record(
                command=unit.command,
                data=self.data.name if uses_data and self.data else None,
                data_sha256=self._digest if uses_data else None,
                processor=cpu_name(),
                cores=os.cpu_count() or 1,
                gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                model_sha256=None if unit.trains else self._model_digest(unit),
                cpu_seconds=0.0,
                begun=1,
            ),
        )

    def _begin_again(self, unit: Unit) -> None:
        record = self.record(unit)
        assert record is not None  # else it begins
        self._write(unit, replace(record, begun=record.begun + 1))

    def _add_time(self, unit: Unit, seconds: float, cpu_seconds: float) -> None:
        record = self.record(unit)
        if record is None:  # it has made no folder
            return
        if record.cpu_seconds is not None:
            record = replace(record, cpu_seconds=record.cpu_seconds + cpu_seconds)
        self._write(
            unit, replace(record, seconds=record.seconds + seconds, counted=record.counted + 1)
        )

    def _write(self, unit: Unit, record: Record) -> None:
        write_text(self._record_path(unit), json.dumps(asdict(record), indent=2) + "\n")


def _settings_in(config: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a ``config.yaml`` by their names on the command line."""
    for key, value in config.items():
        name = within + key
        if isinstance(value, dict):
            yield from _settings_in(value, f"{name}.")
        elif not name.startswith(NO_SETTINGS):
            yield name, value


def _cpu_seconds() -> float:
    """Processor time of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def perform_all(units: Sequence[Unit], store: UnitStore, run: Runner, *, trial: bool) -> None:
    """Perform what is not done of some units, each after a line that says how far it is.

    Parameters
    ----------
    units : sequence of Unit
        In their order.
    store : UnitStore
    run : callable
    trial : bool
        The units are cut short: of their minutes nothing is known before one is done.

    Raises
    ------
    ValueError
        A folder is of another command or of other data; before anything is performed.
    Interrupted
        One was stopped.
    RuntimeError
        One failed.
    """
    for unit in units:
        store.check(unit)
    expected = {unit.name: 1.0 if trial else unit.minutes for unit in units}
    began, performed = time.monotonic(), 0.0
    for number, unit in enumerate(units, 1):
        place = f"unit {number} of {len(units)}: {unit.name}"
        left = [other for other in units[number - 1 :] if not store.is_done(other)]
        if unit not in left:
            print(f"{place} is done", file=sys.stderr, flush=True)
            continue
        so_far = (time.monotonic() - began) / 60
        told = f"{place} (stib {shlex.join(store.arguments(unit))}); {so_far:.0f} min so far"
        if performed or not trial:
            pace = so_far / performed if performed else 1.0
            still = math.ceil(pace * sum(expected[other.name] for other in left))
            told += f", about {still} min left"
        print(told, file=sys.stderr, flush=True)
        store.perform(unit, run)
        performed += expected[unit.name]


def in_own_process(arguments: Sequence[str], lock: int) -> int:
    """Run a command line of `stib` in a process of its own, whose memory is counted apart.

    Ctrl-C in a terminal reaches that process by itself, which then writes its checkpoint; SIGTERM
    is passed on. If this process is killed, the other goes on to hold the lock of its unit.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    with subprocess.Popen(command, pass_fds=[lock]) as process:
        try:
            signal.signal(signal.SIGINT, lambda number, frame: None)
            signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
            return process.wait()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
