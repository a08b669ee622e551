"""Checkpoints: everything a killed run needs to continue bit for bit on the same machine."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

VERSION = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint beside its place and move it there: the old one stays until then."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        torch.save({"version": VERSION, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises
    ------
    ValueError
        If there is none, or it is damaged or of an unknown version.
    """
    if not path.exists():
        raise ValueError(f"{path}: no checkpoint; the run stopped before its first one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: not a readable checkpoint ({error})".splitlines()[0]) from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise ValueError(f"{path}: not a checkpoint of version {VERSION} of this library")
    return state


def load_weights(model: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Give a model the weights of a checkpoint.

    Raises
    ------
    ValueError
        If they are those of other networks.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not fit the networks that config.yaml names: the run was trained by "
            "another version of stib_fast, see run.json, or one of the two files was replaced"
        ) from error
