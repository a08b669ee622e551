"""A training step of STIB on ZINC's strings, shared by several processes.

The model is that of ``stib train zinc``; a shape is rows in the batch of all processes together,
the threads are those of each process. *Gathered* is what the exact mutual information of the whole
batch costs a process on the network, 1 + d + d² float64 numbers; *reduced* are the gradients that
``DistributedDataParallel`` averages. The time is that of the slowest process.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks import harness, report
from benchmarks.harness import Row
from stib_fast.chem import Vocabulary
from stib_fast.training import Execution, Processes, Zinc, ZincConfig
from stib_fast.training.step import TrainingStep
from stib_fast.training.table import TableData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTH = 73
SIZES = {"1 process": 1, "2 processes": 2, "4 processes": 4, "8 processes": 8}
VOCABULARY = Vocabulary.preset("zinc250k")


def experiment(rows: int) -> Zinc:
    """ZINC without its molecules; the batch decides the critic's features."""
    config = ZincConfig(data="", molecules=TableData(targets=("qed",), max_length=LENGTH))
    steps = replace(config.optimisation, steps=1, batch=rows)
    return Zinc(replace(config, optimisation=steps), VOCABULARY)


def worker(rank: int, size: int, rows: int, repetitions: int, device: str, folder: str) -> None:
    """Take steps beside the other processes; the first leaves their times."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if device == "cuda":
        torch.cuda.set_device(rank)
    if size > 1:
        store = dist.FileStore(f"{folder}/store", size)
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    zinc, processes = experiment(rows), Processes(rank, size)
    torch.manual_seed(0)
    step = TrainingStep(zinc.model().to(device), zinc.optimisation, Execution(device), processes)
    share = processes.share(rows)
    ids = torch.randint(3, len(VOCABULARY), (rows, LENGTH), dtype=torch.uint8)[share].to(device)
    y = torch.randn(rows, 1)[share].to(device)
    seconds = []
    for _ in range(2 + repetitions):
        if size > 1:
            dist.barrier()
        began = time.perf_counter()
        step((ids, y), 0, [(ids, y)] * step.critic_batches).loss.item()
        slowest = torch.tensor(time.perf_counter() - began)
        if size > 1:
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
        seconds.append(slowest.item())
    if processes.is_first:
        torch.save(seconds[2:], f"{folder}/seconds")
    if size > 1:
        dist.destroy_process_group()


def measure(rows: int, names: Sequence[str], setting: harness.Setting) -> Iterator[Row]:
    """Time the step by each number of processes, one after the other."""
    zinc = experiment(rows)
    model = zinc.model()
    critic = model.critic.critic[-1].out_features
    parameters = sum(p.numel() for p in model.parameters())
    most = os.cpu_count() or 1
    if setting.device.type == "cuda":
        most = torch.cuda.device_count()
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    times = {}
    for name in names:
        if SIZES[name] > most or rows % SIZES[name]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            repetitions = 2 if setting.quick else 15
            mp.spawn(
                worker,
                (SIZES[name], rows, repetitions, setting.device.type, folder),
                nprocs=SIZES[name],
            )
            times[name] = harness.summary(torch.load(f"{folder}/seconds"))
    for name, timing in times.items():
        size, d = SIZES[name], 2 * critic
        yield {
            "batch": rows,
            "provider": name,
            **timing.columns(),
            "rows_per_second": rows / timing.median,
            "speed_up": times[names[0]].median / timing.median,
            "gathered_bytes": 8 * (1 + d + d * d) if size > 1 else 0,
            "reduced_bytes": 4 * parameters if size > 1 else 0,
        }


# ---- report --------------------------------------------------------------------------------------


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    """Draw rows a second against processes, beside twice the processes, twice the rows."""
    figure.set_size_inches(6, 4)
    axes = figure.subplots()
    cases = dict.fromkeys((row["batch"], row["threads"]) for row in rows)
    for colour, (batch, threads) in enumerate(cases):
        chosen = [row for row in rows if (row["batch"], row["threads"]) == (batch, threads)]
        sizes = [SIZES[row["provider"]] for row in chosen]
        rates = [row["rows_per_second"] for row in chosen]
        label = f"batch {batch:,}, {report.where(threads)} each"
        axes.plot(sizes, rates, "o-", color=f"C{colour}", label=label)
        axes.plot(sizes, [rates[0] * n / sizes[0] for n in sizes], ":", color=f"C{colour}")
    axes.set_xlabel("processes")
    axes.set_ylabel("molecules a second (dotted: in proportion)")
    axes.set_xticks(sorted({SIZES[row["provider"]] for row in rows}))
    axes.set_ylim(0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


BENCHMARK = harness.Benchmark(
    on={
        device: harness.On(
            backend=backend,
            tests=("tests/distributed/test_step.py",),
            providers=tuple(SIZES),
            shapes={"zinc": ("128", "1024")},
            quick=("128",),
        )
        for device, backend in (("cpu", "cpp"), ("cuda", "triton"))
    },
    parse=harness.parse_rows,
    measure=measure,
    table={
        "batch": "{:,}".format,
        "provider": str,
        **report.TIMES,
        "rows_per_second": "{:,.0f}".format,
        "speed_up": "{:.2f}x".format,
        "gathered_bytes": "{:,}".format,
        "reduced_bytes": "{:,}".format,
    },
    draw=draw,
    conclude=lambda rows: (),
)
