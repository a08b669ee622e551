"""The SMILES tokeniser in C++ (csrc/smiles)."""

from typing import overload

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

Offsets = NDArray[np.int32] | NDArray[np.int64]

class Strings:
    """Many strings, one a row, and whatever owns their memory."""

    @overload
    def __init__(self, strings: list[str | None], first_row: int = 0) -> None: ...
    @overload
    def __init__(
        self,
        data: Buffer | NDArray[np.uint8],
        offsets: Offsets,
        valid: Buffer | None = None,
        first_bit: int = 0,
    ) -> None: ...
    @overload
    def __init__(self, characters: NDArray[np.uint8] | NDArray[np.uint32]) -> None: ...
    def __len__(self) -> int: ...

class Codec:
    """The table of one vocabulary; a token's place is its id, the first four are special."""

    def __init__(self, tokens: list[str], atom_level: bool) -> None: ...
    def encode(
        self,
        strings: Strings,
        ids: NDArray[np.uint8] | NDArray[np.int16],
        lengths: NDArray[np.int64],
        status: NDArray[np.uint8],
        *,
        bos: bool,
        eos: bool,
        keep_unknown: bool,
        truncate: bool,
        threads: int,
    ) -> None:
        """Fill ids [N, max_length], lengths [N] and status [N] in place."""

    def decode(self, ids: NDArray[np.integer], *, threads: int) -> list[str]:
        """Spell the rows of ids [N, L]; IndexError where one is outside the vocabulary."""

    def table(self) -> bytes:
        """Return the vocabulary as the block that a GPU reads."""

class TokenCounter:
    """How often each token occurs."""

    def __init__(self, atom_level: bool) -> None: ...
    def add(self, strings: Strings, status: NDArray[np.uint8], *, threads: int) -> None:
        """Count the tokens of well-formed strings; fill status [N] in place."""

    def counts(self) -> dict[str, int]: ...
    @property
    def longest(self) -> int: ...

Column = tuple[NDArray[np.int32], NDArray[np.uint8]]

def split_lines(block: bytes) -> tuple[Column, Column]:
    """Offsets and bytes of the first word of each line, and of what follows it."""
