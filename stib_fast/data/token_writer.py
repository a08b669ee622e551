"""Encode a molecule file into a token cache: in bounded memory, and going on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy
from numpy.typing import NDArray
from tqdm import tqdm

from stib_fast.chem import SmilesTokenizer, Status, Vocabulary, VocabularyBuilder
from stib_fast.chem.cells import as_numbers, as_strings
from stib_fast.chem.files import OnRead, read_batches
from stib_fast.data.replacing import replacing, write_text
from stib_fast.data.token_cache import (
    LOCK,
    RECORD,
    VOCABULARY,
    CacheRecord,
    ShardRecord,
    file_digest,
    read_record,
    verify_shards,
)
from stib_fast.ops.smiles import OnOverflow, OnUnknown, Settings
from stib_fast.ops.smiles_eager import Level

if TYPE_CHECKING:
    import pyarrow

OnBadTarget = Literal["error", "drop"]

SHARD_BYTES = 64 * 2**20
LARGEST_SHARD_BYTES = 2**31
PIECE_BYTES = 32 * 2**20
# Why a row is left out, beside the tokeniser's reasons.
_BAD_TARGET = len(Status)
_REASONS = {_BAD_TARGET: "bad_target"} | {
    status: status.name.lower() for status in Status if status is not Status.KEPT
}


@dataclass(frozen=True)
class CacheSettings:
    """How `write_token_cache` encodes a file.

    Parameters
    ----------
    smiles : str
        Column of the SMILES.
    targets : tuple of str
        Columns of numbers to keep beside the ids.
    vocabulary : Vocabulary, optional
        By default that of the file, found in a first pass.
    level : {"atom", "char"}
        How strings are cut, where the vocabulary is the file's.
    max_length : int, optional
        Columns of the ids, bos and eos included; by default what the longest string needs, found in
        a first pass.
    on_unknown, on_overflow, bos, eos
        As in `stib_fast.chem.SmilesTokenizer`.
    on_bad_target : {"error", "drop"}
        What happens to a row with a target that is no finite number.
    rows_per_shard : int, optional
        Rows of a shard, which are held in memory; by default as many as 64 MiB hold, targets
        included.

    Raises
    ------
    ValueError
        A setting that is out of range.

    Examples
    --------
    >>> CacheSettings(targets=("qed",), on_bad_target="drop").max_length is None
    True
    """

    smiles: str = "smiles"
    targets: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None
    level: Level = "atom"
    max_length: int | None = None
    on_unknown: OnUnknown = "error"
    on_overflow: OnOverflow = "error"
    on_bad_target: OnBadTarget = "error"
    bos: bool = False
    eos: bool = True
    rows_per_shard: int | None = None

    def __post_init__(self) -> None:
        if self.on_bad_target not in get_args(OnBadTarget):
            raise ValueError(
                f"on_bad_target must be one of {get_args(OnBadTarget)}, not {self.on_bad_target!r}"
            )
        if self.rows_per_shard is not None and self.rows_per_shard < 1:
            raise ValueError(f"rows_per_shard must be at least 1; got {self.rows_per_shard}")
        longest = 2**15 if self.max_length is None else self.max_length
        Settings((), self.level, longest, self.bos, self.eos, self.on_unknown, self.on_overflow)

    def tokenizer(self, vocabulary: Vocabulary, max_length: int) -> SmilesTokenizer:
        """Make the tokeniser."""
        return SmilesTokenizer(
            vocabulary, max_length, self.on_unknown, self.on_overflow, self.bos, self.eos
        )

    def plain(self) -> dict[str, Any]:
        """Give the settings as JSON values, the vocabulary as its fingerprint."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if self.vocabulary is not None:
            values["vocabulary"] = self.vocabulary.fingerprint
            values["level"] = self.vocabulary.level
        return values | {"targets": list(self.targets)}


