"""The tokens a model knows, their ids, and a fingerprint that ties data and model together."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stib_fast.ops.smiles import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    UNKNOWN_ID,
    Status,
    count,
    id_dtype,
    malformation,
)
from stib_fast.ops.smiles_eager import Level, tokenize
from stib_fast.ops.strings import strings_of

# No SMILES token is spelt like these: '<' is a token of its own or part of '<-'.
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
_VERSION = 1
_LONGEST_TOKEN = 2**16 - 1
_PRESETS = Path(__file__).parent / "presets"


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
        another length, a token above 65,535 characters, or more than 32,768 tokens.

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
            if len(token) > _LONGEST_TOKEN:
                raise ValueError(
                    f"a token of {len(token)} characters begins {token[:20]!r}: at most "
                    f"{_LONGEST_TOKEN} are possible"
                )
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
    def from_smiles(cls, smiles: Any, level: Level = "atom") -> Vocabulary:
        """Collect the tokens of many strings, in alphabetical order of their characters' codes.

        Parameters
        ----------
        smiles : list of str, NumPy array, Arrow array, or other iterable of str
            The strings; read once. `VocabularyBuilder` takes more than fit in memory.
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
        builder = VocabularyBuilder(level)
        builder.add(smiles)
        return builder.vocabulary()

    @classmethod
    def preset(cls, name: Literal["qm9", "zinc250k"]) -> Vocabulary:
        """Return the atom-level vocabulary of a well-known data set.

        Parameters
        ----------
        name : {"qm9", "zinc250k"}
            ``"qm9"``: of 52,658 molecules of QM9 (Ramakrishnan et al. 2014), GDB's strings;
            ``"zinc250k"``: of 236,984 of the strings of Gómez-Bombarelli et al. 2018. A molecule
            that was left out may have a rarer token.

        Raises
        ------
        ValueError
            There is no such preset.

        Examples
        --------
        >>> len(Vocabulary.preset("zinc250k"))
        66
        """
        known = sorted(file.stem for file in _PRESETS.glob("*.json"))
        if name not in known:
            raise ValueError(f"there is no vocabulary {name!r}; there are {', '.join(known)}")
        return cls.load(_PRESETS / f"{name}.json")

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


class VocabularyBuilder:
    """Collects the tokens of strings that come batch by batch.

    Parameters
    ----------
    level : {"atom", "char"}
        How strings are cut (`stib_fast.chem.tokenize`).
    drop_malformed : bool
        Whether malformed and missing strings are passed over and counted, or an error.

    Attributes
    ----------
    strings : int
        Rows so far.
    malformed : int
        Rows that were passed over.
    longest : int
        The most tokens of one string; bos and eos are not counted.

    Raises
    ------
    ValueError
        An unknown level.

    Examples
    --------
    >>> builder = VocabularyBuilder(drop_malformed=True)
    >>> builder.add(["CO", "C["])
    >>> builder.add(["CCl"])
    >>> builder.vocabulary().tokens[4:], builder.longest, builder.malformed
    (('C', 'Cl', 'O'), 2, 1)
    """

    def __init__(self, level: Level = "atom", drop_malformed: bool = False) -> None:
        tokenize("C", level)  # refuses an unknown level
        self.level: Level = level
        self.drop_malformed = drop_malformed
        self.strings = 0
        self.malformed = 0
        self.longest = 0
        self._counts: Counter[str] = Counter()

    def add(self, smiles: Any, first_row: int = 0) -> None:
        """Count the tokens of more strings.

        Parameters
        ----------
        smiles : list of str, NumPy array, Arrow array, or other iterable of str
        first_row : int
            Number of the first row, for messages.

        Raises
        ------
        ValueError
            A malformed or missing string, unless these are to be passed over; its row is named.
        """
        for part in strings_of(smiles, first_row):
            counts, longest, status = count(part, self.level)
            refused = np.flatnonzero(status.numpy() != Status.KEPT)
            if refused.size and not self.drop_malformed:
                text = part.text(int(refused[0]))
                problem = (
                    "the SMILES is missing" if text is None else malformation(text, self.level)
                )
                raise ValueError(f"row {first_row + int(refused[0])}: {problem}")
            self._counts.update(counts)
            self.strings += len(part)
            self.malformed += refused.size
            self.longest = max(self.longest, longest)
            first_row += len(part)

    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary, in alphabetical order of the tokens' characters' codes.

        Raises
        ------
        ValueError
            There was no well-formed string.
        """
        if not self._counts:
            raise ValueError("a vocabulary needs at least one SMILES string")
        tokens = sorted(self._counts)
        counts = (0,) * len(SPECIAL_TOKENS) + tuple(self._counts[token] for token in tokens)
        return Vocabulary(SPECIAL_TOKENS + tuple(tokens), self.level, counts)
