"""The training step, L1 and L2 on one batch: op by op, compiled, or replayed as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stib_fast.models import STIB
from stib_fast.training.execution import Execution
from stib_fast.training.objective import Terms, stib_objective
from stib_fast.training.optimisation import Optimisation

# Steps before a capture: they compile kernels, and libraries allocate their workspaces.
WARM_UP = 3


class TrainingStep:
    """One step of L1 and of L2 on a batch.

    λ and the learning rate live in tensors on the model's device: a step that was captured or
    compiled reads what is in them.

    Parameters
    ----------
    model : STIB
        On its device already.
    settings : Optimisation
    execution : Execution
        Resolved.
    """

    def __init__(self, model: STIB, settings: Optimisation, execution: Execution) -> None:
        on_gpu = model.device.type == "cuda"
        self._model = model
        self._settings = settings
        self._amp = execution.amp
        self._lam = torch.zeros((), dtype=torch.float64, device=model.device)
        # The dtypes in which Adam's kernels read it.
        self._learning_rate = torch.zeros(
            (), dtype=torch.float32 if on_gpu else torch.float64, device=model.device
        )
        # One optimiser for model and adversary: Adam treats each parameter for itself.
        self._optimiser = torch.optim.Adam(
            model.parameters(), lr=self._learning_rate, fused=True, capturable=on_gpu
        )
        self._clipped = [
            p for name, p in model.named_parameters() if not name.startswith("critic.")
        ]
        self._objective = torch.compile(stib_objective) if execution.compile else stib_objective
        self._step: Callable[[Tensor, Tensor], Terms] = self._take
        if execution.cuda_graph:
            self._step = Replayed(self._take)

    def __call__(self, batch: tuple[Tensor, ...], step: int) -> Terms:
        """Take a step, counted from 0; the next one may overwrite the terms."""
        self._lam.fill_(self._settings.lambda_at(step))
        self._learning_rate.fill_(self._settings.learning_rate_at(step))
        return self._step(batch[0], batch[1])

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state."""
        return self._optimiser.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with an optimiser's state."""
        self._optimiser.load_state_dict(state)
        for group in self._optimiser.param_groups:
            group["lr"] = self._learning_rate

    def _take(self, x: Tensor, y: Tensor) -> Terms:
        # Gradients that are None are written by the backward pass, not added to: in a graph, too.
        self._optimiser.zero_grad(set_to_none=True)
        # No weight is cast twice in a step, and a cache of casts must not outlive a capture.
        with torch.autocast(x.device.type, torch.bfloat16, self._amp, cache_enabled=False):
            terms = self._objective(self._model, x, y, self._lam, self._settings.invariance_weight)
        terms.loss.backward()
        self._clip()
        self._optimiser.step()
        return terms._replace(loss=terms.loss.detach())

    def _clip(self) -> None:
        """``clip_grad_norm_``, which would ask the device for the number that λ is."""
        if self._settings.gradient_clip is None:
            return
        gradients = [p.grad for p in self._clipped if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        largest = (self._settings.gradient_clip * self._lam).to(norm.dtype)
        torch._foreach_mul_(gradients, ((norm + 1e-6).reciprocal() * largest).clamp(max=1.0))


class Replayed:
    """A function of tensors that after some calls runs as one CUDA graph.

    The first calls are ordinary ones, on the stream that the capture uses. Every call must bring
    tensors of the same shapes; the results are overwritten by the next call. torch's own generator
    of the device goes on in a graph as it does outside.

    Parameters
    ----------
    function : callable
        It must not wait for the device.
    """

    def __init__(self, function: Callable[..., Terms]) -> None:
        self._function = function
        self._stream = torch.cuda.Stream()
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Terms:
        """Run the function, or its graph."""
        if self._calls < WARM_UP:
            self._calls += 1
            return self._warm_up(inputs)
        if self._graph is None:
            self._inputs = tuple(part.clone() for part in inputs)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream):
                self._outputs = self._function(*self._inputs)
            self._graph = graph
        for static, part in zip(self._inputs, inputs, strict=True):
            if static.shape != part.shape:
                raise ValueError(
                    f"a captured step takes {tuple(static.shape)}, got {tuple(part.shape)}"
                )
            static.copy_(part)
        self._graph.replay()
        return self._outputs

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> Terms:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            outputs = self._function(*inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        return outputs
