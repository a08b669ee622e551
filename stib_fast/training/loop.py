"""The training loop of every experiment."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from stib_fast.models import Autoencoder
from stib_fast.training.checkpoint import load_checkpoint, load_weights, save_checkpoint
from stib_fast.training.execution import peak_memory
from stib_fast.training.experiment import Experiment
from stib_fast.training.objective import OBJECTIVES, Terms
from stib_fast.training.optimisation import Optimisation
from stib_fast.training.processes import ALONE, Processes
from stib_fast.training.run import Figure, MetricsFile, Run
from stib_fast.training.selection import Selection
from stib_fast.training.step import TrainingStep

CHECKPOINT_SECONDS = 30.0
DIVERGED = (
    "lower optimisation.learning_rate or optimisation.invariance_weight; "
    "the last checkpoint is kept"
)
SCHEDULES = ("lambda", "learning_rate")


class Interrupted(Exception):
    """The user stopped the run; its checkpoint is written."""


def train(
    experiment: Experiment, run: Run, *, resume: bool = False, processes: Processes = ALONE
) -> Autoencoder:
    """Train an experiment's model in a run folder.

    Parameters
    ----------
    experiment : Experiment
    run : Run
        Created already.
    resume : bool
        Continue from the folder's checkpoint, by any number of processes.
    processes : Processes
        They share each batch; the first of them writes.

    Returns
    -------
    Autoencoder
        The trained model, on the CPU, in evaluation mode.

    Raises
    ------
    Interrupted
        On Ctrl-C or SIGTERM to any of the processes, after the step in progress and its checkpoint.
    ValueError
        If the GPU that is asked for is not there, the processes cannot share a batch equally, or
        the loss or a weight is no longer finite; the last checkpoint stays. If the checkpoint is
        of other networks.
    """
    settings = experiment.optimisation
    state = load_checkpoint(run.checkpoint) if resume else None
    execution = experiment.execution
    if state is not None:  # its random numbers are those of its device
        execution = replace(execution, device=state["device"])
    execution = execution.resolved()
    device = torch.device(execution.device)
    torch.manual_seed(settings.seed)
    model = experiment.model().to(device)
    stream = experiment.stream(device, processes.share(settings.batch))
    take_step = TrainingStep(model, settings, execution, processes)
    selection = Selection(experiment.selected_by)
    first = 0
    if state is not None:
        load_weights(model, state["model"], run.checkpoint)
        take_step.load_state_dict(state["optimiser"])
        stream.load_state_dict(state["stream"])
        torch.set_rng_state(state["rng"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], device)
        selection = Selection(experiment.selected_by, state.get("selected"))
        first = state["step"]

    def checkpoint(step: int) -> None:
        if not all(p.isfinite().all() for p in model.parameters()):
            raise ValueError(f"a weight is not finite after step {step}: {DIVERGED}")
        # What follows is the same in every process: one checkpoint serves any number of them.
        content = {
            "step": step,
            "device": device.type,
            "model": model.state_dict(),
            "optimiser": take_step.state_dict(),
            "stream": stream.state_dict(),
            "rng": torch.get_rng_state(),
        }
        if device.type == "cuda":
            content["cuda_rng"] = torch.cuda.get_rng_state(device)
        if selection.kept is not None:
            content["selected"] = selection.kept
        save_checkpoint(run.checkpoint, content)

    log_every = max(1, settings.steps // 100)
    evaluation_steps = set(settings.evaluation_steps())
    bar = tqdm(
        total=settings.steps,
        initial=first,
        unit="step",
        disable=None if processes.is_first else True,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(bar))
        interrupted = stack.enter_context(_interrupts())
        if processes.is_first:
            writer = stack.enter_context(
                contextlib.closing(_Writer(run, _terms_of(model), experiment.figures, first))
            )
        began = saved = time.perf_counter()
        for step in range(first + 1, settings.steps + 1):
            critic_batches = [next(stream) for _ in range(take_step.critic_batches)]
            terms = take_step(next(stream), step - 1, critic_batches)
            bar.update()
            if step % log_every == 0 or step in evaluation_steps:
                values = _values(terms, settings, step, processes)
                if processes.is_first:
                    if step in evaluation_steps:
                        measured = _measured(experiment, model)
                        selection.offer(step, measured, model)
                        values |= measured
                    writer.write(step, values)
                shown = {k: f"{v:.3g}" for k, v in values.items() if k in ("x", "y", "mi")}
                bar.set_postfix(shown)
            stopped = processes.any(interrupted.is_set())
            due = time.perf_counter() - saved > CHECKPOINT_SECONDS
            if processes.is_first and (due or stopped or step == settings.steps):
                checkpoint(step)
                saved = time.perf_counter()
            if stopped and step < settings.steps:
                raise Interrupted(f"stopped after step {step} of {settings.steps}")
    if processes.is_first and first < settings.steps:
        seconds = time.perf_counter() - began
        run.write_resources(
            {
                "processes": processes.size,
                "steps": settings.steps - first,
                "seconds": seconds,
                "rows_per_second": (settings.steps - first) * settings.batch / seconds,
                "peak_memory_bytes": peak_memory(device),
            }
        )
    return model.cpu().eval()


def _values(
    terms: Terms, settings: Optimisation, step: int, processes: Processes
) -> dict[str, Figure]:
    kept = processes.mean(torch.stack([term.double() for term in terms]))
    means = type(terms)(*kept.tolist())
    if not math.isfinite(means.loss):
        raise ValueError(f"the loss is {means.loss} at step {step}: {DIVERGED}")
    return {
        "lambda": settings.lambda_at(step - 1),
        "learning_rate": settings.learning_rate_at(step - 1),
        **{name: value for name, value in means._asdict().items() if name != "loss"},
    }


def _terms_of(model: Autoencoder) -> tuple[str, ...]:
    """Names of the terms of a model's objective."""
    return OBJECTIVES[type(model)].terms._fields[1:]


def _measured(experiment: Experiment, model: Autoencoder) -> dict[str, Figure]:
    model.eval()
    try:
        with torch.no_grad():
            return experiment.measure(model)
    finally:
        model.train()


class _Writer:
    """Metrics as CSV and for TensorBoard."""

    def __init__(
        self, run: Run, terms: tuple[str, ...], figures: tuple[str, ...], first: int
    ) -> None:
        self._training = (*SCHEDULES, *terms)
        self._csv = MetricsFile(run.metrics, [*self._training, *figures], upto=first)
        self._tensorboard = SummaryWriter(str(run.tensorboard), purge_step=first + 1)

    def write(self, step: int, values: Mapping[str, Figure]) -> None:
        self._csv.write(step, values)
        for name, value in values.items():
            if value is not None:
                kind = "train" if name in self._training else "evaluation"
                self._tensorboard.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._csv.close()
        self._tensorboard.close()


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into a flag: no step is cut in two. A second Ctrl-C kills."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, previous[signal.SIGINT])

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
