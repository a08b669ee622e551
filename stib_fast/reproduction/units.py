"""Units: calls of `stib` that fill a folder each, done once, resumed where they were stopped."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from stib_fast.data.replacing import write_text
from stib_fast.data.token_cache import file_digest
from stib_fast.machine import cpu_name
from stib_fast.training import Interrupted, Run
from stib_fast.training.molecule_data import digest

INTERRUPTED = (130, -signal.SIGINT, -signal.SIGTERM)
GENERATED = ("molecules.csv", "summary.json", "index.html")

Runner = Callable[[Sequence[str]], int]
"""Runs a command line of `stib`, without the name of the program, and returns its exit code."""


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
        Wall clock and processor time of all its sessions: loading, training, measuring, drawing.
    """

    command: str
    data: str | None
    data_sha256: str | None
    processor: str
    cores: int
    gpu: str | None
    model_sha256: str | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class UnitStore:
    """The folder of all units, of every experiment.

    Parameters
    ----------
    folder : Path
    data : Path, optional
        The data file of the units whose commands name it.
    """

    def __init__(self, folder: Path, data: Path | None = None) -> None:
        self.folder = folder
        self.data = data
        self._digest = digest(str(data)) if data else None

    def of(self, unit: Unit) -> Path:
        """The folder of a unit."""
        return self.folder / unit.name

    def record(self, unit: Unit) -> Record | None:
        """What is kept of a unit, if it was begun.

        Raises
        ------
        ValueError
            The file is damaged.
        """
        path = self._record_path(unit)
        if not path.exists():
            return None
        try:
            return Record(**json.loads(path.read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error}): remove it and {self.of(unit)}"
            ) from error

    def check(self, unit: Unit) -> None:
        """Raise a ValueError if the folder of a unit was not made by its command and data."""
        record, folder = self.record(unit), self.of(unit)
        remedy = "remove it, or name another folder with --out"
        if record is None:
            if folder.exists():
                raise ValueError(f"{folder} is not of `stib reproduce`: {remedy}")
            return
        if record.command != unit.command:
            raise ValueError(
                f"{folder} was made by `stib {record.command}`, not by `stib {unit.command}`: "
                f"{remedy}"
            )
        if "{data}" in unit.command and record.data_sha256 != self._digest:
            raise ValueError(
                f"{folder} was made from {record.data}, whose content is not that of {self.data}: "
                f"{remedy}"
            )

    def is_done(self, unit: Unit) -> bool:
        """Whether a unit has written all that it writes."""
        record, folder = self.record(unit), self.of(unit)
        if record is None:
            return False
        if unit.trains:
            return Run(folder).evaluation.exists()
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
            It failed, with a message of its own.
        """
        arguments = self.arguments(unit)
        if not unit.trains or self.record(unit) is None:
            # Half a generation, or one of a model that is no more, is made anew.
            shutil.rmtree(self.of(unit), ignore_errors=True)
            self._begin(unit)
        start, cpu_start = time.perf_counter(), _cpu_seconds()
        code = run(arguments)
        self._add_time(unit, time.perf_counter() - start, _cpu_seconds() - cpu_start)
        if code in INTERRUPTED:
            raise Interrupted(f"stopped in {unit.name}; the same command continues")
        if code or not self.is_done(unit):
            raise RuntimeError(
                f"{unit.name} failed with exit code {code}: `stib {shlex.join(arguments)}`; "
                "its message stands above"
            )

    def _record_path(self, unit: Unit) -> Path:
        return self.folder / f"{unit.name}.json"

    def _model_digest(self, unit: Unit) -> str | None:
        checkpoint = Run(self.folder / unit.model).checkpoint
        return file_digest(checkpoint) if checkpoint.exists() else None

    def _begin(self, unit: Unit) -> None:
        uses_data = "{data}" in unit.command
        self.folder.mkdir(parents=True, exist_ok=True)
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
            ),
        )

    def _add_time(self, unit: Unit, seconds: float, cpu_seconds: float) -> None:
        record = self.record(unit)
        assert record is not None  # written by `_begin`
        self._write(
            unit,
            replace(
                record,
                seconds=record.seconds + seconds,
                cpu_seconds=record.cpu_seconds + cpu_seconds,
            ),
        )

    def _write(self, unit: Unit, record: Record) -> None:
        write_text(self._record_path(unit), json.dumps(asdict(record), indent=2) + "\n")


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


def in_own_process(arguments: Sequence[str]) -> int:
    """Run a command line of `stib` in a process of its own, whose memory is counted apart.

    Ctrl-C in a terminal reaches that process by itself, which then writes its checkpoint; SIGTERM
    is passed on.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with subprocess.Popen([sys.executable, "-m", "stib_fast", *arguments]) as process:
        try:
            signal.signal(signal.SIGINT, lambda number, frame: None)
            signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
            return process.wait()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
