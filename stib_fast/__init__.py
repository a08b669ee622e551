"""Fast, exact mutual-information kernels for deep learning, and STIB (Wieser et al. 2020)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from stib_fast import functional, nn
from stib_fast.backends import backend
from stib_fast.moments import Moments

if TYPE_CHECKING:
    from pathlib import Path

    from stib_fast.generation import GenerativeModel

try:
    __version__ = version("stib_fast")
except PackageNotFoundError:  # a source tree on the path, never installed
    __version__ = "0+unknown"

__all__ = ["Moments", "__version__", "backend", "functional", "load", "nn"]


def load(folder: str | Path) -> GenerativeModel:
    """Load the model of a run, trained or in training, with ``encode``, ``predict``, ``generate``.

    Training is imported at the first call, not with the package.

    Parameters
    ----------
    folder : str or Path
        A run folder.

    Returns
    -------
    stib_fast.generation.GenerativeModel

    Raises
    ------
    ValueError
        If the folder is no run, has no checkpoint, or a damaged one.
    """
    from stib_fast import generation

    return generation.load(folder)
