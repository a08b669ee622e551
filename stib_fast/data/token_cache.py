"""Token ids on disk, read memory-mapped.

A cache is a folder with ``cache.json`` (what was encoded, how, and the shards with their digests),
``vocabulary.json`` and shards ``tokens-00000.arrow``, ...: uncompressed Arrow IPC files of one
record batch, so that each column is one run of bytes that tensors can lie over. Their columns are
``ids`` (fixed-size lists of uint8 or int16), ``length``, ``row`` (of the source, from 0) and
``targets`` (fixed-size lists of float64); their schema holds the cache's key and their number. An
empty file ``lock`` keeps two writers apart.
`stib_fast.data.write_token_cache` writes them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from stib_fast.chem import Vocabulary
from stib_fast.ops.smiles import id_dtype

VERSION = 1
RECORD = "cache.json"
VOCABULARY = "vocabulary.json"
LOCK = "lock"
ENCODE_AGAIN = "delete the folder and encode again"


class CachedRows(NamedTuple):
    """Rows of a token cache.

    Attributes
    ----------
    ids : Tensor
        uint8 (int16 for vocabularies above 256 tokens), shape [N, L], padded with 0 on the right.
    lengths : Tensor
        int16 (int32 where L is above 32,767), shape [N]: the positions in use.
    rows : Tensor
        int64, shape [N]: the row of the source, counted from 0.
    targets : Tensor
        float64, shape [N, T], finite.
    """

    ids: Tensor
    lengths: Tensor
    rows: Tensor
    targets: Tensor


@dataclass(frozen=True)
class ShardRecord:
    """What ``cache.json`` says of a shard: its rows are those of the source from begin to end."""

    file: str
    rows: int
    begin: int
    end: int
    bytes: int
    sha256: str
    dropped: dict[str, int]


@dataclass(frozen=True)
class CacheRecord:
    """What ``cache.json`` says."""

    source: dict[str, Any]
    settings: dict[str, Any]
    fingerprint: str
    max_length: int
    rows_per_shard: int
    finished: bool
    shards: tuple[ShardRecord, ...]

    @property
    def key(self) -> str:
        """Digest of all that decides what stands in the shards."""
        content = [VERSION, self.source["sha256"], self.settings, self.fingerprint]
        content += [self.max_length, self.rows_per_shard]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the text of ``cache.json``."""
        shards = [vars(shard) for shard in self.shards]
        content = {"version": VERSION, "key": self.key, **vars(self), "shards": shards}
        return json.dumps(content) + "\n"


def read_record(folder: Path) -> CacheRecord:
    """Read ``cache.json``.

    Raises
    ------
    ValueError
        There is none, of another version, or it was altered.
    """
    path = folder / RECORD
    if not path.is_file():
        raise ValueError(f"{folder} is not a token cache: it has no {RECORD}")
    try:
        content = json.loads(path.read_text(encoding="ascii"))
        version = content.pop("version")
        record, sound = _parse(content) if version == VERSION else (None, False)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}; {ENCODE_AGAIN}") from error
    if record is None:
        raise ValueError(f"{path} is of version {version}, not {VERSION}; {ENCODE_AGAIN}")
    if not sound:
        raise ValueError(f"{path} was altered: its key does not fit its entries; {ENCODE_AGAIN}")
    return record


def _parse(content: dict[str, Any]) -> tuple[CacheRecord, bool]:
    """The record, and whether its key fits it."""
    key = content.pop("key")
    shards = tuple(ShardRecord(**shard) for shard in content.pop("shards"))
    record = CacheRecord(**content, shards=shards)
    return record, key == record.key


