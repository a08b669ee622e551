"""Columns of molecule files as Arrow record batches, in bounded memory."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy
import torch
from numpy.typing import NDArray

from stib_fast.backends import backend_for

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".smi", ".smi.gz", ".csv", ".csv.gz", ".parquet")
SMI_COLUMNS = ["smiles", "name"]
BLOCK_BYTES = 16 * 2**20
_PARQUET_ROWS = 2**16
_BLANKS = b" \t\r"

OnRead = Callable[[int], object]


def read_batches(
    path: str | Path, columns: Sequence[str], on_read: OnRead | None = None
) -> Iterator[pyarrow.RecordBatch]:
    r"""Read columns of a molecule file batch by batch, about 16 MB at a time.

    Parameters
    ----------
    path : str or Path
        ``.smi``, ``.csv`` (both also with ``.gz``) or ``.parquet``. A line of a ``.smi`` file is a
        SMILES up to the first blank, tab or carriage return, then a name; there is no header, and
        blank lines are no records. CSV files are UTF-8, with a header; quoted cells may hold
        newlines.
    columns : sequence of str
        The columns to read; ``smiles`` and ``name`` of a ``.smi`` file.
    on_read : callable, optional
        Called with the number of bytes after each read from the file, for progress bars.

    Yields
    ------
    pyarrow.RecordBatch
        The columns, in the order asked for, with at least one row. Those of ``.smi`` and CSV files
        are strings without nulls, blanks and newlines around them taken off; those of Parquet files
        are as they are stored.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        Another suffix; a column that is missing, appears or is asked for more than once; rows of
        unequal length; a row above 16 MB; a damaged file, or one that is not UTF-8. The message
        names the file, counts rows from 1 after the header, and lists the columns there are.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "molecules.smi"
    ...     _ = path.write_text("CCO ethanol\nC methane\n")
    ...     [batch.to_pydict() for batch in read_batches(path, ["name", "smiles"])]
    [{'name': ['ethanol', 'methane'], 'smiles': ['CCO', 'C']}]
    """
    path = Path(path)
    read = {".smi": _smi_batches, ".csv": _csv_batches, ".parquet": _parquet_batches}[_kind(path)]
    with path.open("rb") as file, _damage_named(path):
        names = _names(path, file)
        _check_columns(path, names, columns)
        file.seek(0)
        for batch in read(path, _Counted(file, on_read) if on_read else file, columns, names):
            if batch.num_rows:
                yield batch


def columns_of(path: str | Path) -> list[str]:
    """List the columns of a molecule file; the names of a CSV header without blanks around them.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        Another suffix, or a damaged file.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "table.csv"
    ...     _ = path.write_text("smiles, logP")
    ...     columns_of(path)
    ['smiles', 'logP']
    """
    path = Path(path)
    _kind(path)
    with path.open("rb") as file, _damage_named(path):
        return [name.strip() for name in _names(path, file)]


def _kind(path: Path) -> str:
    name = path.name.lower()
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return suffix.removesuffix(".gz")
    raise ValueError(f"{path}: the name of a molecule file ends in one of {', '.join(SUFFIXES)}")


def _names(path: Path, file: IO[bytes]) -> list[str]:
    """Column names as the file has them."""
    kind = _kind(path)
    if kind == ".smi":
        return SMI_COLUMNS
    if kind == ".csv":
        return _csv_header(path, file)
    from pyarrow import parquet

    return list(parquet.ParquetFile(file).schema_arrow.names)


def _check_columns(path: Path, names: list[str], columns: Sequence[str]) -> None:
    found = [name.strip() for name in names]
    for column in columns:
        if column not in found:
            raise ValueError(f"{path}: column {column!r} is missing; there are {found}")
        if found.count(column) > 1:
            raise ValueError(f"{path}: column {column!r} appears more than once")
        if list(columns).count(column) > 1:
            raise ValueError(f"{path}: column {column!r} is asked for more than once")


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what readers say of a damaged file into an error that names it."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, csv.Error, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"{path}: {_one_line(error)}") from error
    except OSError as error:
        # The system's errors have a number; without one it is a decompressor that complains.
        if error.errno is not None:
            raise
        raise ValueError(f"{path}: damaged: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    # Arrow counts the header.
    text = re.sub(r"\bRow #(\d+)", lambda found: f"row {int(found[1]) - 1}", text, count=1)
    return text if len(text) <= 300 else text[:297] + "..."


class _Counted(io.RawIOBase):
    """A file that tells how much is read from it."""

    def __init__(self, file: IO[bytes], on_read: OnRead) -> None:
        self._file = file
        self._on_read = on_read

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._on_read(len(content))
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _uncompressed(path: Path, file: Any) -> Any:
    if path.suffix.lower() != ".gz":
        return file
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "gzip")


def _csv_header(path: Path, file: IO[bytes]) -> list[str]:
    unpacked = gzip.GzipFile(fileobj=file) if path.suffix.lower() == ".gz" else file
    # Bytes that are not UTF-8 matter where they are: the reader's buffer goes past the header.
    text = io.TextIOWrapper(unpacked, encoding="utf-8-sig", errors="replace", newline="")
    header = next((row for row in csv.reader(text) if row), [])
    text.detach()
    return header


def _csv_batches(
    path: Path, file: Any, columns: Sequence[str], names: list[str]
) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow
    from pyarrow import compute
    from pyarrow import csv as arrow_csv

    stripped = [name.strip() for name in names]
    stored = [names[stripped.index(column)] for column in columns]
    try:
        reader = arrow_csv.open_csv(
            _uncompressed(path, file),
            # On one thread the reader knows the number of a faulty row.
            arrow_csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
            arrow_csv.ParseOptions(newlines_in_values=True),
            arrow_csv.ConvertOptions(
                include_columns=stored,
                column_types=dict.fromkeys(stored, pyarrow.string()),
                strings_can_be_null=False,
            ),
        )
    except pyarrow.ArrowInvalid as error:
        if "cannot infer number of columns" in str(error):  # a header without a newline
            return
        raise
    with reader:
        for batch in reader:
            trimmed = [compute.utf8_trim_whitespace(column) for column in batch.columns]
            yield pyarrow.record_batch(trimmed, names=list(columns))


def _parquet_batches(
    path: Path, file: Any, columns: Sequence[str], names: list[str]
) -> Iterator[pyarrow.RecordBatch]:
    from pyarrow import parquet

    # Without these two settings a whole row group is read before its first batch is there.
    table = parquet.ParquetFile(file, buffer_size=2**20, pre_buffer=False)
    for batch in table.iter_batches(_PARQUET_ROWS, columns=list(columns), use_threads=False):
        yield batch.select(list(columns))


def _smi_batches(
    path: Path, file: Any, columns: Sequence[str], names: list[str]
) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    first_row = 0
    for block in _whole_lines(path, _uncompressed(path, file)):
        try:
            fields = dict(zip(SMI_COLUMNS, split_lines(block), strict=True))
        except UnicodeDecodeError as error:
            before = block[: block.rfind(b"\n", 0, error.start) + 1]
            row = first_row + len(split_lines(before)[0]) + 1
            raise ValueError(f"{path}: row {row} is not UTF-8") from error
        first_row += len(fields["smiles"])
        yield pyarrow.record_batch([fields[name] for name in columns], names=list(columns))


def _whole_lines(path: Path, stream: Any) -> Iterator[bytes]:
    """Blocks of at most twice `BLOCK_BYTES` that end with a newline."""
    rest = b""
    block = stream.read(BLOCK_BYTES).removeprefix(b"\xef\xbb\xbf")
    while following := stream.read(BLOCK_BYTES):
        end = block.rfind(b"\n") + 1
        if end:
            yield rest + block[:end]
            rest = block[end:]
        else:
            rest += block
        if len(rest) > BLOCK_BYTES:
            raise ValueError(f"{path}: a line is longer than {BLOCK_BYTES} bytes")
        block = following
    rest += block
    if rest:
        yield rest if rest.endswith(b"\n") else rest + b"\n"


def split_lines(block: bytes) -> tuple[pyarrow.StringArray, pyarrow.StringArray]:
    r"""SMILES and names of the lines of a ``.smi`` file.

    Parameters
    ----------
    block : bytes
        Whole lines, less than 2 GiB; ends with a newline.

    Returns
    -------
    smiles, names : pyarrow.StringArray
        Of the lines that hold more than blanks: the first word, and the rest.

    Raises
    ------
    UnicodeDecodeError
        The block is not UTF-8.

    Examples
    --------
    >>> smiles, names = split_lines(b"CCO\tethanol \r\n\nC\n")
    >>> smiles.to_pylist(), names.to_pylist()
    (['CCO', 'C'], ['ethanol', ''])
    """
    if not block.isascii():
        block.decode()
    if backend_for(torch.device("cpu"), part="smiles") == "cpp":
        from stib_fast import _smiles

        smiles, names = _smiles.split_lines(block)
        return _string_array(*smiles), _string_array(*names)
    return _split_lines_eager(block)


def _split_lines_eager(block: bytes) -> tuple[pyarrow.StringArray, pyarrow.StringArray]:
    import pyarrow
    from pyarrow import compute

    text = numpy.frombuffer(block, dtype=numpy.uint8)
    is_mark = numpy.isin(text, numpy.frombuffer(_BLANKS + b"\n", dtype=numpy.uint8))
    begins = ~is_mark
    begins[1:] &= is_mark[:-1]
    words = numpy.flatnonzero(begins)
    lines = numpy.searchsorted(numpy.flatnonzero(text == ord("\n")), words)
    starts = words[numpy.diff(lines, prepend=-1) > 0]
    marks = numpy.flatnonzero(is_mark)
    stops = marks[numpy.searchsorted(marks, starts)]
    # First words and what follows them in turns, without a copy.
    offsets = numpy.empty(2 * len(starts) + 1, dtype=numpy.int32)
    offsets[0:-1:2], offsets[1::2], offsets[-1] = starts, stops, len(block)
    pieces = _string_array(offsets, block)
    even = numpy.arange(0, 2 * len(starts), 2)
    names = compute.utf8_trim(pieces.take(pyarrow.array(even + 1)), (_BLANKS + b"\n").decode())
    return pieces.take(pyarrow.array(even)), names


def _string_array(
    offsets: NDArray[numpy.int32], data: bytes | NDArray[numpy.uint8]
) -> pyarrow.StringArray:
    import pyarrow

    return pyarrow.StringArray.from_buffers(
        len(offsets) - 1, pyarrow.py_buffer(offsets), pyarrow.py_buffer(data)
    )
