"""`stib reproduce`, stopped from outside."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("group", [False, True], ids=["SIGTERM", "Ctrl-C"])
def test_stopped_from_outside_a_unit_keeps_its_checkpoint(group, tmp_path):
    arguments = ["reproduce", "artificial-latent", "--steps", "1000000", "--out", str(tmp_path)]
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
    run = tmp_path / "runs" / "artificial-vae-0"
    try:
        give_up = time.monotonic() + 300
        while not (run / "metrics.csv").exists() and time.monotonic() < give_up:
            time.sleep(0.1)
        time.sleep(0.5)
        # A terminal sends Ctrl-C to all processes of its group; SIGTERM goes to one.
        os.killpg(process.pid, signal.SIGINT) if group else process.terminate()
        _, error = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, error
    last = error.splitlines()[-1]
    assert last == "stib: stopped in artificial-vae-0; the same command continues"
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] > 0
    with pytest.raises(ProcessLookupError):  # nothing is left running
        os.killpg(process.pid, 0)
