"""The training step of several processes against that of one on the same batches."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from stib_fast.data import SpiralStream
from stib_fast.models import Autoencoder, Kind, vector_model
from stib_fast.training import Execution, Optimisation, Processes
from stib_fast.training import step as step_module
from stib_fast.training.step import TrainingStep

# The clipping clips some steps, and the learning rate and lambda move at each.
SETTINGS = Optimisation(
    steps=8, batch=60, warmup=3, gradient_clip=4.0, invariance_weight=6.0, lambda_growth=1.1
)
CRITIC_SETTINGS = replace(SETTINGS, critic_steps=3)
SHIFT = "critic.critic.2.bias"  # moves no mutual information: its gradient is rounding
KINDS: tuple[Kind, ...] = ("stib-no-adv", "vae", "cvae", "cvib")
FORMS = {
    "whole": Execution("cpu"),
    "micro-batches": Execution("cpu", micro_batch=13),
    "compiled": Execution("cpu", compile=True),
    "bfloat16": Execution("cpu", amp=True),
}


class Counting(DistributedDataParallel):
    """Counts the backward passes whose gradients stay in their process."""

    stayed = 0

    def no_sync(self):
        Counting.stayed += 1
        return super().no_sync()


def taken(
    execution: Execution,
    processes: Processes,
    kind: Kind = "stib",
    settings: Optimisation = SETTINGS,
) -> tuple[torch.Tensor, Autoencoder]:
    """Terms of every step, means over the processes, and the model after them."""
    torch.manual_seed(0)
    model = vector_model(kind, 2, 2, 2, 1, feature_dim=3, hidden=(16,)).double()
    share = processes.share(settings.batch)
    stream = SpiralStream(settings.batch, 1, dtype=torch.float64, share=share)
    step = TrainingStep(model, settings, execution, processes)
    terms = []
    for number in range(settings.steps):
        critic_batches = [next(stream) for _ in range(step.critic_batches)]
        batch = next(stream)
        assert len(batch.x) == settings.batch // processes.size
        terms.append(processes.mean(torch.stack(step(batch, number, critic_batches))))
    return torch.stack(terms), model


def same_bits(model: Autoencoder, processes: Processes) -> bool:
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    everyone = [torch.empty_like(weights) for _ in range(processes.size)]
    dist.all_gather(everyone, weights)
    return all(torch.equal(other, weights) for other in everyone)


def assert_close_weights(model: Autoencoder, expected: Autoencoder) -> None:
    """Equal up to float64 sums in another order, carried on by eight steps of Adam."""
    for key, value in expected.state_dict().items():
        if key != SHIFT:
            torch.testing.assert_close(
                model.state_dict()[key], value, rtol=1e-9, atol=1e-9, msg=f"{type(model)} {key}"
            )


def worker(rank: int, folder: str, size: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    try:
        processes = Processes(rank, size)
        compile_ = torch.compile
        step_module.DistributedDataParallel = Counting
        torch.compile = lambda f: compile_(f, backend="aot_eager")
        for name in FORMS if size == 2 else ("whole", "micro-batches"):
            execution = FORMS[name]
            Counting.stayed = 0
            found, model = taken(execution, processes)
            micro = execution.micro_batch
            passes = -(-SETTINGS.batch // size // micro) if micro else 1
            assert Counting.stayed == SETTINGS.steps * (passes - 1)
            assert same_bits(model, processes), name
            expected, whole = taken(execution, Processes())
            # float64 sums in another order, through eight steps of Adam; under bfloat16 the
            # products round by 2^-9, which the features of the mutual information feel most.
            tolerance = 0.1 if execution.amp else 1e-9
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, msg=name)
            if not execution.amp:
                assert_close_weights(model, whole)
        for form in ("whole", "micro-batches"):
            found, model = taken(FORMS[form], processes, settings=CRITIC_SETTINGS)
            assert same_bits(model, processes), form
            expected, whole = taken(FORMS[form], Processes(), settings=CRITIC_SETTINGS)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=form)
            assert_close_weights(model, whole)
        for kind in KINDS:
            for form in ("whole", "micro-batches"):
                found, model = taken(FORMS[form], processes, kind)
                assert same_bits(model, processes), kind
                expected, whole = taken(FORMS[form], Processes(), kind)
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=kind)
                assert_close_weights(model, whole)
        dist.barrier()
    finally:
        dist.destroy_process_group()
        gc.collect()  # the steps hold the group as well


@pytest.mark.parametrize("size", [2, 3])
def test_processes_take_the_step_of_one(tmp_path: Path, size: int) -> None:
    mp.spawn(worker, (str(tmp_path), size), nprocs=size)


def test_processes_share_a_batch_equally_or_say_why_not() -> None:
    shares = [Processes(rank, 3).share(60) for rank in range(3)]
    assert shares == [slice(0, 20), slice(20, 40), slice(40, 60)]
    with pytest.raises(ValueError, match="60, which 7 processes cannot share equally; take 56"):
        Processes(0, 7).share(60)
    with pytest.raises(ValueError, match="take 7"):
        Processes(0, 7).share(5)
