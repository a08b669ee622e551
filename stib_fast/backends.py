"""Which implementation of an op runs: the choice, what is usable here, and why the rest is not.

Three backends have names: ``cpp`` (the compiled CPU library), ``eager`` (plain PyTorch, the same
accuracy, any device) and ``auto`` (the default: the fastest usable one). The choice is plain module
state, read once in each call before autograd records a node, so that forward and backward agree.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

NAMES = ("auto", "cpp", "eager")
PACKAGE = Path(__file__).parent

# Every op's schema is defined in Python on this library; compiled code only implements them.
LIBRARY = torch.library.Library("stib_fast", "FRAGMENT")


def _load_cpu_library() -> str | None:
    """Load the compiled CPU kernels; the reason where that is not possible."""
    path = PACKAGE / "_cpu.so"
    if not path.exists():
        record = PACKAGE / "_build.json"
        return json.loads(record.read_text())["cpp"] if record.exists() else "not built"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} does not load in torch {torch.__version__}: {error}"
    return None


cpp_unusable: str | None = _load_cpu_library()
_choice: str = os.environ.get("STIB_FAST_BACKEND", "auto")  # checked at the first call
_fallback_told = False


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the ops inside the block on one backend.

    The environment variable ``STIB_FAST_BACKEND`` sets the choice for a whole process.

    Parameters
    ----------
    name : {"auto", "cpp", "eager"}
        A backend asked for by name raises where it is not usable; ``"auto"`` falls back to eager
        and says so once.

    Examples
    --------
    >>> import torch, stib_fast
    >>> z, y = torch.randn(100, 2), torch.randn(100, 3)
    >>> with stib_fast.backend("eager"):
    ...     value = stib_fast.functional.gaussian_mi(z, y)
    >>> bool(torch.isclose(value, stib_fast.functional.gaussian_mi(z, y)))
    True
    """
    global _choice
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}; got {name!r}")
    previous, _choice = _choice, name
    try:
        yield
    finally:
        _choice = previous


def backend_for(device: torch.device) -> str:
    """Name the backend, ``"cpp"`` or ``"eager"``, that a call on `device` runs on.

    Raises
    ------
    RuntimeError
        If the backend asked for by name is not usable.
    """
    if _choice == "eager":
        return "eager"
    if _choice not in NAMES:
        raise ValueError(f"STIB_FAST_BACKEND must be one of {', '.join(NAMES)}; got {_choice!r}")
    if device.type == "cpu" and cpp_unusable is None:
        return "cpp"
    if _choice == "cpp":
        reason = cpp_unusable if device.type == "cpu" else f"it runs on the CPU, not on {device}"
        raise RuntimeError(f"backend 'cpp' is not usable: {reason}. `stib doctor` tells more.")
    if device.type == "cpu" and not _fallback_told and not torch.compiler.is_compiling():
        _tell_fallback()
    return "eager"


def _tell_fallback() -> None:
    global _fallback_told
    _fallback_told = True
    warnings.warn(
        f"stib_fast runs on eager PyTorch: the C++ library is {cpp_unusable}. "
        "`stib doctor` tells more.",
        stacklevel=5,  # the line that called functional
    )