def file_digest(path: Path, on_read: Any = None) -> str:
    """SHA-256 of a file, 64 hexadecimal digits; `on_read` is told the size of each read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
            if on_read:
                on_read(len(block))
    return digest.hexdigest()


class TokenCache:
    r"""Token ids of a file that ``stib encode`` or `write_token_cache` encoded.

    The tensors of `shards` lie over the files: nothing is read before it is used, and what was read
    the system may drop. The mapping is private: writing into such a tensor changes neither the file
    nor what other processes see. A cache can be pickled; the copy opens the files again.

    Parameters
    ----------
    folder : str or Path
        The cache.
    source : str or Path, optional
        The encoded file, to make sure that the cache is that file's; it is read once in full.

    Attributes
    ----------
    vocabulary : Vocabulary
    max_length : int
        Columns L of the ids.
    target_names : tuple of str
        The T columns kept beside the ids.
    shards : tuple of CachedRows
        All rows in order, without a copy.
    counts : dict of str to int
        Rows of the source that were read, kept and dropped: ``read``, ``kept``, and by reason
        ``missing``, ``malformed``, ``unknown``, ``too_long``, ``bad_target``.

    Raises
    ------
    OSError
        A file cannot be read.
    ValueError
        No cache; an unfinished one; a shard that is missing, truncated or another cache's; an
        altered vocabulary; another source. The message names the file and the remedy.

    Examples
    --------
    >>> import tempfile
    >>> from stib_fast.data import CacheSettings, write_token_cache
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = Path(folder) / "molecules.smi"
    ...     _ = source.write_text("CCO ethanol\nC methane\n")
    ...     _ = write_token_cache(source, Path(folder) / "cache", CacheSettings())
    ...     cache = TokenCache(Path(folder) / "cache", source)
    ...     found = cache[torch.tensor([1, 0])]
    >>> len(cache), cache.vocabulary.tokens[4:], found.ids.tolist()
    (2, ('C', 'O'), [[4, 2, 0, 0], [4, 4, 5, 2]])
    """

    def __init__(self, folder: str | Path, source: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self._record = record = read_record(self.folder)
        if not record.finished:
            raise ValueError(
                f"{self.folder} is unfinished: run the command that began it again, and it "
                f"continues; or {ENCODE_AGAIN}"
            )
        if source is not None and file_digest(Path(source)) != record.source["sha256"]:
            raise ValueError(
                f"{self.folder} was encoded from another file than {source}, or from that file "
                f"before it changed; {ENCODE_AGAIN}"
            )
        self.vocabulary = Vocabulary.load(self.folder / VOCABULARY)
        if self.vocabulary.fingerprint != record.fingerprint:
            raise ValueError(
                f"{self.folder / VOCABULARY} is not the vocabulary of the ids; {ENCODE_AGAIN}"
            )
        self.max_length = record.max_length
        self.target_names = tuple(record.settings["targets"])
        self.counts = counts_of(record)
        self.shards = tuple(
            _open_shard(self.folder, record, number, id_dtype(len(self.vocabulary)))
            for number in range(len(record.shards))
        )
        ends = torch.tensor([shard.rows for shard in record.shards]).cumsum(0)
        self._starts = [0, *ends.tolist()]
        self._arrays = [[column.numpy() for column in shard] for shard in self.shards]

    def __len__(self) -> int:
        return self._starts[-1]

    def __reduce__(self) -> tuple[type[TokenCache], tuple[Path]]:
        return TokenCache, (self.folder,)

    def __getitem__(self, rows: Tensor | Sequence[int]) -> CachedRows:
        """Gather rows, in any order, as tensors of their own.

        Parameters
        ----------
        rows : Tensor or sequence of int
            Integers from 0 to len(cache) - 1, shape [N]; not the source's rows.

        Raises
        ------
        IndexError
            A row outside of the cache.
        """
        asked = torch.as_tensor(rows, dtype=torch.int64).numpy()
        if asked.size and not (asked.min() >= 0 and asked.max() < len(self)):
            outside = asked.min() if asked.min() < 0 else asked.max()
            raise IndexError(f"row {outside} is outside of the {len(self)} rows of {self.folder}")
        order = asked.argsort()
        wanted = asked[order]
        # Where each shard's part of the sorted rows begins. `take` is NumPy's: a call of PyTorch's
        # costs several times as much, and there are some a shard.
        cuts = numpy.searchsorted(wanted, self._starts).tolist()
        found = [
            numpy.empty((len(wanted), *column.shape[1:]), column.dtype)
            for column in self._arrays[0]
        ]
        for arrays, start, begin, end in zip(
            self._arrays, self._starts, cuts, cuts[1:], strict=False
        ):
            if begin < end:
                places = wanted[begin:end] - start
                for column, out in zip(arrays, found, strict=True):
                    numpy.take(column, places, axis=0, out=out[begin:end], mode="clip")
        back = order.argsort()
        return CachedRows(*(torch.from_numpy(column.take(back, axis=0)) for column in found))

    @property
    def rows(self) -> Tensor:
        """int64 [N]: the source's row of each row, counted from 0; a tensor in memory."""
        return torch.cat([shard.rows for shard in self.shards])

    @property
    def targets(self) -> Tensor:
        """float64 [N, T]; a tensor in memory."""
        return torch.cat([shard.targets for shard in self.shards])

    def verify(self) -> None:
        """Compare every shard with its digest, which reads all files.

        Raises
        ------
        ValueError
            A shard was altered.
        """
        verify_shards(self.folder, self._record)


