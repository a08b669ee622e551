"""`stib reproduce`, stopped from outside."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def reproducing(out: Path):
    """The command, in a group of its own as in a terminal."""
    arguments = ["reproduce", "artificial-latent", "--steps", "1000000", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "stib_fast", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def assert_stopped(process: subprocess.Popen, error: str) -> None:
    assert process.returncode == 130, error
    assert "Traceback" not in error
    last = error.splitlines()[-1]
    assert last == "stib: stopped in artificial-vae-0; the same command continues"
    with pytest.raises(ProcessLookupError):  # nothing is left running
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("group", [False, True], ids=["SIGTERM", "Ctrl-C"])
def test_stopped_from_outside_a_unit_keeps_its_checkpoint(group, tmp_path):
    run = tmp_path / "runs" / "artificial-vae-0"
    with reproducing(tmp_path) as process:
        give_up = time.monotonic() + 300
        while not (run / "metrics.csv").exists() and time.monotonic() < give_up:
            time.sleep(0.1)
        time.sleep(0.5)
        # A terminal sends Ctrl-C to all processes of its group; SIGTERM goes to one.
        os.killpg(process.pid, signal.SIGINT) if group else process.terminate()
        _, error = process.communicate(timeout=300)
    assert_stopped(process, error)
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] > 0


@pytest.mark.parametrize("delay", [0.2, 1.0])
def test_stopped_while_the_process_of_a_unit_imports(delay, tmp_path):
    with reproducing(tmp_path) as process:
        said = process.stderr.readline()
        assert said.startswith("unit 1 of 3: artificial-vae-0 ")
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=300)
    assert_stopped(process, error)
