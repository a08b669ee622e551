"""The eager backend of the ``smiles`` op: plain Python, one string after the other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

Level = Literal["atom", "char"]

_UNPRINTABLE = re.compile(r"[^!-~]")
# The last alternative takes any other single mark, so only '[', ']' and '%' can be malformed.
_ATOM_TOKEN = re.compile(
    r"\[[!-Z\\^-~]+\]"  # bracket atom
    r"|Cl|Br"
    r"|%[0-9]{2}|%\([0-9]+\)"  # ring closures above 9
    r"|->|<-"  # dative bonds
    r"|[!-$&-Z\\^-~]"
)


def tokenize(smiles: str, level: Level = "atom") -> list[str]:
    """Cut one SMILES string into tokens that join to the same string again.

    At atom level a token is a two-letter organic-subset atom (Cl, Br), a whole bracket atom, a ring
    closure ``%nn`` or ``%(nnn)``, a dative bond ``->`` or ``<-``, or any other single character.
    At character level every character is a token.

    Parameters
    ----------
    smiles : str
        Printable ASCII without blanks.
    level : {"atom", "char"}
        What a token is.

    Returns
    -------
    list of str
        The tokens, in order.

    Raises
    ------
    ValueError
        An empty string, a blank, control or non-ASCII character, and at atom level a bracket atom
        or ring closure that is not complete. The message gives the column, counted from 1.

    Examples
    --------
    >>> tokenize("C[C@@H](Cl)Br")
    ['C', '[C@@H]', '(', 'Cl', ')', 'Br']
    >>> tokenize("Cl", level="char")
    ['C', 'l']
    """
    if level not in ("atom", "char"):
        raise ValueError(f"level must be 'atom' or 'char', not {level!r}")
    if not smiles:
        raise ValueError("the SMILES string is empty")
    unprintable = _UNPRINTABLE.search(smiles)
    if unprintable:
        raise ValueError(
            f"character {unprintable.group()!a} at column {unprintable.start() + 1} of "
            f"{shorten(smiles)}: SMILES are printable ASCII without blanks"
        )
    if level == "char":
        return list(smiles)
    tokens = _ATOM_TOKEN.findall(smiles)
    if sum(map(len, tokens)) != len(smiles):
        raise ValueError(_malformed(smiles))
    return tokens


def ids_of(smiles: str, token_ids: Mapping[str, int], level: Level, unknown: int) -> list[int]:
    """Look up the tokens of one string.

    Raises
    ------
    ValueError
        As `tokenize`.

    Examples
    --------
    >>> ids_of("CO", {"C": 4}, "atom", unknown=3)
    [4, 3]
    """
    return [token_ids.get(token, unknown) for token in tokenize(smiles, level)]


def first_unknown(smiles: str, token_ids: Mapping[str, int], level: Level) -> tuple[str, int]:
    """Return the first token without id, and its column, counted from 1.

    Examples
    --------
    >>> first_unknown("CCl", {"C": 4}, "atom")
    ('Cl', 2)
    """
    column = 1
    for token in tokenize(smiles, level):
        if token not in token_ids:
            return token, column
        column += len(token)
    raise ValueError(f"every token of {shorten(smiles)} is known")


def count(texts: Iterable[str], level: Level) -> tuple[Counter[str], int]:
    """Count the tokens of well-formed strings; also the most tokens that one has.

    Examples
    --------
    >>> count(["CCl", "C"], "atom")
    (Counter({'C': 2, 'Cl': 1}), 2)
    """
    counts: Counter[str] = Counter()
    longest = 0
    for text in texts:
        tokens = tokenize(text, level)
        counts.update(tokens)
        longest = max(longest, len(tokens))
    return counts, longest


def decode(rows: Iterable[Sequence[int]], spelling: Sequence[str], eos: int) -> list[str]:
    """Join the spelling of each row's ids up to `eos`.

    Examples
    --------
    >>> decode([[1, 2, 0, 1]], ["", "C", "O"], eos=0)
    ['CO']
    """
    return ["".join(map(spelling.__getitem__, _before(row, eos))) for row in rows]


def shorten(smiles: str) -> str:
    """Quote a string for a message: 60 characters at most, all printable.

    Examples
    --------
    >>> shorten("CO")
    "'CO'"
    """
    return ascii(smiles if len(smiles) <= 60 else smiles[:57] + "...")


def _before(ids: Sequence[int], eos: int) -> Sequence[int]:
    return ids[: ids.index(eos)] if eos in ids else ids


def _malformed(smiles: str) -> str:
    """Say what stands where no token begins."""
    at = 0
    while match := _ATOM_TOKEN.match(smiles, at):
        at = match.end()
    problem = {
        "[": "'[' opens no complete bracket atom",
        "]": "']' closes no bracket atom",
        "%": "'%' must be followed by two digits or (digits)",
    }[smiles[at]]
    return f"{problem} at column {at + 1} of {shorten(smiles)}"
