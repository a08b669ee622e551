"""The command ``stib`` under torchrun, whose second process dies in its seventh step, once."""

import os
import signal
import sys

from stib_fast.cli import main
from stib_fast.training import loop
from stib_fast.training.step import TrainingStep

DIES_IN = 7
take_step = TrainingStep.__call__


def dying(self, batch, step):
    if step == DIES_IN:
        os.kill(os.getpid(), signal.SIGKILL)
    return take_step(self, batch, step)


if __name__ == "__main__":
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        TrainingStep.__call__ = dying
    loop.CHECKPOINT_SECONDS = 0.0
    sys.exit(main())
