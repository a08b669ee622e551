"""Gaussian MI of a batch that is spread over processes against the same batch in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before the group, which it would keep: see processes.py
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from stib_fast import functional as F
from stib_fast.nn import GaussianMILoss, InvarianceCritic

WORLD = 4
device = torch.device("cpu")  # of the process
N, M = 5, 3
ROWS = 600
# Rows of each rank: even, uneven, with an empty one, and with all rows on one.
SPLITS = {
    1: [(600,)],
    2: [(300, 300), (599, 1), (0, 600)],
    3: [(200, 200, 200), (7, 593, 0)],
    4: [(150, 150, 150, 150), (0, 2, 0, 598)],
}
# A sum of rows in another order; the d x d step multiplies it by its condition, at most 100 here.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-11}


def sample(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and weights of the whole batch; a large offset costs no digits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, N, generator=generator, dtype=torch.float64)
    y = x[:, :M] + torch.randn(ROWS, M, generator=generator, dtype=torch.float64)
    weight = torch.rand(ROWS, generator=generator, dtype=torch.float64)
    return x.to(device, dtype), (y + 30).to(device, dtype), weight.to(device)


def encoder(dtype: torch.dtype) -> torch.nn.Linear:
    torch.manual_seed(1)
    return torch.nn.Linear(N, 2, dtype=dtype).to(device)  # invertible, it would change nothing


def whole(dtype: torch.dtype, weighted: bool, corrected: bool) -> tuple[Tensor, list[Tensor]]:
    """Value and parameter gradients in one process."""
    x, y, weight = sample(dtype)
    model = encoder(dtype)
    value = F.gaussian_mi(
        model(x), y, weight=weight if weighted else None, bias_correction=corrected
    )
    value.backward()
    return value.detach(), [p.grad for p in model.parameters()]


def check(found: Tensor, expected: Tensor) -> None:
    error = (found - expected).norm() / expected.norm()
    assert error <= TOLERANCE[expected.dtype], error


def check_group(group: dist.ProcessGroup, split: tuple[int, ...], dtype: torch.dtype) -> None:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    mine = slice(sum(split[:rank]), sum(split[: rank + 1]))
    x, y, weight = (part[mine] for part in sample(dtype))
    for weighted in (False, True):
        for corrected in (False, True):
            expected, expected_gradients = whole(dtype, weighted, corrected)
            model = encoder(dtype)
            parallel = DistributedDataParallel(model, process_group=group)
            for module, averaged in ((model, False), (parallel, True)):
                model.zero_grad(set_to_none=True)
                value = F.gaussian_mi(
                    module(x),
                    y,
                    weight=weight if weighted else None,
                    bias_correction=corrected,
                    group=group,
                )
                value.backward()
                assert value.dtype == dtype
                check(value.detach(), expected)
                for p, gradient in zip(model.parameters(), expected_gradients, strict=True):
                    if not averaged:
                        dist.all_reduce(p.grad, group=group)
                        p.grad /= size
                    if p.ndim == 2:  # the bias moves nothing: its gradient is rounding
                        check(p.grad, gradient)
            values = [torch.empty_like(value) for _ in range(size)]
            dist.all_gather(values, value.detach(), group=group)
            assert len({float(v) for v in values}) == 1  # the same bits on every process


def agree_with_one_process(group: dist.ProcessGroup) -> None:
    for split in SPLITS[dist.get_world_size(group)]:
        for dtype in TOLERANCE:
            check_group(group, split, dtype)


def gather_only_moments(group: dist.ProcessGroup) -> None:
    """1 + d + d² float64 numbers a process, and nothing else, forward and backward."""
    sent: list[int] = []
    all_gather = dist.all_gather

    def counted(everyone: list[Tensor], own: Tensor, group: Any) -> None:
        sent.append(own.numel() * own.element_size())
        all_gather(everyone, own, group=group)

    dist.all_gather = counted
    others = {name: getattr(dist, name) for name in ("all_reduce", "broadcast", "all_to_all")}
    for name in others:
        setattr(dist, name, lambda *a, name=name, **k: sent.append(name))
    try:
        z = torch.randn(50, N, device=device, requires_grad=True)
        F.gaussian_mi(z, torch.randn(50, M, device=device), group=group).backward()
    finally:
        dist.all_gather = all_gather
        for name, function in others.items():
            setattr(dist, name, function)
    d = N + M
    assert sent == [8 * (1 + d + d * d)]


def reach_the_modules(group: dist.ProcessGroup) -> None:
    z, y = torch.randn(2, 20, 2, device=device)
    value = F.gaussian_mi(z, y, group=group)
    assert torch.equal(GaussianMILoss(group=group)(z, y), value)
    critic = InvarianceCritic(2, 2, 2, (4,)).to(device)
    features, targets = critic.critic(z), critic.h(y)
    _, mi, _ = critic.losses(z, y, group=group)
    assert torch.equal(mi, F.gaussian_mi(features, targets, group=group))


def give_nan_for_nan_and_for_few_rows(group: dist.ProcessGroup) -> None:
    rank = dist.get_rank(group)
    z, y = torch.randn(2, 20, 2, device=device)
    z.requires_grad_()
    if rank == dist.get_world_size(group) - 1:
        y[3, 1] = torch.nan
    value = F.gaussian_mi(z, y, group=group)
    value.backward()
    assert value.isnan()
    assert z.grad.isnan().all()
    rows = 1 if rank == 0 else 0
    assert F.gaussian_mi(*torch.randn(2, rows, 2, device=device), group=group).isnan()


JOBS = (
    agree_with_one_process,
    gather_only_moments,
    reach_the_modules,
    give_nan_for_nan_and_for_few_rows,
)


def worker(rank: int, folder: str, world: int, on_gpus: bool) -> None:
    global device
    torch.set_num_threads(1)
    if on_gpus:
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    store = dist.FileStore(f"{folder}/store", world)
    backend = "nccl" if on_gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    try:
        for size in range(1, world + 1):
            group = dist.new_group(list(range(size)))
            if rank < size:
                for job in JOBS:
                    job(group)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def test_spread_over_processes(tmp_path: Path) -> None:
    """Groups of 1 to 4 processes, started once."""
    mp.spawn(worker, (str(tmp_path), WORLD, False), nprocs=WORLD)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_spread_over_gpus(tmp_path: Path) -> None:
    """The same by NCCL, a GPU for each process."""
    world = min(WORLD, torch.cuda.device_count())
    mp.spawn(worker, (str(tmp_path), world, True), nprocs=world)
