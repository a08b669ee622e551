"""Fast, exact mutual-information kernels for deep learning, and STIB (Wieser et al. 2020)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from stib_fast import functional, nn
from stib_fast.backends import backend
from stib_fast.moments import Moments

if TYPE_CHECKING:
    from pathlib import Path

    from stib_fast.training import Trained

try:
    __version__ = version("stib_fast")
except PackageNotFoundError:  # a source tree on the path, never installed
    __version__ = "0+unknown"

__all__ = ["Moments", "__version__", "backend", "functional", "load", "nn"]


def load(folder: str | Path) -> Trained:
    """Load the model of a run folder, with ``encode`` and ``predict``.

    See `stib_fast.training.Trained`. Training is imported at the first call, not with the package.
    """
    from stib_fast.training import load as load_run

    return load_run(folder)
