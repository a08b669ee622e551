"""The command ``stib`` under torchrun, whose second process gets a signal in its step, once.

Each process tells at its end which threads of gloo it has left.
"""

import atexit
import os
import signal
import sys
import time
from pathlib import Path

from stib_fast.cli import main
from stib_fast.training import loop
from stib_fast.training.step import TrainingStep

STEP = 7
take_step = TrainingStep.__call__


def signalled(self, batch, step, critic_batches):
    if step == STEP:
        os.kill(os.getpid(), signal.Signals[os.environ["SIGNAL"]])
    return take_step(self, batch, step, critic_batches)


def tell_threads():
    time.sleep(1.0)  # the kernel lists a thread for a moment after it was joined
    names = (path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    left = [name for name in names if "gloo" in name]
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    print(f"attempt {attempt} left threads: {left}", file=sys.stderr)


if __name__ == "__main__":
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        TrainingStep.__call__ = signalled
    loop.CHECKPOINT_SECONDS = 0.0
    atexit.register(tell_threads)  # the first to register is the last to be called
    sys.exit(main())
