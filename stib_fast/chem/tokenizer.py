"""SMILES strings to padded token ids under one vocabulary, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stib_fast.chem.files import read_batches
from stib_fast.chem.vocabulary import Vocabulary
from stib_fast.ops.smiles import (
    Encoded,
    EncodedRows,
    OnOverflow,
    OnUnknown,
    Settings,
    decode,
    encode,
    encode_bytes,
)
from stib_fast.ops.strings import Strings, strings_of


@dataclass(frozen=True)
class SmilesTokenizer:
    """Encode and decode SMILES with a vocabulary.

    Parameters
    ----------
    vocabulary : Vocabulary
        Tokens and their ids.
    max_length : int
        Columns of the id table; bos and eos count.
    on_unknown : {"error", "unk", "drop"}
        What happens to a token outside the vocabulary: an error, the id of "unknown", or the whole
        string is left out. "drop" also leaves out malformed and missing strings; the other two
        refuse them.
    on_overflow : {"error", "truncate", "drop"}
        What happens to a string with too many tokens. "truncate" keeps its first tokens and eos.
    bos, eos : bool
        Whether rows begin with bos and end with eos.

    Raises
    ------
    ValueError
        An unknown policy, or a `max_length` without room for a single token.

    Examples
    --------
    >>> tokenizer = SmilesTokenizer(Vocabulary.from_smiles(["CCl", "CO"]), max_length=4)
    >>> ids, lengths, rows = tokenizer.encode(["OCCl", "C"])
    >>> ids.tolist(), lengths.tolist(), rows.tolist()
    ([[6, 4, 5, 2], [4, 2, 0, 0]], [4, 2], [0, 1])
    >>> tokenizer.decode(ids)
    ['OCCl', 'C']
    """

    vocabulary: Vocabulary
    max_length: int
    on_unknown: OnUnknown = "error"
    on_overflow: OnOverflow = "error"
    bos: bool = False
    eos: bool = True

    def __post_init__(self) -> None:
        self._settings()

    def encode(self, smiles: Any, column: str = "smiles") -> Encoded:
        """Turn strings into ids.

        Parameters
        ----------
        smiles : list of str, NumPy array, Arrow array, or path
            The strings, one a row: a list or other iterable of str, a NumPy array of type ``U`` or
            ``S``, an Arrow array (pyarrow, pandas, polars), read in place; or a `pathlib.Path` to a
            ``.smi``, ``.csv``, ``.csv.gz`` or ``.parquet`` file, read in blocks.
        column : str
            Where the strings are in a file.

        Returns
        -------
        Encoded
            ids (uint8, or int16 above 256 tokens) [N, max_length] padded with 0, lengths (int64)
            [N] with bos and eos, rows (int64) [N]: the input rows that were kept.

        Raises
        ------
        ValueError
            One string in place of a list, a file or column that cannot be read, and whatever the
            policies refuse, with row (from 0; in a file from 1), token and column (from 1).
        OSError
            The file cannot be opened.
        """
        if isinstance(smiles, Path):
            return self._encode_file(smiles, column)
        return self.encode_each(smiles).kept()

    def encode_each(self, smiles: Any, first_row: int = 0) -> EncodedRows:
        """Turn strings into ids and leave no row out: its `Status` says what became of it.

        Parameters
        ----------
        smiles : list of str, NumPy array or Arrow array
            As in `encode`.
        first_row : int
            Number of the first row, for messages.

        Returns
        -------
        EncodedRows
            ids [N, max_length] and lengths [N] (pad and 0 where a row was not kept), and status
            (uint8) [N].

        Raises
        ------
        ValueError
            As `encode`: a policy of "error" is one.

        Examples
        --------
        >>> vocabulary = Vocabulary.from_smiles(["CO"])
        >>> tokenizer = SmilesTokenizer(vocabulary, 3, on_unknown="drop", on_overflow="drop")
        >>> tokenizer.encode_each(["C", "N", "COC", "C[", None]).status
        tensor([0, 2, 3, 1, 4], dtype=torch.uint8)
        """
        return encode(strings_of(smiles, first_row), self._settings(), first_row)

    def encode_bytes(self, data: Tensor, offsets: Tensor) -> Encoded:
        """Turn bytes that are on the CPU or a GPU into ids there.

        Parameters
        ----------
        data : Tensor
            uint8, shape [M]: the strings end to end.
        offsets : Tensor
            int32 or int64, shape [N + 1]: row i is ``data[offsets[i]:offsets[i + 1]]``.

        Returns
        -------
        Encoded
            On the device of `data`.

        Raises
        ------
        ValueError
            As `encode`; arguments of another type, shape or device; offsets that do not ascend
            within the data.

        Examples
        --------
        >>> import torch
        >>> tokenizer = SmilesTokenizer(Vocabulary.from_smiles(["CO"]), max_length=3)
        >>> data = torch.frombuffer(bytearray(b"COC"), dtype=torch.uint8)
        >>> tokenizer.encode_bytes(data, torch.tensor([0, 2, 3])).ids.tolist()
        [[4, 5, 2], [4, 2, 0]]
        """
        return encode_bytes(data, offsets, self._settings()).kept()

    def decode(self, ids: Tensor) -> list[str]:
        """Turn ids (any integer dtype, [N, L]) into N strings: up to eos, without pad and bos.

        An unknown token is written ``<unk>``, which no SMILES parser accepts.

        Raises
        ------
        ValueError
            `ids` is not a table of integers, or holds an id outside the vocabulary.
        """
        return decode(ids, self.vocabulary.tokens)

    def _encode_file(self, path: Path, column: str) -> Encoded:
        kept = []
        first_row = 0
        try:
            for strings in _strings_of_file(path, column):
                # Messages count a file's records from 1, as its readers do.
                ids, lengths, rows = encode([strings], self._settings(), first_row + 1).kept()
                kept.append(Encoded(ids, lengths, rows + first_row))
                first_row += len(strings)
        except ValueError as error:
            if str(path) in str(error):
                raise
            raise ValueError(f"{path}: {error}") from None
        if not kept:
            return self.encode_each([]).kept()
        if len(kept) == 1:
            return kept[0]
        return Encoded(*(torch.cat(tensors) for tensors in zip(*kept, strict=True)))

    def _settings(self) -> Settings:
        return Settings(
            self.vocabulary.tokens,
            self.vocabulary.level,
            self.max_length,
            self.bos,
            self.eos,
            self.on_unknown,
            self.on_overflow,
        )


def _strings_of_file(path: Path, column: str) -> Iterator[Strings]:
    for batch in read_batches(path, [column]):
        yield from strings_of(batch.column(0))
