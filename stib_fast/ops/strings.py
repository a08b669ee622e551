"""The forms in which a caller may pass many strings, each read without copying them one by one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from stib_fast import _smiles


class Strings(Protocol):
    """Many strings, one a row; a missing one is None."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def text(self, row: int) -> str | None:
        """Return one row; what is not UTF-8 in it is replaced."""
        ...

    def compiled(self) -> _smiles.Strings:
        """Return the rows as the compiled tokeniser reads them."""
        ...


def strings_of(smiles: Any, first_row: int = 0) -> list[Strings]:
    """Recognise the form of many strings.

    Parameters
    ----------
    smiles : list of str, NumPy array, Arrow array, or any other iterable of str
        NumPy's fixed-width ``U`` and ``S`` types and Arrow's arrays (pyarrow, chunked or not, and
        whatever speaks Arrow's PyCapsule protocol, as pandas and polars do) are read in place.
        None and NaN are missing strings, and so is what a masked array masks.
    first_row : int
        Number of the first row, for messages.

    Returns
    -------
    list of Strings
        One for each chunk of an Arrow array, in order; one for any other form.

    Raises
    ------
    ValueError
        One string in place of many, an array of another shape or type.

    Examples
    --------
    >>> [strings] = strings_of(np.array(["C", "CO"]))
    >>> len(strings), strings.text(1)
    (2, 'CO')
    """
    if isinstance(smiles, (str, bytes)):
        raise ValueError(
            "smiles must be a list of strings, not one string (a file is given as a pathlib.Path)"
        )
    if isinstance(smiles, np.ndarray):
        return [_of_array(smiles, first_row)]
    if hasattr(smiles, "__arrow_c_stream__") or hasattr(smiles, "__arrow_c_array__"):
        return [ArrowStrings(chunk) for chunk in _chunks(smiles)]
    if not isinstance(smiles, Iterable):
        raise ValueError(f"smiles must be strings, not {type(smiles).__name__}")
    return [PythonStrings(smiles, first_row)]


class PythonStrings:
    """Strings one by one; they are copied into a list that nobody else can change.

    Examples
    --------
    >>> PythonStrings(["C", None]).text(0)
    'C'
    """

    def __init__(self, strings: Iterable[Any], first_row: int = 0) -> None:
        self._strings = list(strings)
        self._first_row = first_row

    def __len__(self) -> int:
        return len(self._strings)

    def text(self, row: int) -> str | None:
        """Return one row."""
        text = self._strings[row]
        if isinstance(text, float) and math.isnan(text):
            return None
        if text is not None and not isinstance(text, str):
            raise ValueError(f"row {self._first_row + row}: expected a SMILES string, not {text!r}")
        return text

    def compiled(self) -> _smiles.Strings:
        """Return the rows as the compiled tokeniser reads them."""
        from stib_fast import _smiles

        return _smiles.Strings(self._strings, self._first_row)


class FixedWidthStrings:
    """A NumPy array of type ``U`` or ``S``, shape [N].

    Examples
    --------
    >>> FixedWidthStrings(np.array([b"C"])).text(0)
    'C'
    """

    def __init__(self, strings: NDArray[Any]) -> None:
        self._strings = np.require(strings, strings.dtype.newbyteorder("="), ["C", "ALIGNED"])

    def __len__(self) -> int:
        return len(self._strings)

    def text(self, row: int) -> str:
        """Return one row."""
        text = self._strings[row]
        return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)

    def compiled(self) -> _smiles.Strings:
        """Return the rows as the compiled tokeniser reads them."""
        from stib_fast import _smiles

        kind = np.uint32 if self._strings.dtype.kind == "U" else np.uint8
        rows = len(self._strings)
        if self._strings.nbytes == 0:
            return _smiles.Strings(np.zeros((rows, 0), kind))
        return _smiles.Strings(self._strings.view(kind).reshape(rows, -1))


class ArrowStrings:
    """An Arrow array of type string or large_string."""

    def __init__(self, strings: Any) -> None:
        self._strings = strings

    def __len__(self) -> int:
        return len(self._strings)

    def text(self, row: int) -> str | None:
        """Return one row."""
        buffer = self._strings[row].as_buffer()
        return None if buffer is None else bytes(buffer).decode("utf-8", "replace")

    def compiled(self) -> _smiles.Strings:
        """Return the rows as the compiled tokeniser reads them."""
        import pyarrow

        from stib_fast import _smiles

        valid, offsets, data = self._strings.buffers()
        rows, first = len(self._strings), self._strings.offset
        if rows == 0:
            return _smiles.Strings([])
        kind = np.int64 if pyarrow.types.is_large_string(self._strings.type) else np.int32
        places = np.frombuffer(offsets, kind)[first : first + rows + 1]
        places = np.require(places, requirements=["ALIGNED"])
        return _smiles.Strings(b"" if data is None else data, places, valid, first)


class ByteStrings:
    """Bytes end to end, row i in ``data[offsets[i]:offsets[i + 1]]``, as tensors on the CPU.

    Examples
    --------
    >>> import torch
    >>> data = torch.frombuffer(bytearray(b"CCO"), dtype=torch.uint8)
    >>> ByteStrings(data, torch.tensor([0, 1, 3])).text(1)
    'CO'
    """

    def __init__(self, data: Tensor, offsets: Tensor) -> None:
        self._data = data.numpy()
        self._offsets = offsets.numpy()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def text(self, row: int) -> str:
        """Return one row."""
        begin, end = self._offsets[row : row + 2]
        return bytes(self._data[begin:end]).decode("utf-8", "replace")

    def compiled(self) -> _smiles.Strings:
        """Return the rows as the compiled tokeniser reads them."""
        from stib_fast import _smiles

        return _smiles.Strings(self._data, self._offsets)


def _of_array(strings: NDArray[Any], first_row: int) -> Strings:
    if strings.ndim != 1:
        raise ValueError(f"smiles must be an array [N], not {list(strings.shape)}")
    if strings.dtype.kind in "US" and not isinstance(strings, np.ma.MaskedArray):
        return FixedWidthStrings(strings)
    if strings.dtype.kind in "USOT":  # T: NumPy 2's strings of any width
        return PythonStrings(strings.tolist(), first_row)
    raise ValueError(f"smiles must be an array of strings, not of {strings.dtype}")


def _chunks(strings: Any) -> list[Any]:
    import pyarrow

    if isinstance(strings, (pyarrow.Array, pyarrow.ChunkedArray)):
        array = strings
    elif hasattr(strings, "__arrow_c_stream__"):
        array = pyarrow.chunked_array(strings)
    else:
        array = pyarrow.array(strings)
    types = pyarrow.types
    if types.is_string(array.type) or types.is_large_string(array.type):
        pass
    elif (
        types.is_string_view(array.type)
        or types.is_null(array.type)
        or (types.is_dictionary(array.type) and types.is_string(array.type.value_type))
    ):
        array = array.cast(pyarrow.large_string())
    else:
        raise ValueError(f"smiles must be an Arrow array of strings, not of {array.type}")
    return array.chunks if isinstance(array, pyarrow.ChunkedArray) else [array]
