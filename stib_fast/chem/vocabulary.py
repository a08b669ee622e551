"""The tokens a model knows, their ids, and a fingerprint that ties data and model together."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stib_fast.ops.smiles import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    UNKNOWN_ID,
    Level,
    id_dtype,
    tokenize,
)

# No SMILES token is spelt like these: '<' is a token of its own or part of '<-'.
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
_VERSION = 1


@dataclass(frozen=True)
class Vocabulary:
    """An ordered set of SMILES tokens; a token's place is its id.

    Parameters
    ----------
    tokens : tuple of str
        The special tokens (pad, bos, eos, unk: ids 0 to 3), then the SMILES tokens.
    level : {"atom", "char"}
        How strings are cut (`stib_fast.chem.tokenize`).
    counts : tuple of int
        How often each token occurred in the strings it was built from. No part of equality or of
        the fingerprint.

    Raises
    ------
    ValueError
        Special tokens missing, a repeated token, one that `tokenize` would not produce, counts of
        another length, or more than 32,768 tokens.

    Examples
    --------
    >>> vocabulary = Vocabulary.from_smiles(["CCl", "CO"])
    >>> vocabulary.tokens
    ('<pad>', '<bos>', '<eos>', '<unk>', 'C', 'Cl', 'O')
    >>> vocabulary.token_ids["Cl"], vocabulary.counts[4]
    (5, 2)
    """

    tokens: tuple[str, ...]
    level: Level
    counts: tuple[int, ...] = field(compare=False)

    pad_id = PAD_ID
    bos_id = BOS_ID
    eos_id = EOS_ID
    unk_id = UNKNOWN_ID

    def __post_init__(self) -> None:
        special = len(SPECIAL_TOKENS)
        if self.tokens[:special] != SPECIAL_TOKENS:
            raise ValueError(
                f"tokens must begin with {SPECIAL_TOKENS}, not {self.tokens[:special]}"
            )
        for token in self.tokens[special:]:
            if tokenize(token, self.level) != [token]:
                raise ValueError(f"{token!r} is not one token at level {self.level!r}")
        if len(set(self.tokens)) != len(self.tokens):
            raise ValueError(f"token {Counter(self.tokens).most_common(1)[0][0]!r} is repeated")
        if len(self.counts) != len(self.tokens):
            raise ValueError(f"{len(self.counts)} counts for {len(self.tokens)} tokens")
        id_dtype(len(self.tokens))

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def from_smiles(cls, smiles: Iterable[str], level: Level = "atom") -> Vocabulary:
        """Collect the tokens of many strings, in alphabetical order of their characters' codes.

        Parameters
        ----------
        smiles : iterable of str
            The strings; read once.
        level : {"atom", "char"}
            How they are cut.

        Raises
        ------
        ValueError
            There is no string, or one cannot be cut (its row, counted from 0, is named).

        Examples
        --------
        >>> len(Vocabulary.from_smiles(["c1ccccc1"]))
        6
        """
        if isinstance(smiles, str):
            raise ValueError("smiles must be an iterable of strings, not one string")
        counts: Counter[str] = Counter()
        for row, text in enumerate(smiles):
            counts.update(_tokens_of_row(row, text, level))
        if not counts:
            raise ValueError("a vocabulary needs at least one SMILES string")
        tokens = sorted(counts)
        return cls(
            SPECIAL_TOKENS + tuple(tokens), level, (0,) * 4 + tuple(counts[t] for t in tokens)
        )

    @cached_property
    def token_ids(self) -> dict[str, int]:
        """The id of every token."""
        return {token: i for i, token in enumerate(self.tokens)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hexadecimal digits) of version, level and tokens, whatever the counts."""
        content = json.dumps([_VERSION, self.level, self.tokens], separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return what `save` writes, as plain JSON values.

        Examples
        --------
        >>> sorted(Vocabulary.from_smiles(["C"]).to_dict())
        ['counts', 'fingerprint', 'level', 'tokens', 'version']
        """
        return {
            "version": _VERSION,
            "level": self.level,
            "tokens": list(self.tokens),
            "counts": list(self.counts),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Vocabulary:
        """Rebuild a vocabulary from `to_dict`.

        Raises
        ------
        ValueError
            Another version, a missing or wrong entry, or a fingerprint unlike the tokens'.

        Examples
        --------
        >>> vocabulary = Vocabulary.from_smiles(["CO"])
        >>> Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary
        True
        """
        if not isinstance(content, dict) or content.get("version") != _VERSION:
            raise ValueError(f"not a vocabulary of version {_VERSION}")
        try:
            vocabulary = cls(tuple(content["tokens"]), content["level"], tuple(content["counts"]))
            fingerprint = content["fingerprint"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"vocabulary entry missing or of the wrong type: {error}") from None
        if fingerprint != vocabulary.fingerprint:
            raise ValueError("the fingerprint does not fit the tokens: the vocabulary was altered")
        return vocabulary

    def save(self, path: str | Path) -> None:
        """Write the vocabulary as JSON.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Vocabulary.from_smiles(["CO"]).save(Path(folder) / "vocabulary.json")
        ...     Vocabulary.load(Path(folder) / "vocabulary.json").tokens[4:]
        ('C', 'O')
        """
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="ascii")

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read a vocabulary written by `save`.

        Raises
        ------
        OSError
            The file cannot be read.
        ValueError
            It holds no vocabulary of this version, or an altered one; the message names the file.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="ascii")))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _tokens_of_row(row: int, text: str, level: Level) -> list[str]:
    try:
        return tokenize(text, level)
    except (ValueError, TypeError) as error:
        raise ValueError(f"row {row}: {error}") from None
