"""Batches of a data set in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor


class Rows(Protocol):
    """Rows that can be gathered: a tensor, or what reads them from elsewhere."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Return the rows of these numbers, int64 [n]."""
        ...


class ShuffledBatches:
    """An endless iterator over batches, a new order each epoch, that resumes bit for bit.

    The last rows of an epoch that fill no batch are left out of it.

    Parameters
    ----------
    *parts : Rows
        Tensors, or other `Rows`; of the same number of rows.
    batch_size : int
    seed : int
        Of the order.
    device : torch.device or str
        Where the order is drawn; `parts` are gathered by numbers that lie there. The orders of a
        seed differ between device types.
    share : slice
        Which rows of each batch are gathered: those of one process among several.

    Raises
    ------
    ValueError
        If there are fewer rows than `batch_size`.

    Examples
    --------
    >>> batches = ShuffledBatches(torch.arange(4), batch_size=2, seed=0)
    >>> sorted(torch.cat([next(batches)[0], next(batches)[0]]).tolist())
    [0, 1, 2, 3]
    """

    def __init__(
        self,
        *parts: Rows,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        share: slice = slice(None),
    ) -> None:
        rows = len(parts[0])
        if not 1 <= batch_size <= rows:
            raise ValueError(f"batch_size must lie between 1 and the {rows} rows; got {batch_size}")
        self.parts = parts
        self.batch_size = batch_size
        self._share = share
        self._generator = torch.Generator(device).manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64, device=device)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def __next__(self) -> tuple[Tensor, ...]:
        if len(self._order) < self.batch_size:
            self._order = torch.randperm(
                len(self.parts[0]), generator=self._generator, device=self._generator.device
            )
        rows, self._order = self._order.split([self.batch_size, len(self._order) - self.batch_size])
        return tuple(part[rows[self._share]] for part in self.parts)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is left of the epoch and the generator's state."""
        return {"order": self._order.clone(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where the iterator that gave `state` stood."""
        self._order = state["order"].to(self._generator.device)
        self._generator.set_state(state["generator"].cpu())
