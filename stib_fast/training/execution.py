"""Where and how the steps of a training run; what they compute is `Optimisation`'s."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass, replace
from typing import Literal

import torch


@dataclass(frozen=True)
class Execution:
    """Where and how the training steps run.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
        ``"auto"``: the GPU where one is usable, else the CPU. Random numbers differ between them.
    amp : bool
        Matrix products in bfloat16 (``torch.autocast``). Weights, the latent variable and the
        losses stay float32, the sums of the mutual information float64.
    compile : bool
        ``torch.compile`` of the objective.
    cuda_graph : bool
        Replay the whole step as one CUDA graph; it computes what the step does without.
    micro_batch : int or None
        At most so many rows of a process's share of a batch are in the networks at once. The step
        is that of the whole batch, in two passes and the memory of one micro-batch.

    Examples
    --------
    >>> Execution(device="cpu", amp=True).resolved().device
    'cpu'
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: bool = False
    compile: bool = False
    cuda_graph: bool = False
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1; got {self.micro_batch}")
        if self.micro_batch is not None and self.cuda_graph:
            raise ValueError("a CUDA graph (--cuda-graph) is of one pass: drop --micro-batch")

    def resolved(self) -> Execution:
        """Return the same with the device that ``"auto"`` means here.

        Raises
        ------
        ValueError
            If a GPU is asked for, or needed, that is not there.
        """
        usable = torch.cuda.is_available()
        if self.device == "cuda" and not usable:
            raise ValueError(
                f"device is 'cuda', but torch {torch.__version__} finds no GPU here; "
                "`stib doctor` tells more"
            )
        device = self.device
        if device == "auto":
            device = "cuda" if usable else "cpu"
        if self.cuda_graph and device != "cuda":
            raise ValueError(
                f"a CUDA graph (--cuda-graph) needs a GPU, but the device is the {device.upper()}"
            )
        return replace(self, device=device)


def peak_memory(device: torch.device) -> int:
    """Bytes that this process held at most: of a GPU those of its tensors, of a CPU all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