def write_token_cache(source: str | Path, folder: str | Path, settings: CacheSettings) -> int:
    r"""Encode a molecule file into a cache that `TokenCache` reads.

    Whatever ends it, even a kill, the same call continues after the last whole shard, and the files
    are those of a call that was never stopped. On a finished cache it compares the digests. Before
    the first whole shard a call of another source or with other settings starts anew.

    Parameters
    ----------
    source : str or Path
        ``.smi``, ``.csv``, ``.csv.gz`` or ``.parquet`` (`stib_fast.chem.read_batches`).
    folder : str or Path
        A new or empty folder, or the cache to continue.
    settings : CacheSettings

    Returns
    -------
    int
        Rows of the source that this call encoded; 0 where the cache was complete.

    Raises
    ------
    OSError
        The source cannot be read or the folder not be written; what is written stays of use.
    ValueError
        What the policies of `settings` refuse (row, counted from 1 after the header, and column); a
        source without rows to keep; a folder that holds something else, a cache of another source
        or of other settings, or one that another process is writing.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = Path(folder) / "molecules.smi"
    ...     _ = source.write_text("CCO ethanol\nC methane\n")
    ...     write_token_cache(source, Path(folder) / "cache", CacheSettings())
    ...     write_token_cache(source, Path(folder) / "cache", CacheSettings())
    2
    0
    """
    source, folder = Path(source), Path(folder)
    before = _size_and_time(source)
    _refuse_something_else(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        return _write(source, folder, settings, before)


def _write(source: Path, folder: Path, settings: CacheSettings, before: tuple[int, int]) -> int:
    with _bar("reading", before[0]) as on_read:
        facts: dict[str, Any] = {
            "name": source.name,
            "bytes": before[0],
            "sha256": file_digest(source, on_read),
        }
    record = _record_to_continue(folder, source, facts, settings)
    if record is not None:
        with _bar("verifying", sum(shard.bytes for shard in record.shards)) as on_read:
            verify_shards(folder, record, on_read)
        if record.finished:
            return 0
    if record is None:
        record, vocabulary = _plan(source, facts, settings)
        write_text(folder / RECORD, record.to_json())
        write_text(folder / VOCABULARY, json.dumps(vocabulary.to_dict(), indent=1) + "\n")
    begin = record.shards[-1].end if record.shards else 0
    vocabulary = Vocabulary.load(folder / VOCABULARY)
    tokenizer = settings.tokenizer(vocabulary, record.max_length)
    writer = _ShardWriter(folder, record, vocabulary)
    with _bar("encoding", facts["bytes"]) as on_read:
        for rows in _encoded(source, settings, tokenizer, begin, on_read):
            writer.add(rows)
    if _size_and_time(source) != before:
        raise ValueError(f"{source} changed while it was read: delete {folder} and encode again")
    return writer.finish(source) - begin


# ---- what there is already -----------------------------------------------------------------------


def _refuse_something_else(folder: Path) -> None:
    if not folder.exists() or (folder / RECORD).exists():
        return
    # A file called .new is what a killed run left of its very first.
    if any(path.suffix != ".new" and path.name != LOCK for path in folder.iterdir()):
        raise ValueError(f"{folder} holds something else than a token cache: name a new folder")


def _record_to_continue(
    folder: Path, source: Path, facts: dict[str, Any], settings: CacheSettings
) -> CacheRecord | None:
    """Read the record of the same cache; None where it has no shard yet."""
    if not (folder / RECORD).exists():
        return None
    record = read_record(folder)
    if not record.shards:
        return None
    state = "finished" if record.finished else "unfinished"
    remedy = f"name another folder, or delete that {state} cache"
    if facts["sha256"] != record.source["sha256"]:
        raise ValueError(
            f"{folder} is a cache of {record.source['name']} with {record.source['bytes']} bytes; "
            f"{source} has other content, {facts['bytes']} bytes: {remedy}"
        )
    there, here = record.settings, settings.plain()
    different = [
        f"{name} is {there.get(name)!r} there and {here[name]!r} here"
        for name in here
        if there.get(name) != here[name]
    ]
    if different:
        raise ValueError(f"{folder} is a cache of other settings: {', '.join(different)}; {remedy}")
    return record


def _plan(
    source: Path, facts: dict[str, Any], settings: CacheSettings
) -> tuple[CacheRecord, Vocabulary]:
    """Find what the settings leave to the file: vocabulary and length."""
    vocabulary, max_length = settings.vocabulary, settings.max_length
    if vocabulary is None or max_length is None:
        level = vocabulary.level if vocabulary else settings.level
        builder = VocabularyBuilder(level, drop_malformed=settings.on_unknown == "drop")
        first_row = 0
        with _bar("collecting tokens", facts["bytes"]) as on_read:
            for batch in read_batches(source, [settings.smiles], on_read):
                strings = as_strings(source, settings.smiles, batch.column(0))
                with _named(source, settings.smiles):
                    builder.add(strings, first_row + 1)
                first_row += batch.num_rows
        if not builder.longest:
            raise ValueError(f"{source}: there is no well-formed SMILES in its {first_row} rows")
        vocabulary = vocabulary or builder.vocabulary()
        max_length = max_length or builder.longest + settings.bos + settings.eos
    row_bytes = _row_type(vocabulary, max_length, len(settings.targets)).itemsize
    rows_per_shard = settings.rows_per_shard or max(1, SHARD_BYTES // row_bytes)
    if rows_per_shard * row_bytes > LARGEST_SHARD_BYTES:
        raise ValueError(
            f"rows_per_shard: {rows_per_shard} rows of {row_bytes} bytes are more than the 2 GiB "
            "that a shard may have"
        )
    record = CacheRecord(
        source=facts,
        settings=settings.plain(),
        fingerprint=vocabulary.fingerprint,
        max_length=max_length,
        rows_per_shard=rows_per_shard,
        finished=False,
        shards=(),
    )
    return record, vocabulary


# ---- rows ----------------------------------------------------------------------------------------


class _Encoded(NamedTuple):
    """Rows of the source as columns of a shard; `reasons` is 0 for those to keep."""

    first_row: int
    reasons: NDArray[numpy.uint8]
    columns: dict[str, NDArray[Any]]


def _encoded(
    source: Path, settings: CacheSettings, tokenizer: SmilesTokenizer, begin: int, on_read: OnRead
) -> Iterator[_Encoded]:
    """Encode the rows from `begin` on, in pieces that need at most `PIECE_BYTES`."""
    row = _row_type(tokenizer.vocabulary, tokenizer.max_length, len(settings.targets))
    step = max(1, PIECE_BYTES // row.itemsize)
    first_row = 0
    for batch in read_batches(source, [settings.smiles, *settings.targets], on_read):
        for offset in range(max(0, begin - first_row), batch.num_rows, step):
            piece = batch.slice(offset, step)
            yield _encode(source, settings, tokenizer, piece, first_row + offset)
        first_row += batch.num_rows


def _encode(
    source: Path,
    settings: CacheSettings,
    tokenizer: SmilesTokenizer,
    batch: pyarrow.RecordBatch,
    first_row: int,
) -> _Encoded:
    strings = as_strings(source, settings.smiles, batch.column(0))
    with _named(source, settings.smiles):
        ids, lengths, status = tokenizer.encode_each(strings, first_row + 1)
    reasons = status.numpy().copy()
    rows = numpy.arange(first_row, first_row + batch.num_rows)
    columns = {"ids": ids.numpy(), "length": lengths.numpy(), "row": rows}
    if settings.targets:
        cells = zip(settings.targets, batch.columns[1:], strict=True)
        targets = numpy.stack([as_numbers(source, *cell) for cell in cells], axis=1)
        bad = ~numpy.isfinite(targets) & (reasons == Status.KEPT)[:, None]
        if settings.on_bad_target == "error":
            _refuse(source, batch, bad, first_row)
        reasons[bad.any(1)] = _BAD_TARGET
        columns["targets"] = targets
    return _Encoded(first_row, reasons, columns)


def _refuse(
    source: Path, batch: pyarrow.RecordBatch, bad: NDArray[numpy.bool_], first_row: int
) -> None:
    """Raise for the first bad target; the SMILES are column 0 of the batch."""
    if bad.any():
        row, target = numpy.argwhere(bad)[0].tolist()
        name, cell = batch.schema.names[1 + target], batch.column(1 + target)[row].as_py()
        raise ValueError(
            f"{source}: column {name!r}, row {first_row + row + 1}: {cell!r} is not a finite "
            "number; mend the file, or leave such rows out: --on-bad-target drop "
            "(on_bad_target='drop')"
        )


@contextmanager
def _named(source: Path, column: str) -> Iterator[None]:
    """Say in which file and column an error is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: column {column!r}, {error}") from error


# ---- shards --------------------------------------------------------------------------------------


class _ShardWriter:
    """Collect the rows of a shard in memory, write it, and note it in ``cache.json``."""

    def __init__(self, folder: Path, record: CacheRecord, vocabulary: Vocabulary) -> None:
        self._folder = folder
        self.record = record
        row = _row_type(vocabulary, record.max_length, len(record.settings["targets"]))
        self._columns = {
            name: numpy.empty((record.rows_per_shard, *kind.shape), kind.base)
            for name, (kind, *_) in (row.fields or {}).items()
        }
        self._begin = record.shards[-1].end if record.shards else 0
        self._start_shard(self._begin)

    def _start_shard(self, begin: int) -> None:
        self._begin = self._end = begin
        self._used = 0
        self._dropped = numpy.zeros(len(_REASONS) + 1, dtype=numpy.int64)

    def add(self, rows: _Encoded) -> None:
        """Take in the rows to keep; a full shard is written when one more comes."""
        kept = numpy.flatnonzero(rows.reasons == Status.KEPT)
        begin = taken = 0
        while True:
            room = self.record.rows_per_shard - self._used
            more = len(kept) - taken > room
            end = kept[taken + room] if more else len(rows.reasons)
            chosen = kept[taken : taken + room]
            for name, column in self._columns.items():
                places = column[self._used : self._used + len(chosen)]
                values = rows.columns[name].astype(column.dtype, copy=False)
                # The mode that checks indices writes through a copy.
                numpy.take(values, chosen, axis=0, out=places, mode="clip")
            self._used += len(chosen)
            self._dropped += numpy.bincount(rows.reasons[begin:end], minlength=len(self._dropped))
            self._end = rows.first_row + int(end)
            if not more:
                return
            self._write_shard()
            begin, taken = end, taken + room

    def finish(self, source: Path) -> int:
        """Write what is left; returns the number of the source's rows."""
        if self._used:
            self._write_shard()
        if not self.record.shards:
            raise ValueError(f"{source}: none of the {self._end} rows is kept: {self._reasons()}")
        self._note(replace(self.record, finished=True))
        return self._end

    def _write_shard(self) -> None:
        number = len(self.record.shards)
        path = self._folder / f"tokens-{number:05}.arrow"
        table = {name: column[: self._used] for name, column in self._columns.items()}
        metadata = {"key": self.record.key, "fingerprint": self.record.fingerprint}
        with replacing(path) as file:
            _write_arrow(file, table, metadata | {"shard": str(number)})
        shard = ShardRecord(
            file=path.name,
            rows=self._used,
            begin=self._begin,
            end=self._end,
            bytes=path.stat().st_size,
            sha256=file_digest(path),
            dropped=self._reasons(),
        )
        self._note(replace(self.record, shards=(*self.record.shards, shard)))
        self._start_shard(self._end)

    def _reasons(self) -> dict[str, int]:
        return {name: int(self._dropped[reason]) for reason, name in _REASONS.items()}

    def _note(self, record: CacheRecord) -> None:
        write_text(self._folder / RECORD, record.to_json())
        self.record = record


def _write_arrow(
    file: IO[bytes], table: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]
) -> None:
    import pyarrow

    columns = []
    for column in table.values():
        values = pyarrow.array(column.reshape(-1))
        if column.ndim == 2:
            item = pyarrow.field("item", values.type, nullable=False)
            kind = pyarrow.list_(item, column.shape[1])
            values = pyarrow.FixedSizeListArray.from_arrays(values, type=kind)
        columns.append(values)
    fields = [
        pyarrow.field(name, column.type, nullable=False)
        for name, column in zip(table, columns, strict=True)
    ]
    schema = pyarrow.schema(fields, metadata=dict(metadata))
    with pyarrow.ipc.new_file(file, schema) as writer:
        writer.write_batch(pyarrow.record_batch(columns, schema=schema))


# ---- files ---------------------------------------------------------------------------------------


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other writers out, where the system can; however this one ends, the lock is freed."""
    with (folder / LOCK).open("ab") as file:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"{folder} is being written by another process: wait for it, or name another "
                    "folder"
                ) from error
            except OSError:  # a file system without locks
                pass
        yield


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _row_type(vocabulary: Vocabulary, max_length: int, targets: int) -> numpy.dtype[Any]:
    """What a shard holds of a row."""
    fields: list[tuple[str, Any, tuple[int, ...]]] = [
        ("ids", numpy.uint8 if len(vocabulary) <= 256 else numpy.int16, (max_length,)),
        ("length", numpy.int16 if max_length < 2**15 else numpy.int32, ()),
        ("row", numpy.int64, ()),
    ]
    if targets:
        fields.append(("targets", numpy.float64, (targets,)))
    return numpy.dtype(fields)


@contextmanager
def _bar(what: str, total: int) -> Iterator[OnRead]:
    """Show the progress in bytes; nothing where there is no terminal."""
    with tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None) as bar:
        yield bar.update