def counts_of(record: CacheRecord) -> dict[str, int]:
    """Rows read, kept and dropped by reason, as `TokenCache.counts` has them."""
    dropped: Counter[str] = Counter()
    for shard in record.shards:
        dropped.update(shard.dropped)
    read = record.shards[-1].end if record.shards else 0
    return {"read": read, "kept": sum(shard.rows for shard in record.shards), **dropped}


def verify_shards(folder: Path, record: CacheRecord, on_read: Any = None) -> None:
    """Raise ValueError where a shard is missing or not what its digest says."""
    for shard in record.shards:
        _check_size(folder, shard)
        if file_digest(folder / shard.file, on_read) != shard.sha256:
            raise ValueError(
                f"{folder / shard.file} was altered: its digest differs; {ENCODE_AGAIN}"
            )


def _check_size(folder: Path, shard: ShardRecord) -> None:
    path = folder / shard.file
    if not path.is_file():
        raise ValueError(f"{path} is missing; {ENCODE_AGAIN}")
    size = path.stat().st_size
    if size != shard.bytes:
        raise ValueError(f"{path} has {size} bytes, not {shard.bytes}; {ENCODE_AGAIN}")


def _open_shard(
    folder: Path, record: CacheRecord, number: int, ids_dtype: torch.dtype
) -> CachedRows:
    import pyarrow

    shard = record.shards[number]
    path = folder / shard.file
    _check_size(folder, shard)
    # A private mapping: no descriptor is kept, and the tensors are writable without harm.
    content = torch.from_file(str(path), shared=False, size=shard.bytes, dtype=torch.uint8)
    try:
        reader = pyarrow.ipc.open_file(pyarrow.py_buffer(content.numpy()))
        metadata = reader.schema.metadata or {}
        batch = reader.get_batch(0)
        columns = {name: _tensor(batch.column(name), content) for name in batch.schema.names}
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {error}; {ENCODE_AGAIN}") from error
    if metadata.get(b"key") != record.key.encode() or metadata.get(b"shard") != b"%d" % number:
        raise ValueError(f"{path} is a shard of another cache; {ENCODE_AGAIN}")
    targets = columns.get("targets", torch.empty(shard.rows, 0, dtype=torch.float64))
    found = CachedRows(columns["ids"], columns["length"], columns["row"], targets)
    if found.ids.shape != (shard.rows, record.max_length) or found.ids.dtype != ids_dtype:
        raise ValueError(
            f"{path} holds {found.ids.dtype} ids {list(found.ids.shape)}, not {ids_dtype} "
            f"{[shard.rows, record.max_length]}; {ENCODE_AGAIN}"
        )
    return found


def _tensor(column: Any, content: Tensor) -> Tensor:
    """Lay a tensor over the values of a column that are part of the mapped `content`."""
    import pyarrow

    shape = [len(column)]
    if pyarrow.types.is_fixed_size_list(column.type):
        shape.append(column.type.list_size)
        column = column.values
    values = column.buffers()[1]
    dtype = torch.from_numpy(column[:0].to_numpy().copy()).dtype
    begin = values.address - content.data_ptr()
    size = len(column) * dtype.itemsize
    return content[begin : begin + size].view(dtype).view(shape)
