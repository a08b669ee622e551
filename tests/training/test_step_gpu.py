"""Training on a GPU: as on the CPU, captured as uncaptured, nothing waits, runs resume."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stib_fast.data import ShuffledBatches, Spiral, SpiralStream
from stib_fast.models import STIB, ScaledMLP, SmilesDecoder, SmilesEncoder, vector_stib
from stib_fast.nn import InvarianceCritic
from stib_fast.training import (
    Artificial,
    ArtificialConfig,
    Execution,
    Interrupted,
    Optimisation,
    Run,
    VectorModel,
    train,
)
from stib_fast.training.run import Figure
from stib_fast.training.step import WARM_UP, TrainingStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is usable here")

GPU = Execution(device="cuda")
SETTINGS = Optimisation(
    steps=20, batch=256, warmup=5, gradient_clip=4.0, invariance_weight=6.0, lambda_growth=1.1
)


def new_model(device: str = "cuda") -> STIB:
    torch.manual_seed(0)
    return vector_stib(2, 2, 2, 1, feature_dim=4, hidden=(32,)).to(device)


def taken(
    execution: Execution, steps: int = SETTINGS.steps, critic_steps: int = 1
) -> tuple[Tensor, dict[str, Tensor]]:
    """Terms of some steps, and the weights after them."""
    model, stream = new_model(), SpiralStream(SETTINGS.batch, seed=1, device="cuda")
    step = TrainingStep(model, replace(SETTINGS, critic_steps=critic_steps), execution)
    terms = []
    for number in range(steps):
        critic_batches = [next(stream) for _ in range(step.critic_batches)]
        terms.append(torch.stack(step(next(stream), number, critic_batches)))
    return torch.stack(terms), model.state_dict()


@pytest.mark.parametrize("critic_steps", [1, 3])
@pytest.mark.parametrize("amp", [False, True])
def test_captured_is_as_uncaptured_bit_for_bit(amp: bool, critic_steps: int) -> None:
    execution = replace(GPU, amp=amp)
    found, expected = (
        taken(replace(execution, cuda_graph=graph), critic_steps=critic_steps)
        for graph in (True, False)
    )
    assert torch.equal(found[0], expected[0])
    for name, value in expected[1].items():
        assert torch.equal(found[1][name], value), name


def test_a_step_is_that_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = torch.randn(SETTINGS.batch, 3)
    monkeypatch.setattr(STIB, "noise", lambda model, rows: noise.to(model.device))
    batches = [next(SpiralStream(SETTINGS.batch, seed=1)) for _ in range(3)]
    terms = []
    for device in ("cpu", "cuda"):
        step = TrainingStep(new_model(device), SETTINGS, Execution(device=device))
        taken = [
            torch.stack(step(tuple(part.to(device) for part in batch), number)).cpu()
            for number, batch in enumerate(batches)
        ]
        terms.append(torch.stack(taken))
    # float32 sums in another order; Adam's first steps are the sign of the gradient, which turns
    # where it is near 0.
    torch.testing.assert_close(terms[1], terms[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("micro_batch", [7, 200])
def test_micro_batches_take_the_step_of_the_batch(micro_batch: int) -> None:
    found, expected = (
        taken(replace(GPU, micro_batch=size), steps=3)[0] for size in (micro_batch, None)
    )
    # float32 sums in another order, and Adam's first steps, as above.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_an_uncaptured_step_does_not_wait() -> None:
    model, stream = new_model(), SpiralStream(SETTINGS.batch, seed=1, device="cuda")
    step = TrainingStep(model, SETTINGS, GPU)
    for number in range(WARM_UP):
        step(next(stream), number)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(next(stream), WARM_UP)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("amp", [False, True])
def test_compiled_is_as_eager(amp: bool) -> None:
    execution = replace(GPU, amp=amp)
    torch._dynamo.reset()
    found = taken(replace(execution, compile=True), steps=5)
    expected = taken(execution, steps=5)
    # Fused sums round otherwise; in bfloat16 by 2^-9.
    rtol = 0.02 if amp else 1e-3
    torch.testing.assert_close(found[0], expected[0], rtol=rtol, atol=rtol)


def test_compiled_steps_can_be_captured() -> None:
    torch._dynamo.reset()
    terms, _ = taken(replace(GPU, compile=True, cuda_graph=True))
    assert terms.isfinite().all()
    assert (terms[1:] != terms[:-1]).any(1).all()


def smiles_stib(vocabulary: int, length: int) -> STIB:
    torch.manual_seed(0)
    return STIB(
        SmilesEncoder(vocabulary, length, 6, channels=8, hidden_dim=16),
        SmilesDecoder(vocabulary, length, 6, 1, 2, 0, hidden_dim=16, embedding_dim=4),
        ScaledMLP([2, 16, 2]),
        InvarianceCritic(4, 2, 3, (16,)),
        z0_dim=4,
        z1_dim=2,
    ).cuda()


def test_steps_on_strings_can_be_captured() -> None:
    ids = torch.randint(3, 13, (1000, 21), dtype=torch.uint8)
    y = torch.randn(1000, 2)
    terms = []
    for captured in (False, True):
        batches = ShuffledBatches(ids.cuda(), y.cuda(), batch_size=128, seed=0, device="cuda")
        step = TrainingStep(smiles_stib(13, 21), SETTINGS, replace(GPU, cuda_graph=captured))
        terms.append(torch.stack([torch.stack(step(next(batches), i)) for i in range(10)]))
    # cuDNN's convolutions may sum by atomics, so not bit for bit.
    torch.testing.assert_close(terms[1], terms[0], rtol=1e-3, atol=1e-4)


def test_batches_of_a_data_set_are_drawn_on_the_gpu_and_resume() -> None:
    x = torch.arange(10, device="cuda")
    batches = ShuffledBatches(x, batch_size=3, seed=0, device="cuda")
    epoch = [next(batches)[0] for _ in range(3)]
    assert all(batch.is_cuda for batch in epoch)
    assert len(torch.cat(epoch).unique()) == 9
    next(batches)
    state = {name: value.cpu() for name, value in batches.state_dict().items()}  # a checkpoint's
    expected = [next(batches)[0] for _ in range(7)]
    other = ShuffledBatches(x, batch_size=3, seed=99, device="cuda")
    other.load_state_dict(state)
    assert all(torch.equal(batch, next(other)[0]) for batch in expected)


class Stopping(SpiralStream):
    """Sends a signal to its own process with one of its batches."""

    left = -1

    def __next__(self) -> Spiral:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return super().__next__()


class Stopped(Artificial):
    """The artificial experiment, stopped after some batches."""

    stop_after = -1

    def stream(self, device: torch.device, share: slice) -> SpiralStream:
        stream = Stopping(
            self.optimisation.batch, self.optimisation.data_seed, device=device, share=share
        )
        stream.left = self.stop_after
        return stream

    def measure(self, model: STIB) -> dict[str, Figure]:
        return dict.fromkeys(self.figures, 0.5)


@torch.no_grad()
def test_figures_along_training_are_those_of_the_cpu() -> None:
    experiment = Artificial(ArtificialConfig())
    on_gpu, on_cpu = (experiment.measure(new_model(device)) for device in ("cuda", "cpu"))
    # float32 means; neighbours that change places with them move the estimate a little.
    assert on_gpu == pytest.approx(on_cpu, rel=1e-4, abs=1e-3)


def test_a_captured_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    experiment = Stopped(
        ArtificialConfig(
            VectorModel(hidden=(16,), feature_dim=2),
            Optimisation(steps=40, batch=64, evaluations=1),
            replace(GPU, cuda_graph=True),
        )
    )
    runs = [Run(tmp_path / name) for name in ("whole", "parts")]
    for run in runs:
        run.folder.mkdir()
    whole = train(experiment, runs[0])
    assert whole.device.type == "cpu"
    experiment.stop_after = 17
    with pytest.raises(Interrupted, match="after step 17 of 40"):
        train(experiment, runs[1])
    experiment.stop_after = -1
    torch.randn(100, device="cuda")  # another session's random state
    resumed = train(experiment, runs[1], resume=True)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert runs[0].metrics.read_text() == runs[1].metrics.read_text()
