"""The artificial experiment: a noisy spiral of which only one direction of x matters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Spiral(NamedTuple):
    """Samples of the artificial experiment.

    Attributes
    ----------
    x : Tensor
        ``[n, 2]``, the input, uniform on ``[-4, 4]²``.
    y : Tensor
        ``[n, 2]``, the target, a noisy point of the spiral.
    t : Tensor
        ``[n]``, the angle of the spiral in radians (the paper's z₀), which ``y`` depends on alone.
    """

    x: Tensor
    y: Tensor
    t: Tensor


def sample(
    n: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Spiral:
    """Draw fresh samples of the paper's artificial data (section 5.1).

    With ε standard normal and b = 10: x is uniform on [0, 1]², times 8, minus 4;
    t = 2 x₀ + x₁ + 0.1 ε; r = 0.05 (t + b t); y = (r cos t, r sin t) + 0.2 ε.

    Parameters
    ----------
    n : int
        Number of samples, at least 1.
    generator : torch.Generator, optional
        Source of randomness. The samples are drawn on its device, so a CPU generator gives the
        same samples whatever ``device`` is. Without one: torch's default generator of ``device``.
    dtype : torch.dtype
        Floating dtype of the result. Everything is drawn and computed in float32 and cast at the
        end, so one seed gives the same samples in every dtype, up to the cast.
    device : torch.device or str, optional
        Device of the result. Default: the generator's device, else torch's default device.

    Returns
    -------
    Spiral
        ``x [n, 2]``, ``y [n, 2]``, ``t [n]``.

    Raises
    ------
    ValueError
        If ``n`` is less than 1 or ``dtype`` is not a real floating dtype.

    Examples
    --------
    >>> x, y, t = sample(3, generator=torch.Generator().manual_seed(0))
    >>> x.shape, y.shape, t.shape
    (torch.Size([3, 2]), torch.Size([3, 2]), torch.Size([3]))
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating dtype, got {dtype}")
    draw_on = device if generator is None else generator.device
    x = 8 * torch.rand(n, 2, generator=generator, dtype=torch.float32, device=draw_on) - 4
    noise = torch.randn(n, 3, generator=generator, dtype=torch.float32, device=draw_on)
    t = 2 * x[:, 0] + x[:, 1] + 0.1 * noise[:, 0]
    radius = 0.05 * (t + 10 * t)
    y = torch.stack([radius * t.cos(), radius * t.sin()], dim=1) + 0.2 * noise[:, 1:]
    to_device = draw_on if device is None else device
    return Spiral(*(part.to(device=to_device, dtype=dtype) for part in (x, y, t)))


class SpiralStream:
    """An endless iterator of fresh batches whose position can be saved and restored bit for bit.

    Parameters
    ----------
    batch_size : int
        Samples per batch, at least 1.
    seed : int
        Seed of the stream's own generator.
    dtype : torch.dtype
        Floating dtype of the batches, see :func:`sample`.
    device : torch.device or str
        Device on which the batches are drawn. The stream of a seed differs between device types.
    share : slice
        Which rows of each batch are returned: those of one process among several.

    Raises
    ------
    ValueError
        If ``batch_size`` is less than 1 or ``dtype`` is not a real floating dtype (at the first
        batch for the dtype).

    Examples
    --------
    >>> stream = SpiralStream(4, seed=0)
    >>> _ = next(stream)
    >>> state = stream.state_dict()
    >>> expected = next(stream)
    >>> stream.load_state_dict(state)
    >>> torch.equal(next(stream).y, expected.y)
    True
    """

    def __init__(
        self,
        batch_size: int,
        seed: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        share: slice = slice(None),
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.dtype = dtype
        self._share = share
        self._generator = torch.Generator(device=device).manual_seed(seed)

    def __iter__(self) -> Iterator[Spiral]:
        return self

    def __next__(self) -> Spiral:
        batch = sample(self.batch_size, generator=self._generator, dtype=self.dtype)
        return Spiral(*(part[self._share] for part in batch))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the generator's state, ``{"generator": uint8 tensor}``, for a checkpoint."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where the stream that gave ``state`` stood.

        Raises
        ------
        ValueError
            If ``state`` has no entry ``"generator"``.
        """
        if "generator" not in state:
            raise ValueError(f"state has no entry 'generator', only {sorted(state)}")
        self._generator.set_state(state["generator"].cpu())
