"""What works here, and why the rest does not."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

import torch

import stib_fast
from stib_fast import backends


def report() -> dict[str, Any]:
    """Examine backends and environment.

    Returns
    -------
    dict
        ``backends``: name → usable, reason; ``ops``: name → what a call runs on here, by device;
        ``environment``: versions and devices.
    """
    return {
        "backends": {
            "cpp": _compiled("tensor ops", backends.cpp_unusable, ("torch", "compiler")),
            "cpp (smiles)": _compiled("tokeniser", backends.smiles_unusable, ("compiler",)),
            "eager": {"usable": True, "reason": "plain PyTorch and Python, any device"},
            "triton": _triton(),
            "cuda": _cuda(),
        },
        "ops": _ops(),
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
        lines.append(f"{name:12} {mark}  {state['reason']}")
    for part in ("ops", "environment"):
        lines += ["", *(f"{name}: {value}" for name, value in facts[part].items())]
    return "\n".join(lines)


def _compiled(what: str, unusable: str | None, tools: tuple[str, ...]) -> dict[str, Any]:
    record = backends.PACKAGE / "_build.json"
    built = json.loads(record.read_text()) if record.exists() else {}
    known = ", ".join(f"{name} {built[name]}" for name in tools if name in built)
    state = unusable or f"built with {known or 'tools that were not recorded'}"
    return {"usable": unusable is None, "reason": f"{what}: {state}"}


def _triton() -> dict[str, Any]:
    if not backends.TRITON_INSTALLED:
        return {"usable": False, "reason": "triton is not installed (pip install triton)"}
    gpu = _no_gpu()
    return {"usable": gpu is None, "reason": gpu or torch.cuda.get_device_name()}


def _cuda() -> dict[str, Any]:
    gpu = _no_gpu()
    if gpu is None and backends.cuda_unusable is not None:
        gpu = backends.cuda_unusable
    return {
        "usable": gpu is None,
        "reason": gpu or f"tokeniser and d x d step on {torch.cuda.get_device_name()}",
    }


def _no_gpu() -> str | None:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU or driver"
    return None


def _ops() -> dict[str, str]:
    """Name what a call runs on, on the CPU and on a GPU."""
    cpp = "cpp" if backends.cpp_unusable is None else "eager"
    smiles = "cpp" if backends.smiles_unusable is None else "plain Python"
    triton = "triton" if backends.TRITON_INSTALLED else "eager"
    has_cuda = backends.cuda_unusable is None
    cuda = "cuda" if has_cuda else f"{smiles}, through the CPU"
    step = "cuda" if has_cuda else "eager"
    return {
        "gaussian_mi, moments": f"{cpp}; on a GPU {triton}, its d x d step {step}",
        "one_hot": f"{cpp}; on a GPU {triton}",
        "one_hot_conv1d": f"{cpp}; on a GPU {triton}",
        "smiles": f"{smiles}; on a GPU {cuda}",
        "knn_mi": f"{cpp}; on a GPU {triton}",
    }
