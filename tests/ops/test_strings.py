"""Every form in which strings may come reads as the list of them does."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from stib_fast.ops.smiles import Settings, Status, count, encode
from stib_fast.ops.strings import ByteStrings, strings_of

TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", "C", "Cl", "c", "1", "[nH]", "%12", "[C@@H2+:12]")
SETTINGS = Settings(TOKENS, "atom", 12, False, True, "drop", "drop")
# Kept, malformed, unknown and too long; behind them, enough for the vector code to reach all.
PLAIN = ["C", "CCl", "C[", "", "N", "c1cc[nH]c1", "C" * 70, "[C@@H2+:12]C%12", "C C", "C\x7f", "Cé"]
PLAIN += ["C"] * 9
WITH_MISSING = [None, *PLAIN, None, None]


class StreamOnly:
    """Another library's column: nothing but Arrow's PyCapsule of a stream."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return pyarrow.chunked_array(self._array).__arrow_c_stream__(requested_schema)


class ArrayOnly:
    """Another library's array: nothing but Arrow's PyCapsules of one."""

    def __init__(self, array: pyarrow.Array) -> None:
        self._array = array

    def __arrow_c_array__(self, requested_schema: object = None) -> object:
        return self._array.__arrow_c_array__(requested_schema)


def assert_reads_as(form: Any, smiles: list[str | None]) -> None:
    parts = strings_of(form)
    assert sum(map(len, parts)) == len(smiles)
    assert [part.text(row) for part in parts for row in range(len(part))] == smiles
    found, wanted = encode(parts, SETTINGS), encode(strings_of(list(smiles)), SETTINGS)
    for tensor, same in zip(found, wanted, strict=True):
        assert torch.equal(tensor, same)
    for part in parts:
        texts = [part.text(row) for row in range(len(part))]
        assert count(part, "atom").counts == count(strings_of(texts)[0], "atom").counts


def assert_same_error(form: Any, smiles: list[str | None], message: str) -> None:
    strict = Settings(TOKENS, "atom", 12, False, True, "error", "error")
    for strings in (form, smiles):
        with pytest.raises(ValueError, match=message):
            encode(strings_of(strings), strict)


# ---- Python --------------------------------------------------------------------------------------


class Name(str):
    """A str of another layout in memory than str's own."""


def test_lists_and_other_iterables(backend: str) -> None:
    assert_reads_as(WITH_MISSING, WITH_MISSING)
    assert_reads_as(tuple(WITH_MISSING), WITH_MISSING)
    assert_reads_as((text for text in WITH_MISSING), WITH_MISSING)
    assert_reads_as(dict.fromkeys(["C", "Cl"]), ["C", "Cl"])
    assert_reads_as([], [])
    assert_reads_as(iter(()), [])


def test_subclasses_of_str(backend: str) -> None:
    assert_reads_as(list(map(Name, PLAIN)), PLAIN)
    assert_reads_as(list(np.array(PLAIN)), PLAIN)  # a list of numpy.str_


def test_strings_of_every_width_in_memory(backend: str) -> None:
    smiles = ["C", "Cé", "C\u0661", "C\U0001f600", "C\ud800", "C\x80"] * 10
    assert_reads_as(smiles, smiles)


def test_nan_is_a_missing_string(backend: str) -> None:
    [strings] = strings_of(np.array(["C", float("nan"), None], dtype=object))
    assert count(strings, "atom").status.tolist() == [Status.KEPT, Status.MISSING, Status.MISSING]


@pytest.mark.parametrize("entry", [3, b"C", ["C"], pyarrow.scalar("C")])
@pytest.mark.parametrize("on_unknown", ["error", "drop"])
def test_entries_that_are_no_strings(backend: str, entry: object, on_unknown: str) -> None:
    chosen = Settings(TOKENS, "atom", 12, False, True, on_unknown, "error")
    with pytest.raises(ValueError, match="row 1: expected a SMILES string"):
        encode(strings_of(["C", entry, "C["]), chosen)


