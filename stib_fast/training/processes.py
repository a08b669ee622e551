"""The processes of a training run: one, or those that ``torchrun`` started."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

# Its functions have the default group for a default argument: DistributedDataParallel, importing it
# after the processes have joined, would keep that group, and gloo's threads, until the interpreter
# is taken down around them.
import torch.distributed.nn.functional
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroup  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from stib_fast.training.execution import Execution

Result = TypeVar("Result")
# After which processes give up waiting for one that does not come.
TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Processes:
    """One process among those of a run.

    Parameters
    ----------
    rank : int
        Number of this process, from 0: the first one, which alone writes.
    size : int
        Number of processes.

    Examples
    --------
    >>> Processes(rank=1, size=4).share(1000)
    slice(250, 500, None)
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def group(self) -> ProcessGroup | None:
        """The group of all of them, or None for one alone."""
        return dist.group.WORLD if self.size > 1 else None

    def share(self, rows: int) -> slice:
        """Which rows of a batch are this process's.

        Raises
        ------
        ValueError
            If the processes cannot have equally many.
        """
        if rows % self.size:
            raise ValueError(
                f"optimisation.batch is {rows}, which {self.size} processes cannot share equally; "
                f"take {rows - rows % self.size or self.size}"
            )
        each = rows // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes, the same bits on each."""
        if self.size == 1:
            return values
        everyone = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(everyone, values)
        return torch.stack(everyone).mean(0)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all must ask."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def first(self, function: Callable[[], Result]) -> Result:
        """Run a function in the first process; its result, or ValueError, in all of them."""
        if self.size == 1:
            return function()
        outcome: list[Result | ValueError | None] = [None]
        if self.is_first:
            try:
                outcome = [function()]
            except (ValueError, OSError) as error:
                outcome = [ValueError(str(error))]
        dist.broadcast_object_list(outcome)
        (result,) = outcome
        if isinstance(result, ValueError):
            raise result
        return result  # type: ignore[return-value]


ALONE = Processes()


@contextlib.contextmanager
def joined_processes(execution: Execution) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, or be the only one.

    On GPUs each process takes the one of its number on its machine.

    Parameters
    ----------
    execution : Execution
        Resolved.

    Raises
    ------
    ValueError
        If the machine has fewer GPUs than processes, a CUDA graph is asked for, or something else
        than ``torchrun`` started the processes and did not say which they are.
    RuntimeError
        In place of one of ``torch.distributed``: another process ended.
    """
    size = int(os.environ.get("WORLD_SIZE") or "1")
    if size == 1:
        yield ALONE
        return
    if execution.cuda_graph:
        raise ValueError(f"a CUDA graph (--cuda-graph) is of one process; there are {size}")
    on_gpu = execution.device == "cuda"
    if on_gpu:
        if "LOCAL_RANK" not in os.environ:
            raise ValueError("LOCAL_RANK is not set: start the processes with torchrun")
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(
                f"process {local} of this machine has no GPU of its own, there are {gpus}: lower "
                "torchrun's --nproc-per-node or take --device cpu"
            )
        torch.cuda.set_device(local)
    store, rank, size = next(rendezvous("env://"))
    # torchrun's store outlives a restart with the addresses of the dead, at which gloo would wait
    # (pytorch/pytorch#135712). On several machines the numbers of their restarts may differ.
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = PrefixStore(f"restart {_restarts()}", store)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        yield Processes(rank, size)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise RuntimeError(
            "another process of the run ended or cannot be reached; its own message tells why. "
            "`stib resume` continues from the last checkpoint, as torchrun --max-restarts 3 does "
            f"by itself ({str(error).splitlines()[0]})"
        ) from error
    finally:
        dist.destroy_process_group()
        # The training step, which refers to itself, holds the group as well. Not collected here:
        # after an error its message comes first, since torchrun is about to end this process, too.
        atexit.register(gc.collect)


def job() -> str | None:
    """What ``torchrun`` calls all processes and restarts of one command; None where it cannot tell.

    Of several machines ``--rdzv-id`` names it.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if name == "none" else name


def may_restart() -> bool:
    """Whether ``torchrun --max-restarts`` starts processes anew."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS") or "0") > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or "0")
