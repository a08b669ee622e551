"""New memory holds NaN, or integers that no result holds: what a kernel leaves unwritten shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(make: Any) -> Any:
        def made(*arguments: Any, **options: Any) -> Tensor:
            new = make(*arguments, **options)
            return new.fill_(torch.nan if new.is_floating_point() else 111)

        return made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
