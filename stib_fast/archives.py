"""Named arrays in one ``.npz`` file: written as a whole, read without executing anything."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray


def save_arrays(path: str | Path, kind: str, arrays: Mapping[str, Any]) -> None:
    """Write arrays beside their place (``.new``) and move them there: never half a file.

    Parameters
    ----------
    path : str or Path
        Any name; the content is that of an ``.npz`` file.
    kind : str
        What the file holds, which `load_arrays` asks for.
    arrays : mapping of str to array_like
        Numbers and strings.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_arrays(Path(folder) / "a", "point", {"x": 1.5})
    ...     load_arrays(Path(folder) / "a", "point")
    {'x': array(1.5)}
    """
    path = Path(path)
    beside = path.with_name(path.name + ".new")
    try:
        with beside.open("wb") as file:
            np.savez(file, kind=np.array(kind), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def load_arrays(path: str | Path, kind: str) -> dict[str, NDArray[Any]]:
    """Read what `save_arrays` wrote.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is damaged, or of another kind.
    """
    with open_npz(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    found = arrays.pop("kind", None)
    if found is None or found.shape or found.item() != kind:
        raise ValueError(f"{path}: holds no {kind}")
    return arrays


@contextmanager
def open_npz(path: str | Path) -> Iterator[Any]:
    """Open an ``.npz`` file; what goes wrong in the block is the file's.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is damaged, no ``.npz`` file, or holds an array of objects.
    """
    # Of the same damage zipfile, zlib and NumPy's header parser each raise errors of their own.
    kinds = (ValueError, TypeError, AttributeError, EOFError, RuntimeError, SyntaxError)
    try:
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except OSError as error:
        if error.filename is not None:  # it was not opened
            raise
        raise ValueError(f"{path}: not a readable npz file ({error})") from error
    except (*kinds, KeyError, BadZipFile, zlib.error, struct.error) as error:
        raise ValueError(f"{path}: not a readable npz file ({error})") from error