@pytest.mark.parametrize("smiles", ["CCO", b"CCO", np.str_("CCO")])
def test_one_string_is_not_a_list(smiles: object) -> None:
    with pytest.raises(ValueError, match="not one string"):
        strings_of(smiles)


@pytest.mark.parametrize("smiles", [None, 3, 1.5])
def test_what_holds_no_strings(smiles: object) -> None:
    with pytest.raises(ValueError, match="smiles must be strings, not"):
        strings_of(smiles)


# ---- NumPy ---------------------------------------------------------------------------------------


def numpy_forms(smiles: list[str]) -> Iterator[np.ndarray]:
    wide = np.array(smiles)
    narrow = np.array([text.encode() for text in smiles])
    for array in (wide, narrow):
        yield array
        yield array.astype(array.dtype.newbyteorder(">"))
        yield np.repeat(array, 3)[::3]
        yield array[::-1][::-1]
        yield array.astype(f"{array.dtype.kind}{200}")
        yield np.array([(text, 1) for text in array], [("text", array.dtype), ("n", "i1")])["text"]
        yield np.frombuffer(b"-" + array.tobytes(), array.dtype, offset=1)  # at an odd address
        read_only = array.copy()
        read_only.flags.writeable = False
        yield read_only
    yield wide.astype(object)
    if hasattr(np.dtypes, "StringDType"):
        yield wide.astype(np.dtypes.StringDType())


def test_numpy_arrays(backend: str) -> None:
    for array in numpy_forms(PLAIN):
        assert_reads_as(array, PLAIN)


def test_numpy_arrays_with_missing_strings(backend: str) -> None:
    assert_reads_as(np.array(WITH_MISSING, dtype=object), WITH_MISSING)
    if hasattr(np.dtypes, "StringDType"):
        array = np.array(WITH_MISSING, dtype=np.dtypes.StringDType(na_object=None))
        assert_reads_as(array, WITH_MISSING)


@pytest.mark.parametrize("dtype", ["U", "S", "U0", "S0", "U7", "S7", "O"])
@pytest.mark.parametrize("rows", [0, 3])
def test_numpy_arrays_without_characters(backend: str, dtype: str, rows: int) -> None:
    assert_reads_as(np.full(rows, "", dtype), [""] * rows)


def test_zeros_within_a_numpy_string(backend: str) -> None:
    # At the end NumPy's layout cannot tell them from padding.
    assert_reads_as(np.array(["C\0C", "\0C", "C\0"] * 9), ["C\0C", "\0C", "C"] * 9)
    assert_reads_as(np.array([b"C\0C", b"\0C", b"C\0"] * 9), ["C\0C", "\0C", "C"] * 9)


def test_numpy_bytes_that_are_not_utf8(backend: str) -> None:
    assert_reads_as(np.array([b"C\xff", b"\xc3"] * 9), ["C\ufffd", "\ufffd"] * 9)


def test_errors_name_row_and_column_of_a_numpy_array(backend: str) -> None:
    for array in numpy_forms(["C", "CC["]):
        assert_same_error(array, ["C", "CC["], r"^row 1: .*column 3")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([["C"]]), r"array \[N\], not \[1, 1\]"),
        (np.array("C"), r"array \[N\], not \[\]"),
        (np.array([1, 2]), "not of int64"),
        (np.array([1.5]), "not of float64"),
        (np.array([b"C"], "V1"), "not of"),
    ],
)
def test_other_numpy_arrays_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        strings_of(array)


# ---- Arrow ---------------------------------------------------------------------------------------

TYPES = [
    pyarrow.string(),
    pyarrow.large_string(),
    pyarrow.string_view(),
    pyarrow.dictionary(pyarrow.int8(), pyarrow.string()),
]


def arrow_forms(smiles: list[str | None], type: pyarrow.DataType) -> Iterator[Any]:
    array = pyarrow.array(smiles, type)
    yield array
    around = pyarrow.array([None, "[", "c" * 99, *smiles, "[", None], type)
    for before in range(4):  # of nulls too: their bits begin anywhere in a byte
        yield pyarrow.concat_arrays([around[3 - before : 3], array])[before:]
    yield around[3:-2]
    empty = array[:0]
    yield pyarrow.chunked_array([empty, array[:4], empty, empty, array[4:5], array[5:], empty])
    yield ArrayOnly(around[3:-2])
    yield StreamOnly([array[:4], array[4:]])
    yield StreamOnly([array])


