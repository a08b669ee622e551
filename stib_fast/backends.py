"""Which implementation of an op runs: the choice, what is usable here, and why the rest is not.

The backends are ``cpp`` (compiled for the CPU), ``triton`` (for a GPU; on the CPU under Triton's
interpreter) and ``eager`` (plain PyTorch, the same accuracy, any device); ``auto``, the default,
takes the fastest usable one. The choice is plain module state, read once in each call before
autograd records a node, so that forward and backward agree.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

NAMES = ("auto", "cpp", "triton", "eager")
PACKAGE = Path(__file__).parent

# Every op's schema is defined in Python on this library; compiled code only implements them.
LIBRARY = torch.library.Library("stib_fast", "FRAGMENT")


def reason_not_built(part: str) -> str:
    """Tell why a compiled part (``cpp``, ``smiles``, ``cuda``) is not there, as the build noted."""
    record = PACKAGE / "_build.json"
    reason = json.loads(record.read_text()).get(part) if record.exists() else None
    return "not built" if reason in (None, "built") else reason


def _load_library(part: str, path: Path) -> str | None:
    """Load a library of compiled kernels; the reason where that is not possible."""
    if not path.exists():
        return reason_not_built(part)
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} does not load in torch {torch.__version__}: {error}"
    return None


def _import_smiles() -> str | None:
    """Import the compiled tokeniser; the reason where that is not possible."""
    try:
        import stib_fast._smiles  # noqa: F401
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            return reason_not_built("smiles")
        return f"it does not load: {error}"
    return None


cpp_unusable: str | None = _load_library("cpp", PACKAGE / "_cpu.so")
cuda_unusable: str | None = _load_library("cuda", PACKAGE / "_cuda.so")
smiles_unusable: str | None = _import_smiles()
TRITON_INSTALLED = find_spec("triton") is not None
INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") == "1"
_choice: str = os.environ.get("STIB_FAST_BACKEND", "auto")  # checked at the first call
_fallback_told = False


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the ops inside the block on one backend.

    The environment variable ``STIB_FAST_BACKEND`` sets the choice for a whole process.

    Parameters
    ----------
    name : {"auto", "cpp", "triton", "eager"}
        A backend asked for by name raises where it is not usable; ``"auto"`` falls back to eager
        and says so once. An op that has no such backend at all chooses as under ``"auto"``.

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


def backend_for(
    device: torch.device, offered: Collection[str] = ("cpp",), part: str = "cpp"
) -> str:
    """Name the backend that a call on `device` runs on: ``"eager"`` or one of those `offered`.

    Parameters
    ----------
    device : torch.device
    offered : collection of str
        The op's backends beside eager, the preferred first.
    part : {"cpp", "smiles"}
        The compiled part that holds the op's ``cpp`` backend.

    Raises
    ------
    RuntimeError
        If the backend asked for by name is not usable.
    """
    if _choice == "eager":
        return "eager"
    if _choice not in NAMES:
        raise ValueError(f"STIB_FAST_BACKEND must be one of {', '.join(NAMES)}; got {_choice!r}")
    if _choice in offered:
        reason = unusable(_choice, device, part)
        if reason is not None:
            raise RuntimeError(
                f"backend {_choice!r} is not usable: {reason}. `stib doctor` tells more."
            )
        return _choice
    for name in offered:
        # Triton's interpreter is for tests: on the CPU it runs only where it is asked for.
        if unusable(name, device, part) is None and (name, device.type) != ("triton", "cpu"):
            return name
    compiled = "cpp" in offered and device.type == "cpu"
    if compiled and not _fallback_told and not torch.compiler.is_compiling():
        _tell_fallback(part)
    return "eager"


def unusable(name: str, device: torch.device, part: str = "cpp") -> str | None:
    """Tell why ``"cpp"`` or ``"triton"`` cannot run on `device`; None where it can."""
    if name == "cpp":
        if device.type != "cpu":
            return f"it runs on the CPU, not on {device}"
        return smiles_unusable if part == "smiles" else cpp_unusable
    if not TRITON_INSTALLED:
        return "triton is not installed (pip install triton)"
    if device.type == "cpu" and not INTERPRETING:
        return "it runs on a GPU; on the CPU only under TRITON_INTERPRET=1, for tests"
    if device.type not in ("cpu", "cuda"):
        return f"it runs on a GPU of NVIDIA or AMD, not on {device}"
    return None


def _tell_fallback(part: str) -> None:
    global _fallback_told
    _fallback_told = True
    warnings.warn(
        f"stib_fast runs on eager PyTorch: the C++ library is "
        f"{smiles_unusable if part == 'smiles' else cpp_unusable}. "
        "`stib doctor` tells more.",
        stacklevel=5,  # the line that called functional
    )
