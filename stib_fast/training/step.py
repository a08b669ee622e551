"""The training step on one batch: op by op, compiled, or replayed as a CUDA graph.

By several processes, each on its share of the batch; in micro-batches, where its activations would
not fit into memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from stib_fast.models import STIB, Autoencoder
from stib_fast.training.execution import Execution
from stib_fast.training.objective import OBJECTIVES, Terms, drawn_z0
from stib_fast.training.optimisation import Optimisation
from stib_fast.training.processes import ALONE, Processes

# Steps before a capture: they compile kernels, and libraries allocate their workspaces.
WARM_UP = 3

Part = tuple[Tensor, Tensor, Tensor]  # x, y and the latent noise of some rows


class TrainingStep:
    """One step of a model's objective on a batch, or on this process's share of one.

    λ and the learning rate live in tensors on the model's device: a step that was captured or
    compiled reads what is in them. The latent noise of the whole batch is drawn at once, by every
    process alike: processes and micro-batches change nothing but the rounding.

    Parameters
    ----------
    model : Autoencoder
        On its device already; of one of the classes in `OBJECTIVES`.
    settings : Optimisation
    execution : Execution
        Resolved.
    processes : Processes
        They all take the step together, on equally many rows.

    Attributes
    ----------
    critic_batches : int
        Batches that a step takes for STIB's critic alone; 0 for the other models.
    """

    def __init__(
        self,
        model: Autoencoder,
        settings: Optimisation,
        execution: Execution,
        processes: Processes = ALONE,
    ) -> None:
        on_gpu = model.device.type == "cuda"
        self.critic_batches = settings.critic_steps - 1 if isinstance(model, STIB) else 0
        self._model = model
        self._settings = settings
        self._execution = execution
        self._processes = processes
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
        objective, _, self._of_whole = OBJECTIVES[type(model)]
        if execution.compile:
            objective = torch.compile(objective)
        self._objective: nn.Module = _Objective(model, objective, settings)
        if processes.size > 1:
            self._objective = DistributedDataParallel(self._objective)
        self._step: Callable[..., Terms] = self._take
        if execution.cuda_graph:
            self._step = Replayed(self._take)

    def __call__(
        self,
        batch: tuple[Tensor, ...],
        step: int,
        critic_batches: Sequence[tuple[Tensor, ...]] = (),
    ) -> Terms:
        """Take a step, counted from 0; the next one may overwrite the terms.

        Before it the critic takes one alone on each of its own batches. What couples the rows, as
        mutual information does, is that of the whole batch; the other terms are means over the
        rows of this process.

        Raises
        ------
        ValueError
            There are not `critic_batches` of the latter.
        """
        if len(critic_batches) != self.critic_batches:
            raise ValueError(
                f"the step takes {self.critic_batches} batches for the critic alone; "
                f"got {len(critic_batches)}"
            )
        self._lam.fill_(self._settings.lambda_at(step))
        self._learning_rate.fill_(self._settings.learning_rate_at(step))
        batches = (*critic_batches, batch)
        return self._step(*(tensor for x, y, *_ in batches for tensor in (x, y)))

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state."""
        return self._optimiser.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with an optimiser's state."""
        self._optimiser.load_state_dict(state)
        for group in self._optimiser.param_groups:
            group["lr"] = self._learning_rate

    def _take(self, *tensors: Tensor) -> Terms:
        """Take a step on x and y of each batch for the critic, then of the batch for all."""
        *critic_batches, batch = zip(tensors[::2], tensors[1::2], strict=True)
        for x, y in critic_batches:
            self._train_critic(self._parts(x, y))
        parts = self._parts(*batch)
        # Gradients that are None are written by the backward pass, not added to: in a graph, too.
        self._optimiser.zero_grad(set_to_none=True)
        if len(parts) == 1:
            terms = self._descend(parts[0], in_parts=False, group=self._processes.group)
        else:
            terms = self._descend_by_parts(parts)
        self._clip()
        self._optimiser.step()
        return terms

    def _parts(self, x: Tensor, y: Tensor) -> list[Part]:
        """Rows of a batch with their latent noise, in micro-batches if those have a size."""
        rows = len(x) * self._processes.size
        noise = self._model.noise(rows)[self._processes.share(rows)]
        size = self._execution.micro_batch or len(x)
        return list(zip(x.split(size), y.split(size), noise.split(size), strict=True))

    def _train_critic(self, parts: Sequence[Part]) -> None:
        """Let the critic alone take a step of Eq. (7); Adam passes over what has no gradient."""
        assert isinstance(self._model, STIB)  # the only model with batches for the critic
        critic, processes = self._model.critic, self._processes
        self._optimiser.zero_grad(set_to_none=True)
        around: dict[str, Any] = {"group": processes.group}
        with self._autocast():
            read = [(drawn_z0(self._model, x, noise), y) for x, y, noise in parts]
            if len(parts) > 1:
                around = {"whole": self._gathered([critic.moments(z0, y) for z0, y in read])}
        for z0, y in read:
            with self._autocast():
                loss = critic.critic_loss(z0, y, **around)
            self._backward(loss, in_parts=len(parts) > 1)
        if processes.size > 1:
            gradients = [p.grad for p in critic.parameters() if p.grad is not None]
            vector_to_parameters(processes.mean(parameters_to_vector(gradients)), gradients)
        self._optimiser.step()

    def _descend(self, part: Part, *, in_parts: bool, **around: Any) -> Terms:
        """Add to the gradients those of the objective."""
        with self._autocast():
            terms = self._objective(*part, self._lam, **around)
        self._backward(terms.loss, in_parts=in_parts)
        return terms._replace(loss=terms.loss.detach())

    def _backward(self, loss: Tensor, *, in_parts: bool) -> None:
        """Add to the gradients, whose mean over the processes is taken afterwards.

        Of micro-batches that mean is to be the sum of what each process has of the whole.
        """
        (loss * self._processes.size if in_parts else loss).backward()

    def _descend_by_parts(self, parts: Sequence[Part]) -> Terms:
        """The same in two passes over micro-batches: what they know of the whole, then gradients.

        The second pass repeats the random numbers that the model draws in the first.
        """
        device, states, known = self._model.device, [], []
        for part in parts:
            states.append(_random_state(device))
            with self._autocast():
                known.append(self._of_whole(self._model, *part))
        whole = self._gathered(known)
        found = []
        for number, (part, state) in enumerate(zip(parts, states, strict=True), start=1):
            _set_random_state(state, device)
            with self._gradients_stay(number < len(parts)):
                found.append(self._descend(part, in_parts=True, whole=whole))
        columns = zip(*found, strict=True)
        sums = [self._processes.size * torch.stack(column).sum() for column in columns]
        return type(found[0])(*sums)

    def _gathered(self, known: Sequence[Any]) -> Any:
        """What is known of the parts of a batch, of all of them and over all processes."""
        whole = reduce(add, known)
        return whole if self._processes.group is None else whole.gathered(self._processes.group)

    def _autocast(self) -> torch.autocast:
        # No weight is cast twice in a step, and a cache of casts must not outlive a capture.
        return torch.autocast(
            self._model.device.type, torch.bfloat16, self._execution.amp, cache_enabled=False
        )

    def _gradients_stay(self, stay: bool) -> contextlib.AbstractContextManager[None]:
        """Whether the gradients of a backward pass stay here, to be averaged with later ones."""
        if stay and isinstance(self._objective, DistributedDataParallel):
            return self._objective.no_sync()
        return contextlib.nullcontext()

    def _clip(self) -> None:
        """``clip_grad_norm_``, which would ask the device for the number that λ is."""
        if self._settings.gradient_clip is None:
            return
        gradients = [p.grad for p in self._clipped if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        largest = (self._settings.gradient_clip * self._lam).to(norm.dtype)
        torch._foreach_mul_(gradients, ((norm + 1e-6).reciprocal() * largest).clamp(max=1.0))


class _Objective(nn.Module):
    """The objective as the module that ``DistributedDataParallel`` wraps."""

    def __init__(
        self, model: Autoencoder, objective: Callable[..., Terms], settings: Optimisation
    ) -> None:
        super().__init__()
        self.model = model
        self._objective = objective
        self._invariance = settings.invariance_weight
        self._target = settings.target_weight

    def forward(self, x: Tensor, y: Tensor, noise: Tensor, lam: Tensor, **around: Any) -> Terms:
        return self._objective(
            self.model,
            x,
            y,
            lam,
            self._invariance,
            target_weight=self._target,
            noise=noise,
            **around,
        )


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


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