@pytest.mark.parametrize("type", TYPES, ids=str)
def test_arrow_arrays(backend: str, type: pyarrow.DataType) -> None:
    for smiles in (PLAIN, WITH_MISSING):
        for form in arrow_forms(smiles, type):
            assert_reads_as(form, smiles)


@pytest.mark.parametrize("type", [*TYPES, pyarrow.null()], ids=str)
def test_arrow_arrays_without_strings(backend: str, type: pyarrow.DataType) -> None:
    for rows in (0, 3):
        assert_reads_as(pyarrow.nulls(rows, type), [None] * rows)
        assert_reads_as(pyarrow.chunked_array([pyarrow.nulls(rows, type)]), [None] * rows)
    assert_reads_as(pyarrow.chunked_array([], type), [])
    assert_reads_as(pyarrow.nulls(9, type)[4:], [None] * 5)
    if type != pyarrow.null():
        assert_reads_as(pyarrow.array(["", ""], type), ["", ""])


@given(
    rows=st.lists(st.sampled_from(WITH_MISSING), max_size=40),
    begin=st.integers(0, 20),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    large=st.booleans(),
)
def test_slices_and_chunks(
    rows: list[str | None], begin: int, cuts: list[int], large: bool
) -> None:
    array = pyarrow.array(rows, pyarrow.large_string() if large else pyarrow.string())[begin:]
    places = [0, *sorted(min(cut, len(array)) for cut in cuts), len(array)]
    chunks = [array[begin:end] for begin, end in pairwise(places)]
    assert_reads_as(pyarrow.chunked_array(chunks, array.type), rows[begin:])


def test_arrow_offsets_need_not_begin_at_zero(backend: str) -> None:
    offsets = pyarrow.py_buffer(np.array([3, 4, 4, 6], np.int32))
    data = pyarrow.py_buffer(b"[[[CCl")
    array = pyarrow.StringArray.from_buffers(3, offsets, data)
    assert_reads_as(array, ["C", "", "Cl"])


def test_arrow_bytes_that_are_not_utf8(backend: str) -> None:
    offsets = pyarrow.py_buffer(np.array([0, 2, 3], np.int32))
    array = pyarrow.StringArray.from_buffers(2, offsets, pyarrow.py_buffer(b"C\xffC"))
    assert_reads_as(array, ["C\ufffd", "C"])


def test_corrupt_arrow_offsets_are_an_error(library: None) -> None:
    for offsets in ([0, 2, 1], [0, 9, 2]):  # pyarrow looks at the outer ones
        buffer = pyarrow.py_buffer(np.array(offsets, np.int32))
        array = pyarrow.StringArray.from_buffers(2, buffer, pyarrow.py_buffer(b"CCC"))
        with pytest.raises(ValueError, match="offsets must ascend and stay within the data"):
            encode(strings_of(array), SETTINGS)


def test_errors_name_row_and_column_of_an_arrow_array(backend: str) -> None:
    for form in arrow_forms(["C", "C", "C", "C", "C", "CC["], pyarrow.string()):
        assert_same_error(form, ["C"] * 5 + ["CC["], r"^row 5: .*column 3")
    for form in arrow_forms(["C", None], pyarrow.large_string()):
        assert_same_error(form, ["C", None], r"^row 1: the SMILES is missing")


@pytest.mark.parametrize(
    "form",
    [
        pyarrow.array([1, 2]),
        pyarrow.array([b"C"]),
        pyarrow.array([["C"]]),
        pyarrow.chunked_array([[1.5]]),
        pyarrow.array([1, 1]).dictionary_encode(),
        pyarrow.table({"smiles": ["C"]}),
    ],
    ids=["int64", "binary", "list", "chunked", "dictionary", "table"],
)
def test_other_arrow_arrays_are_refused(form: Any) -> None:
    with pytest.raises(ValueError, match="smiles must be an Arrow array of strings, not of"):
        strings_of(form)


