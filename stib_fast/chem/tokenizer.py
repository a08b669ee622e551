"""SMILES strings to padded token ids under one vocabulary, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from stib_fast.chem.vocabulary import Vocabulary
from stib_fast.ops.smiles import Encoded, OnOverflow, OnUnknown, check_settings, decode, encode


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
        string is left out. "drop" also leaves out malformed strings; the other two refuse them.
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
        check_settings(
            self.vocabulary.level,
            self.max_length,
            self.bos,
            self.eos,
            self.on_unknown,
            self.on_overflow,
        )

    def encode(self, smiles: Sequence[str]) -> Encoded:
        """Turn strings into ids.

        Parameters
        ----------
        smiles : sequence of str
            The strings, one a row.

        Returns
        -------
        Encoded
            ids (uint8, or int16 above 256 tokens) [N, max_length] padded with 0, lengths (int64)
            [N] with bos and eos, rows (int64) [N]: the input rows that were kept.

        Raises
        ------
        ValueError
            One string in place of a list, and whatever the policies refuse, with row (from 0),
            token and column (from 1).
        """
        if isinstance(smiles, str):
            raise ValueError("smiles must be a list of strings, not one string")
        return encode(
            smiles,
            self.vocabulary.token_ids,
            level=self.vocabulary.level,
            max_length=self.max_length,
            bos=self.bos,
            eos=self.eos,
            on_unknown=self.on_unknown,
            on_overflow=self.on_overflow,
        )

    def decode(self, ids: Tensor) -> list[str]:
        """Turn ids (any integer dtype, [N, L]) into N strings: up to eos, without pad and bos.

        An unknown token is written ``<unk>``, which no SMILES parser accepts.

        Raises
        ------
        ValueError
            `ids` is not a table of integers, or holds an id outside the vocabulary.
        """
        return decode(ids, self.vocabulary.tokens)
