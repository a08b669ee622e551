"""The eager backend of the ``smiles`` op: SMILES strings to tokens and token ids, and back.

The functions know strings and a token-to-id mapping only, so that another backend can stand behind
the same names. Four ids are fixed for every vocabulary: pad 0, bos 1, eos 2, unknown 3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

PAD_ID, BOS_ID, EOS_ID, UNKNOWN_ID = 0, 1, 2, 3

Level = Literal["atom", "char"]
OnUnknown = Literal["error", "unk", "drop"]
OnOverflow = Literal["error", "truncate", "drop"]

_INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_UNPRINTABLE = re.compile(r"[^!-~]")
# The last alternative takes any other single mark, so only '[', ']' and '%' can be malformed.
_ATOM_TOKEN = re.compile(
    r"\[[!-Z\\^-~]+\]"  # bracket atom
    r"|Cl|Br"
    r"|%[0-9]{2}|%\([0-9]+\)"  # ring closures above 9
    r"|->|<-"  # dative bonds
    r"|[!-$&-Z\\^-~]"
)


class Encoded(NamedTuple):
    """Token ids of the strings that were kept.

    Attributes
    ----------
    ids : Tensor
        uint8 (int16 for vocabularies above 256 tokens), shape [N, L], padded with 0 on the right.
    lengths : Tensor
        int64, shape [N]: the positions in use, bos and eos included.
    rows : Tensor
        int64, shape [N]: the input row of each kept string, ascending.
    """

    ids: Tensor
    lengths: Tensor
    rows: Tensor


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
    if level not in get_args(Level):
        raise ValueError(f"level must be 'atom' or 'char', not {level!r}")
    if not smiles:
        raise ValueError("the SMILES string is empty")
    unprintable = _UNPRINTABLE.search(smiles)
    if unprintable:
        raise ValueError(
            f"character {unprintable.group()!a} at column {unprintable.start() + 1} of "
            f"{_shorten(smiles)}: SMILES are printable ASCII without blanks"
        )
    if level == "char":
        return list(smiles)
    tokens = _ATOM_TOKEN.findall(smiles)
    if sum(map(len, tokens)) != len(smiles):
        raise ValueError(_malformed(smiles))
    return tokens


def id_dtype(vocabulary_size: int) -> torch.dtype:
    """Return the narrowest id type: uint8 up to 256 tokens, int16 up to 32,768.

    Raises
    ------
    ValueError
        The vocabulary is larger.

    Examples
    --------
    >>> id_dtype(256), id_dtype(257)
    (torch.uint8, torch.int16)
    """
    if vocabulary_size > 2**15:
        raise ValueError(
            f"{vocabulary_size} tokens do not fit 16-bit ids; at most 32768 are possible"
        )
    return torch.uint8 if vocabulary_size <= 256 else torch.int16


def check_settings(
    level: Level,
    max_length: int,
    bos: bool,
    eos: bool,
    on_unknown: OnUnknown,
    on_overflow: OnOverflow,
) -> None:
    """Refuse settings that `encode` does not know.

    Raises
    ------
    ValueError
        An unknown level or policy, or a `max_length` without room for a single token.

    Examples
    --------
    >>> check_settings("atom", 2, False, True, "drop", "truncate")
    """
    for name, value, choices in (
        ("level", level, get_args(Level)),
        ("on_unknown", on_unknown, get_args(OnUnknown)),
        ("on_overflow", on_overflow, get_args(OnOverflow)),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be one of {choices}, not {value!r}")
    if max_length < 1 + bos + eos:
        raise ValueError(f"max_length {max_length} leaves no room for a token beside bos and eos")


def encode(
    smiles: Sequence[str],
    token_ids: Mapping[str, int],
    *,
    level: Level,
    max_length: int,
    bos: bool,
    eos: bool,
    on_unknown: OnUnknown,
    on_overflow: OnOverflow,
) -> Encoded:
    """Turn strings into rows of token ids.

    Parameters
    ----------
    smiles : sequence of str
        The strings, one a row.
    token_ids : mapping of str to int
        The id of every token; its largest id decides the dtype.
    level : {"atom", "char"}
        As in `tokenize`.
    max_length : int
        Number of columns L, which counts bos and eos.
    bos, eos : bool
        Whether rows begin with bos and end with eos.
    on_unknown : {"error", "unk", "drop"}
        What happens to a token without id. "drop" also leaves out strings that `tokenize` refuses.
    on_overflow : {"error", "truncate", "drop"}
        What happens to a string of more than `max_length` tokens. "truncate" keeps its first
        tokens, and the eos.

    Returns
    -------
    Encoded
        ids [N, max_length], lengths [N] and the input rows [N] that were kept.

    Raises
    ------
    ValueError
        Settings that `check_settings` refuses; an entry that is not a string; a malformed, unknown
        or over-long one where the policy does not allow it. The message gives the row (counted
        from 0), the token and the column (from 1).

    Examples
    --------
    >>> encode(["CO", "N"], {"C": 4, "O": 5}, level="atom", max_length=4, bos=False, eos=True,
    ...        on_unknown="drop", on_overflow="error")
    Encoded(ids=tensor([[4, 5, 2, 0]], dtype=torch.uint8), lengths=tensor([3]), rows=tensor([0]))
    """
    check_settings(level, max_length, bos, eos, on_unknown, on_overflow)
    dtype = id_dtype(max(token_ids.values(), default=UNKNOWN_ID) + 1)
    ids = torch.full((len(smiles), max_length), PAD_ID, dtype=dtype)
    table = ids.numpy()  # assigning a list costs a tenth of what it costs in a tensor
    lengths: list[int] = []
    rows: list[int] = []
    room = max_length - bos - eos
    head, tail = [BOS_ID] * bos, [EOS_ID] * eos
    for row, text in enumerate(smiles):
        found = _lookup(text, row, token_ids, level, on_unknown)
        if found is None:
            continue
        if len(found) > room:
            if on_overflow == "error":
                raise ValueError(
                    f"row {row}: {_shorten(text)} needs {len(found) + bos + eos} positions but "
                    f"max_length is {max_length}; raise it or set on_overflow"
                )
            if on_overflow == "drop":
                continue
            found = found[:room]
        found = head + found + tail
        table[len(rows), : len(found)] = found
        lengths.append(len(found))
        rows.append(row)
    return Encoded(
        ids[: len(rows)],
        torch.tensor(lengths, dtype=torch.int64),
        torch.tensor(rows, dtype=torch.int64),
    )


def decode(ids: Tensor, tokens: Sequence[str]) -> list[str]:
    """Turn rows of token ids into strings: stop at eos, leave out pad and bos.

    Parameters
    ----------
    ids : Tensor
        Any integer dtype, shape [N, L].
    tokens : sequence of str
        The token of every id. The unknown token is written as it stands here.

    Returns
    -------
    list of str
        N strings.

    Raises
    ------
    ValueError
        `ids` is not a table of integers, or holds an id without token.

    Examples
    --------
    >>> decode(torch.tensor([[1, 4, 5, 2, 0]]), ["<pad>", "<bos>", "<eos>", "<unk>", "C", "O"])
    ['CO']
    """
    if ids.ndim != 2 or ids.dtype not in _INTEGER_DTYPES:
        raise ValueError(f"ids must be integers [N, L], not {ids.dtype} {list(ids.shape)}")
    outside = ((ids < 0) | (ids.to(torch.int64) >= len(tokens))).nonzero()
    if len(outside):
        row, column = outside[0].tolist()
        raise ValueError(
            f"ids[{row}, {column}] is {int(ids[row, column])} but the vocabulary has "
            f"{len(tokens)} tokens"
        )
    spelling = ["" if i in (PAD_ID, BOS_ID) else token for i, token in enumerate(tokens)]
    return ["".join(map(spelling.__getitem__, _before_eos(row))) for row in ids.tolist()]


def _lookup(
    text: str, row: int, token_ids: Mapping[str, int], level: Level, on_unknown: OnUnknown
) -> list[int] | None:
    """Ids of one string without bos and eos; None where it is to be dropped."""
    if not isinstance(text, str):
        raise ValueError(f"row {row}: expected a SMILES string, not {text!r}")
    try:
        tokens = tokenize(text, level)
    except ValueError as error:
        if on_unknown == "drop":
            return None
        raise ValueError(f"row {row}: {error}") from None
    found = [token_ids.get(token, UNKNOWN_ID) for token in tokens]
    if UNKNOWN_ID not in found or on_unknown == "unk":
        return found
    if on_unknown == "drop":
        return None
    first = found.index(UNKNOWN_ID)
    column = len("".join(tokens[:first])) + 1
    raise ValueError(
        f"row {row}: token {tokens[first]!r} at column {column} of {_shorten(text)} is not in the "
        "vocabulary; build it from this data or set on_unknown"
    )


def _before_eos(ids: list[int]) -> list[int]:
    return ids[: ids.index(EOS_ID)] if EOS_ID in ids else ids


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
    return f"{problem} at column {at + 1} of {_shorten(smiles)}"


def _shorten(smiles: str) -> str:
    return ascii(smiles if len(smiles) <= 60 else smiles[:57] + "...")
