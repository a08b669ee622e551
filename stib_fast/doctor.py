"""What works here, and why the rest does not."""

from __future__ import annotations

import json
import os
import platform
from importlib.util import find_spec
from typing import Any

import torch

import stib_fast
from stib_fast import backends

NO_GPU_BACKEND = "no GPU kernels in this version: a GPU tensor runs on eager PyTorch"


def report() -> dict[str, Any]:
    """Examine backends and environment.

    Returns
    -------
    dict
        ``backends``: name → usable, reason; ``environment``: versions and devices.
    """
    build = backends.PACKAGE / "_build.json"
    built = json.loads(build.read_text()) if build.exists() else {"cpp": "no record of a build"}
    return {
        "backends": {
            "cpp": {
                "usable": backends.cpp_unusable is None,
                "reason": backends.cpp_unusable or f"built with {_built_with(built)}",
            },
            "eager": {"usable": True, "reason": "plain PyTorch, any device"},
            "triton": {"usable": False, "reason": _triton()},
            "cuda": {"usable": False, "reason": _cuda()},
        },
        "ops": {
            "gaussian_mi, moments": "cpp" if backends.cpp_unusable is None else "eager",
            "knn_mi": "scipy's k-d tree",
            "smiles": "eager (plain Python)",
        },
        "environment": {
            "stib_fast": stib_fast.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "torch": torch.__version__,
            "STIB_FAST_BACKEND": os.environ.get("STIB_FAST_BACKEND", "not set"),
            "threads": torch.get_num_threads(),
            "cpu capability (torch)": torch.backends.cpu.get_cpu_capability(),
        },
    }


def text(facts: dict[str, Any]) -> str:
    """Write a report for reading."""
    lines = []
    for name, state in facts["backends"].items():
        mark = "usable    " if state["usable"] else "not usable"
        lines.append(f"{name:8} {mark}  {state['reason']}")
    for part in ("ops", "environment"):
        lines += ["", *(f"{name}: {value}" for name, value in facts[part].items())]
    return "\n".join(lines)


def _built_with(built: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in built.items() if name != "cpp")


def _triton() -> str:
    if find_spec("triton") is None:
        return f"triton is not installed; {NO_GPU_BACKEND}"
    return f"triton is installed; {NO_GPU_BACKEND}"


def _cuda() -> str:
    if torch.version.cuda is None:
        return f"this torch is built without CUDA; {NO_GPU_BACKEND}"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU or driver; {NO_GPU_BACKEND}"
    return f"{torch.cuda.get_device_name()}; {NO_GPU_BACKEND}"
