"""`Moments`: what Gaussian mutual information needs to know of a sample, and how samples add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from stib_fast.archives import load_arrays, save_arrays

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

FLOAT64 = {np.dtype(np.float64)}
KIND = "moments of stib_fast, version 1"
DTYPES = {
    str(dtype): dtype for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
}


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter matrix of a sample of d columns in several parts.

    The moments of a union of samples are the sum ``a + b`` (Chan, Golub & LeVeque 1979),
    differentiable like everything here, and ``sum(...)`` adds up any number.
    `stib_fast.functional.moments` makes them of tensors, `stib_fast.data.stream_moments` of a
    stream of batches.

    Parameters
    ----------
    count : Tensor
        Number of rows, or the sum of their weights; 0-dim float64.
    mean : Tensor
        Column means, [d] float64.
    scatter : Tensor
        Σ w (x - mean)(x - mean)ᵀ, [d, d] float64.
    sizes : tuple of int
        Columns of each part; they sum to d.
    dtype : torch.dtype
        Of the sample: the rounding below which a column counts as constant.

    Examples
    --------
    >>> import torch
    >>> from stib_fast import functional as F
    >>> x = torch.arange(12.0).reshape(6, 2) ** 2
    >>> whole, sum_of_halves = F.moments(x), F.moments(x[:2]) + F.moments(x[2:])
    >>> torch.allclose(whole.scatter, sum_of_halves.scatter)
    True
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor
    sizes: tuple[int, ...]
    dtype: torch.dtype

    def __add__(self, other: Moments) -> Moments:
        if self.sizes != other.sizes or self.dtype != other.dtype:
            raise ValueError(
                f"moments of parts {self.sizes} {self.dtype} and {other.sizes} {other.dtype} "
                "do not describe the same variables"
            )
        pairs = zip(self._values(), other._values(), strict=True)
        return self._union(*(torch.stack(pair) for pair in pairs))

    def __radd__(self, start: int) -> Moments:
        return self if start == 0 else NotImplemented  # 0: where `sum` begins

    def save(self, path: str | Path) -> None:
        """Write them to a file, which is there as a whole or not at all.

        Parameters
        ----------
        path : str or Path
            The content is that of an ``.npz`` file, whatever the name. Gradients and the device are
            not kept.

        Raises
        ------
        OSError
            It cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> from stib_fast import functional as F
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     F.moments(torch.tensor([[1.0], [3.0]])).save(f"{folder}/0.moments")
        ...     F.moments(torch.tensor([[8.0]])).save(f"{folder}/1.moments")
        ...     whole = sum(Moments.load(f"{folder}/{k}.moments") for k in range(2))
        >>> whole.count.item(), whole.mean.item()
        (3.0, 4.0)
        """
        save_arrays(path, KIND, as_arrays(self))

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """Read what `save` wrote, bit for bit, onto the CPU; nothing in the file is executed.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            It is damaged, or holds something else.
        """
        return from_arrays(path, load_arrays(path, KIND))

    def gathered(self, group: ProcessGroup) -> Moments:
        """Moments of the sample whose rows are spread over the processes of a group.

        One ``all_gather`` of 1 + d + d² float64 numbers a process. Every process merges them in the
        order of the ranks: the same bits on each, from run to run. A process may hold no rows.

        Every process must call this, and use the result alike. Gradients are those of its own rows,
        times the number of processes: the mean over them, which ``DistributedDataParallel`` takes,
        then is the gradient of the whole. Second derivatives hold the other processes' rows fixed.

        Parameters
        ----------
        group : torch.distributed.ProcessGroup
            ``torch.distributed.group.WORLD`` for all processes.

        Returns
        -------
        Moments

        Examples
        --------
        >>> import tempfile, torch.distributed as dist
        >>> from stib_fast import functional as F
        >>> store = dist.FileStore(tempfile.mktemp(), 1)
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> F.moments(torch.tensor([[1.0], [3.0]])).gathered(dist.group.WORLD).mean.item()
        2.0
        >>> dist.destroy_process_group()
        """
        d, size = len(self.mean), dist.get_world_size(group)
        count, mean, scatter = self._values()
        own = torch.cat([count.reshape(1), mean, scatter.flatten()])
        if own.requires_grad:
            own.register_hook(lambda gradient: gradient * size)
        everyone = [torch.empty_like(own) for _ in range(size)]
        dist.all_gather(everyone, own.detach(), group=group)
        everyone[dist.get_rank(group)] = own
        counts, means, scatters = torch.stack(everyone).split([1, d, d * d], dim=1)
        return self._union(counts[:, 0], means, scatters.reshape(size, d, d))

    def _values(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.count, self.mean, self.scatter

    def _union(self, counts: Tensor, means: Tensor, scatters: Tensor) -> Moments:
        """The moments of k samples of these variables, whose own [k, ...] are given."""
        count = counts.sum()
        # Means are taken from that of a sample with rows: an offset then costs no digits.
        origin = means.index_select(0, counts.argmax().reshape(1))
        weights = (counts / torch.where(count > 0, count, 1.0))[:, None]
        shift = (weights * (means - origin)).sum(0)
        steps = means - origin - shift
        between = (counts[:, None] * steps).mT @ steps
        return Moments(
            count=count,
            mean=origin[0] + shift,
            scatter=scatters.sum(0) + between,
            sizes=self.sizes,
            dtype=self.dtype,
        )


def as_arrays(moments: Moments) -> dict[str, NDArray[Any]]:
    """Give the entries of a file, which `from_arrays` reads."""
    count, mean, scatter = (value.detach().cpu().numpy() for value in moments._values())
    sizes, dtype = np.array(moments.sizes), np.array(str(moments.dtype))
    return {"count": count, "mean": mean, "scatter": scatter, "sizes": sizes, "dtype": dtype}


def from_arrays(path: str | Path, arrays: Mapping[str, NDArray[Any]]) -> Moments:
    """Read the entries of a file, which messages name.

    Raises
    ------
    ValueError
        Some are missing, or do not fit each other.
    """
    try:
        count, mean, scatter = (arrays[name] for name in ("count", "mean", "scatter"))
        sizes, dtype = arrays["sizes"].tolist(), DTYPES[arrays["dtype"].item()]
        d = sum(sizes)
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: damaged: {error!r}") from error
    shapes = [value.shape for value in (count, mean, scatter)]
    if shapes != [(), (d,), (d, d)] or {v.dtype for v in (count, mean, scatter)} != FLOAT64:
        raise ValueError(f"{path}: damaged: count, mean and scatter do not fit {sizes} columns")
    return Moments(
        count=torch.from_numpy(count),
        mean=torch.from_numpy(mean),
        scatter=torch.from_numpy(scatter),
        sizes=tuple(sizes),
        dtype=dtype,
    )
