"""Fast, exact mutual-information kernels for deep learning, and STIB (Wieser et al. 2020)."""

from importlib.metadata import PackageNotFoundError, version

from stib_fast import functional, nn
from stib_fast.backends import backend
from stib_fast.moments import Moments

try:
    __version__ = version("stib_fast")
except PackageNotFoundError:  # a source tree on the path, never installed
    __version__ = "0+unknown"

__all__ = ["Moments", "__version__", "backend", "functional", "nn"]