# ---- bytes with offsets --------------------------------------------------------------------------


def test_byte_strings() -> None:
    data = torch.frombuffer(bytearray("xCé[".encode()), dtype=torch.uint8)
    strings = ByteStrings(data, torch.tensor([1, 1, 4, 5]))
    assert len(strings) == 3
    assert [strings.text(row) for row in range(3)] == ["", "Cé", "["]


# ---- the lines of a .smi file --------------------------------------------------------------------


def split(block: bytes) -> tuple[list[str], list[str]]:
    from stib_fast import _smiles

    def texts(offsets: np.ndarray, data: Any) -> list[str]:
        assert offsets.dtype == np.int32
        joined = bytes(data)
        assert (offsets[0], offsets[-1]) == (0, len(joined))
        return [joined[begin:end].decode("latin-1") for begin, end in pairwise(offsets)]

    smiles, names = _smiles.split_lines(block)
    return texts(*smiles), texts(*names)


@pytest.mark.parametrize(
    ("block", "smiles", "names"),
    [
        (b"", [], []),
        (b"\n", [], []),
        (b"\r\n \t\n\n", [], []),
        (b"C", ["C"], [""]),
        (b"C\n", ["C"], [""]),
        (b"C\nN", ["C", "N"], ["", ""]),
        (b"C\r\nN\r\n", ["C", "N"], ["", ""]),
        (b"C methane\nN", ["C", "N"], ["methane", ""]),
        (b"C\tmethane 1\r\nN \t ammonia\t\r\n", ["C", "N"], ["methane 1", "ammonia"]),
        (b"  C  \n\tN\tx\n", ["C", "N"], ["", "x"]),
        (b"C\n\n \nN\n", ["C", "N"], ["", ""]),
        (b"C[C@@H](Cl)Br isomer (R)", ["C[C@@H](Cl)Br"], ["isomer (R)"]),
        # A control byte is no end of a word: the tokeniser is to see it.
        (b"C\x00C\x0b name\x00\n", ["C\x00C\x0b"], ["name\x00"]),
        (b"C\xff \xc3\xa9\n", ["C\xff"], ["\xc3\xa9"]),
        (b"C" * 8 + b"\n" + b"N" * 7 + b" x", ["C" * 8, "N" * 7], ["", "x"]),
    ],
)
def test_split_lines(library: None, block: bytes, smiles: list[str], names: list[str]) -> None:
    assert split(block) == (smiles, names)


@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [b"\n", b"\r\n", b"\n", b" ", b"\t", b"\r", b"\0", b"\x1f", b"!", b"\xa1"]
            ),
            st.binary(max_size=3),
            st.builds(lambda length: b"C" * length, st.integers(1, 20)),
        ),
        max_size=40,
    ).map(b"".join)
)
@example(b"!" * 8 + b" " * 8 + b"!" * 8)
@example(b"\x21\x20\x21\x20\x21\x20\x21\x20\n" * 3)
@example(b"\x80\xa0\xff\x21\x1f\x20\x21\n")
def test_split_lines_keeps_every_line(block: bytes) -> None:
    smiles, names = [], []
    for line in block.decode("latin-1").split("\n"):
        line = line.strip(" \t\r")
        word = line.translate({ord("\t"): " ", ord("\r"): " "}).partition(" ")[0]
        if word:
            smiles.append(word)
            names.append(line[len(word) :].strip(" \t\r"))
    assert split(block) == (smiles, names)


def test_split_lines_of_arrow_strings(library: None) -> None:
    from stib_fast import _smiles

    (offsets, data), _ = _smiles.split_lines(b"C\nCCl name\r\n\nc1cc[nH]c1")
    array = pyarrow.StringArray.from_buffers(
        len(offsets) - 1, pyarrow.py_buffer(offsets), pyarrow.py_buffer(data)
    )
    array.validate(full=True)
    assert_reads_as(array, ["C", "CCl", "c1cc[nH]c1"])
