"""The ``smiles`` op: strings to rows of token ids and back, and counts of tokens.

The backends are ``cpp`` (`stib_fast._smiles`), plain Python (`stib_fast.ops.smiles_eager`), and
CUDA for bytes that are on a GPU. Four ids are fixed for every vocabulary: pad 0, bos 1, eos 2 and
unknown 3.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from stib_fast import backends
from stib_fast.backends import LIBRARY, backend_for
from stib_fast.ops import smiles_eager
from stib_fast.ops.smiles_eager import Level
from stib_fast.ops.strings import ByteStrings, Strings

if TYPE_CHECKING:
    from stib_fast import _smiles

PAD_ID, BOS_ID, EOS_ID, UNKNOWN_ID = 0, 1, 2, 3

OnUnknown = Literal["error", "unk", "drop"]
OnOverflow = Literal["error", "truncate", "drop"]

_CPU = torch.device("cpu")
_INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

LIBRARY.define(
    "smiles_encode(Tensor data, Tensor offsets, Tensor table, int max_length, bool bos, bool eos,"
    " bool keep_unknown, bool truncate, bool wide) -> (Tensor ids, Tensor lengths, Tensor status)"
)


@torch.library.register_fake("stib_fast::smiles_encode", lib=LIBRARY)
def _(
    data: Tensor,
    offsets: Tensor,
    table: Tensor,
    max_length: int,
    bos: bool,
    eos: bool,
    keep_unknown: bool,
    truncate: bool,
    wide: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = offsets.shape[0] - 1
    return (
        data.new_empty((rows, max_length), dtype=torch.int16 if wide else torch.uint8),
        data.new_empty((rows,), dtype=torch.int64),
        data.new_empty((rows,), dtype=torch.uint8),
    )


class Status(IntEnum):
    """What became of a row."""

    KEPT = 0
    MALFORMED = 1
    UNKNOWN = 2
    TOO_LONG = 3
    MISSING = 4


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


class EncodedRows(NamedTuple):
    """Token ids of every row, and what became of it.

    Attributes
    ----------
    ids : Tensor
        uint8 or int16, shape [N, L]; all pad where the row was not kept.
    lengths : Tensor
        int64, shape [N]; 0 where the row was not kept.
    status : Tensor
        uint8, shape [N]: a `Status`.
    """

    ids: Tensor
    lengths: Tensor
    status: Tensor

    def kept(self) -> Encoded:
        """Leave out the rows that were not kept."""
        rows = (self.status == Status.KEPT).nonzero().squeeze(1)
        if len(rows) == len(self.ids):
            return Encoded(self.ids, self.lengths, rows)
        return Encoded(self.ids[rows], self.lengths[rows], rows)


@dataclass(frozen=True)
class Settings:
    """How strings become rows of ids; `stib_fast.chem.SmilesTokenizer` explains them.

    Parameters
    ----------
    tokens : tuple of str
        The token of every id; the first four are special.
    level : {"atom", "char"}
    max_length : int
    bos, eos : bool
    on_unknown : {"error", "unk", "drop"}
    on_overflow : {"error", "truncate", "drop"}

    Raises
    ------
    ValueError
        An unknown level or policy, or a `max_length` without room for a single token.
    """

    tokens: tuple[str, ...]
    level: Level
    max_length: int
    bos: bool
    eos: bool
    on_unknown: OnUnknown
    on_overflow: OnOverflow

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("level", self.level, get_args(Level)),
            ("on_unknown", self.on_unknown, get_args(OnUnknown)),
            ("on_overflow", self.on_overflow, get_args(OnOverflow)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {choices}, not {value!r}")
        if not isinstance(self.max_length, int):
            raise ValueError(f"max_length must be an integer, not {self.max_length!r}")
        if self.max_length < 1 + self.bos + self.eos:
            raise ValueError(
                f"max_length {self.max_length} leaves no room for a token beside bos and eos"
            )

    @property
    def dtype(self) -> torch.dtype:
        """The type of the ids."""
        return id_dtype(len(self.tokens))

    def refused(self) -> list[Status]:
        """List what is an error, instead of being left out."""
        refused = [Status.TOO_LONG] if self.on_overflow == "error" else []
        if self.on_unknown != "drop":
            refused += [Status.MALFORMED, Status.MISSING, Status.UNKNOWN]
        return refused


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


# ---- encode --------------------------------------------------------------------------------------


def encode(parts: Sequence[Strings], settings: Settings, first_row: int = 0) -> EncodedRows:
    """Turn strings into rows of token ids.

    Parameters
    ----------
    parts : sequence of Strings
        The rows of one part follow those of the part before.
    settings : Settings
    first_row : int
        Number of the first row, for messages.

    Returns
    -------
    EncodedRows
        Every row of every part.

    Raises
    ------
    ValueError
        An entry that is not a string; a missing, malformed, unknown or over-long one where the
        policy does not allow it. The message gives the row, the token and the column (from 1).

    Examples
    --------
    >>> from stib_fast.ops.strings import strings_of
    >>> settings = Settings(("", "", "", "", "C", "O"), "atom", 4, False, True, "drop", "error")
    >>> encode(strings_of(["CO", "N"]), settings)
    EncodedRows(ids=tensor([[4, 5, 2, 0],
            [0, 0, 0, 0]], dtype=torch.uint8), lengths=tensor([3, 0]),
            status=tensor([0, 2], dtype=torch.uint8))
    """
    compiled = backend_for(_CPU, part="smiles") == "cpp"
    rows = sum(map(len, parts))
    encoded = EncodedRows(
        torch.empty((rows, settings.max_length), dtype=settings.dtype),
        torch.empty(rows, dtype=torch.int64),
        torch.empty(rows, dtype=torch.uint8),
    )
    begin = 0
    for part in parts:
        end = begin + len(part)
        places = EncodedRows(*(tensor[begin:end] for tensor in encoded))
        (_encode_compiled if compiled else _encode_eager)(part, settings, places)
        _require_allowed(part, settings, places.status, first_row + begin)
        begin = end
    return encoded


def encode_bytes(data: Tensor, offsets: Tensor, settings: Settings) -> EncodedRows:
    """Turn bytes with offsets into rows of token ids on the same device.

    On a GPU the CUDA library does it where there is one; else the bytes pass through the CPU.

    Parameters
    ----------
    data : Tensor
        uint8, shape [M]: the strings end to end.
    offsets : Tensor
        int32 or int64, shape [N + 1]: row i is ``data[offsets[i]:offsets[i + 1]]``.
    settings : Settings

    Returns
    -------
    EncodedRows

    Raises
    ------
    ValueError
        As `encode`; arguments of another type, shape or device; offsets that do not ascend within
        the data. On a GPU the check for errors waits for the device once.

    Examples
    --------
    >>> data = torch.frombuffer(bytearray(b"COC"), dtype=torch.uint8)
    >>> settings = Settings(("", "", "", "", "C", "O"), "atom", 3, False, True, "error", "error")
    >>> encode_bytes(data, torch.tensor([0, 2, 3]), settings).ids
    tensor([[4, 5, 2],
            [4, 2, 0]], dtype=torch.uint8)
    """
    for name, tensor in (("data", data), ("offsets", offsets)):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a torch tensor, not {type(tensor).__name__}")
    if data.dtype != torch.uint8 or data.ndim != 1:
        raise ValueError(f"data must be uint8 [M], not {data.dtype} {list(data.shape)}")
    if offsets.dtype not in (torch.int32, torch.int64) or offsets.ndim != 1 or len(offsets) == 0:
        raise ValueError(
            f"offsets must be int32 or int64 [N + 1], not {offsets.dtype} {list(offsets.shape)}"
        )
    if data.device != offsets.device:
        raise ValueError(f"data is on {data.device} but offsets are on {offsets.device}")
    data, places = data.contiguous(), offsets.to(torch.int64)
    valid = (places[0] >= 0) & (places[-1] <= len(data)) & (places.diff() >= 0).all()
    if not _runs_on_gpu(data.device):
        _require_valid(valid)
        part = ByteStrings(data.cpu(), offsets.contiguous().cpu())
        return EncodedRows(*(tensor.to(data.device) for tensor in encode([part], settings)))
    encoded = EncodedRows(
        *torch.ops.stib_fast.smiles_encode(
            data,
            places.contiguous(),
            _table(settings.tokens, settings.level).to(data.device),
            settings.max_length,
            settings.bos,
            settings.eos,
            settings.on_unknown == "unk",
            settings.on_overflow == "truncate",
            settings.dtype == torch.int16,
        )
    )
    allowed = torch.ones(len(Status), dtype=torch.bool, device=data.device)
    allowed[[int(status) for status in settings.refused()]] = False
    if not bool(valid & allowed[encoded.status.long()].all()):
        _require_valid(valid)
        part = ByteStrings(data.cpu(), places.cpu())
        _require_allowed(part, settings, encoded.status.cpu(), 0)
    return encoded


def _runs_on_gpu(device: torch.device) -> bool:
    """Whether bytes on a device become ids there; on a GPU without the library a warning tells."""
    if device.type != "cuda" or backend_for(_CPU, part="smiles") != "cpp":
        return False
    if backends.cuda_unusable is not None:
        warnings.warn(
            f"SMILES pass through the CPU: the CUDA library is {backends.cuda_unusable}",
            stacklevel=4,
        )
    return backends.cuda_unusable is None


def _require_valid(offsets_are: Tensor) -> None:
    if not offsets_are:
        raise ValueError("offsets must ascend and stay within the data")


def _encode_compiled(part: Strings, settings: Settings, places: EncodedRows) -> None:
    _codec(settings.tokens, settings.level).encode(
        part.compiled(),
        *(tensor.numpy() for tensor in places),
        bos=settings.bos,
        eos=settings.eos,
        keep_unknown=settings.on_unknown == "unk",
        truncate=settings.on_overflow == "truncate",
        threads=torch.get_num_threads(),
    )


def _encode_eager(part: Strings, settings: Settings, places: EncodedRows) -> None:
    token_ids = {token: i for i, token in enumerate(settings.tokens) if i > UNKNOWN_ID}
    # Assigning a list costs a tenth of what it costs in a tensor.
    ids, lengths, statuses = (tensor.numpy() for tensor in places)
    ids.fill(PAD_ID)
    lengths.fill(0)
    head, tail = [BOS_ID] * settings.bos, [EOS_ID] * settings.eos
    room = settings.max_length - len(head) - len(tail)
    for row in range(len(part)):
        status, found = _looked_up(part.text(row), token_ids, settings.level)
        if status == Status.UNKNOWN and settings.on_unknown == "unk":
            status = Status.KEPT
        if status == Status.KEPT and len(found) > room and settings.on_overflow != "truncate":
            status = Status.TOO_LONG
        statuses[row] = status
        if status == Status.KEPT:
            found = head + found[:room] + tail
            ids[row, : len(found)] = found
            lengths[row] = len(found)


def _looked_up(
    text: str | None, token_ids: dict[str, int], level: Level
) -> tuple[Status, list[int]]:
    if text is None:
        return Status.MISSING, []
    try:
        found = smiles_eager.ids_of(text, token_ids, level, UNKNOWN_ID)
    except ValueError:
        return Status.MALFORMED, []
    return (Status.UNKNOWN if UNKNOWN_ID in found else Status.KEPT), found


def _require_allowed(part: Strings, settings: Settings, status: Tensor, first_row: int) -> None:
    """Refuse the first row whose status the policies make an error."""
    found = np.isin(status.numpy(), settings.refused())
    if found.any():
        row = int(found.argmax())
        problem = _problem(part.text(row), Status(int(status[row])), settings)
        raise ValueError(f"row {first_row + row}: {problem}")


def _problem(text: str | None, status: Status, settings: Settings) -> str:
    if text is None:
        return "the SMILES is missing"
    if status == Status.MALFORMED:
        return malformation(text, settings.level)
    if status == Status.UNKNOWN:
        token_ids = {token: i for i, token in enumerate(settings.tokens) if i > UNKNOWN_ID}
        token, column = smiles_eager.first_unknown(text, token_ids, settings.level)
        return (
            f"token {token!r} at column {column} of {smiles_eager.shorten(text)} is not in the "
            "vocabulary; build it from this data or set on_unknown"
        )
    needed = len(smiles_eager.tokenize(text, settings.level)) + settings.bos + settings.eos
    return (
        f"{smiles_eager.shorten(text)} needs {needed} positions but max_length is "
        f"{settings.max_length}; raise it or set on_overflow"
    )


def malformation(text: str, level: Level) -> str:
    """Say what is wrong with a string that `tokenize` refuses.

    Examples
    --------
    >>> malformation("C[N", "atom")
    "'[' opens no complete bracket atom at column 2 of 'C[N'"
    """
    try:
        smiles_eager.tokenize(text, level)
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{text!r} is well-formed")


# ---- decode --------------------------------------------------------------------------------------


def decode(ids: Tensor, tokens: tuple[str, ...]) -> list[str]:
    """Turn rows of token ids into strings: stop at eos, leave out pad and bos.

    Parameters
    ----------
    ids : Tensor
        Any integer dtype, shape [N, L], any device.
    tokens : tuple of str
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
    >>> decode(torch.tensor([[1, 4, 5, 2, 0]]), ("<pad>", "<bos>", "<eos>", "<unk>", "C", "O"))
    ['CO']
    """
    if not isinstance(ids, Tensor):
        raise ValueError(f"ids must be a torch tensor, not {type(ids).__name__}")
    if ids.ndim != 2 or ids.dtype not in _INTEGER_DTYPES:
        raise ValueError(f"ids must be integers [N, L], not {ids.dtype} {list(ids.shape)}")
    ids = ids.detach().cpu().contiguous()
    if backend_for(_CPU, part="smiles") == "cpp":
        try:
            return _codec(tokens, "atom").decode(ids.numpy(), threads=torch.get_num_threads())
        except IndexError:
            raise ValueError(_outside(ids, len(tokens))) from None
    outside = _outside(ids, len(tokens))
    if outside:
        raise ValueError(outside)
    spelling = ["" if i in (PAD_ID, BOS_ID) else token for i, token in enumerate(tokens)]
    return smiles_eager.decode(ids.tolist(), spelling, EOS_ID)


def _outside(ids: Tensor, size: int) -> str:
    """Say where the first id without token is; "" where there is none."""
    found = ((ids < 0) | (ids.to(torch.int64) >= size)).nonzero()
    if not len(found):
        return ""
    row, column = found[0].tolist()
    return f"ids[{row}, {column}] is {int(ids[row, column])} but the vocabulary has {size} tokens"


# ---- count ---------------------------------------------------------------------------------------


class TokenCounts(NamedTuple):
    """Tokens of many strings.

    Attributes
    ----------
    counts : Counter
        How often each token occurs in the well-formed strings.
    longest : int
        The most tokens that one of them has.
    status : Tensor
        uint8, shape [N]: KEPT, MALFORMED or MISSING.
    """

    counts: Counter[str]
    longest: int
    status: Tensor


def count(part: Strings, level: Level) -> TokenCounts:
    """Count the tokens of many strings.

    Examples
    --------
    >>> from stib_fast.ops.strings import strings_of
    >>> counts, longest, status = count(strings_of(["CCl", "C["])[0], "atom")
    >>> dict(counts), longest, status.tolist()
    ({'C': 1, 'Cl': 1}, 2, [0, 1])
    """
    if backend_for(_CPU, part="smiles") == "cpp":
        from stib_fast import _smiles

        counter = _smiles.TokenCounter(level == "atom")
        status = torch.empty(len(part), dtype=torch.uint8)
        counter.add(part.compiled(), status.numpy(), threads=torch.get_num_threads())
        return TokenCounts(Counter(counter.counts()), counter.longest, status)
    texts = [part.text(row) for row in range(len(part))]
    looked_up = [_looked_up(text, {}, level)[0] for text in texts]
    status = torch.tensor(
        [Status.KEPT if found == Status.UNKNOWN else found for found in looked_up],
        dtype=torch.uint8,
    )
    pairs = zip(texts, status.tolist(), strict=True)
    kept = [text for text, found in pairs if text is not None and found == Status.KEPT]
    return TokenCounts(*smiles_eager.count(kept, level), status)


# ---- the compiled tokeniser ----------------------------------------------------------------------


@lru_cache(maxsize=32)
def _codec(tokens: tuple[str, ...], level: Level) -> _smiles.Codec:
    from stib_fast import _smiles

    return _smiles.Codec(list(tokens), level == "atom")


@lru_cache(maxsize=32)
def _table(tokens: tuple[str, ...], level: Level) -> Tensor:
    return torch.frombuffer(bytearray(_codec(tokens, level).table()), dtype=torch.uint8)
