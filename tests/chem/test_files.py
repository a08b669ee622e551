from __future__ import annotations

import csv
import gzip
import io
import os
import re
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

import stib_fast
from stib_fast.chem import files
from stib_fast.chem.files import columns_of, read_batches, split_lines

WITHOUT_LIBRARY = os.environ.get("STIB_FAST_SKIP_EXT", "") not in ("", "0")
BACKENDS = ["eager"] if WITHOUT_LIBRARY else ["cpp", "eager"]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def columns(path: Path, *names: str) -> dict[str, list]:
    """All rows of a file; every batch has the columns asked for, in that order, and a row."""
    found: dict[str, list] = {name: [] for name in names}
    for batch in read_batches(path, names):
        assert batch.schema.names == list(names)
        assert batch.num_rows
        for name, values in batch.to_pydict().items():
            found[name] += values
    return found


# ---- .smi ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("suffix", [".smi", ".smi.gz", ".SMI"])
def test_smi(tmp_path, suffix):
    content = "\ufeffCCO ethanol and more \r\n\r\n \t\nC\tmethane\r\nN\r\n\nO  é\nF".encode()
    path = write(tmp_path / f"a{suffix}", content)
    assert columns_of(path) == ["smiles", "name"]
    assert columns(path, "name", "smiles") == {
        "name": ["ethanol and more", "methane", "", "é", ""],
        "smiles": ["CCO", "C", "N", "O", "F"],
    }


def test_control_bytes_are_left_to_the_tokeniser(tmp_path):
    path = write(tmp_path / "a.smi", b"\t CCO\nC\x0bC x\x0b\n\x00\n")
    assert columns(path, "smiles", "name") == {
        "smiles": ["CCO", "C\vC", "\0"],
        "name": ["", "x\v", ""],
    }


@given(st.lists(st.text("CNé \t\r", max_size=6), max_size=6), st.integers(1, 40), st.booleans())
def test_smi_blocks_may_end_anywhere(tmp_path_factory, lines, block_bytes, last_newline):
    text = "\n".join(lines) + "\n" * last_newline
    expected = []
    for line in text.split("\n"):
        smiles, *name = re.split("[ \t\r]", line.strip(" \t\r"), maxsplit=1)
        if smiles:
            expected.append((smiles, "".join(name).lstrip(" \t\r")))
    path = write(tmp_path_factory.mktemp("smi") / "a.smi", text.encode())
    longest = max(map(len, text.encode().split(b"\n")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK_BYTES", max(block_bytes, longest))
        found = columns(path, "smiles", "name")
    assert list(zip(*found.values(), strict=True)) == expected


@given(st.binary(max_size=40).map(lambda text: text.replace(b"C", b" ") + b"\n"))
def test_the_backends_split_alike(block):
    block = block.decode(errors="replace").encode()
    found = []
    for backend in BACKENDS:
        with stib_fast.backend(backend):
            arrays = split_lines(block)
        for array in arrays:
            array.validate(full=True)
        found.append([array.to_pylist() for array in arrays])
    assert all(each == found[0] for each in found)


def test_lines_agree_with_str_split(backend):
    lines = [f"{'C' * (i % 7)}N name{i}" for i in range(1000)]
    smiles, names = split_lines(("\n".join(lines) + "\n").encode())
    assert [f"{s} {n}" for s, n in zip(smiles.to_pylist(), names.to_pylist(), strict=True)] == lines


# ---- .csv ----------------------------------------------------------------------------------------

ZINC = b'smiles,logP,"qed "\r\n"CCO\n",1.5,0.4\r\n" C ",,nan\r\n\r\n"a""b,c",NA,\xc3\xa9\r\n'


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".CSV"])
def test_csv_cells_are_stripped_strings(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", b"\xef\xbb\xbf" + ZINC)
    assert columns_of(path) == ["smiles", "logP", "qed"]
    assert columns(path, "qed", "smiles", "logP") == {
        "qed": ["0.4", "nan", "é"],
        "smiles": ["CCO", "C", 'a"b,c'],
        "logP": ["1.5", "", "NA"],
    }


@given(
    st.lists(st.tuples(st.text('C\n," ', max_size=5), st.text("é1,", max_size=5)), max_size=8),
    st.integers(32, 64),
)
def test_csv_blocks_may_end_anywhere(tmp_path_factory, rows, block_bytes):
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("smiles", "x"), *rows])
    path = write(tmp_path_factory.mktemp("csv") / "a.csv", text.getvalue().encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK_BYTES", block_bytes)  # a row has at most 29 bytes
        found = columns(path, "smiles", "x")
    assert list(zip(*found.values(), strict=True)) == [(a.strip(), b.strip()) for a, b in rows]


@pytest.mark.parametrize("content", [b"smiles,x", b"smiles,x\n", b"\n\nsmiles,x\n\n"])
def test_a_header_alone_has_no_rows(tmp_path, content):
    assert columns(write(tmp_path / "a.csv", content), "x") == {"x": []}


# ---- .parquet ------------------------------------------------------------------------------------


def test_parquet_columns_keep_their_types(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"x": [1.5, None, 2.0], "smiles": ["C ", None, "N"], "n": [1, 2, 3]})
    parquet.write_table(table, path, row_group_size=2)
    assert columns_of(path) == ["x", "smiles", "n"]
    assert columns(path, "n", "smiles", "x") == {
        "n": [1, 2, 3],
        "smiles": ["C ", None, "N"],
        "x": [1.5, None, 2.0],
    }
    assert next(read_batches(path, ["x"])).schema.types == [pyarrow.float64()]


# ---- errors --------------------------------------------------------------------------------------

GZIPPED = gzip.compress(b"smiles,x\n" + b"".join(b"C,%d\n" % i for i in range(5000)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", r"column 'smiles' is missing; there are \[\]"),
        ("a.csv", b"SMILES;x\nC;1\n", r"column 'smiles' is missing; there are \['SMILES;x'\]"),
        ("a.csv", b"smiles,x, smiles\nC,1,N\n", "column 'smiles' appears more than once"),
        ("a.csv", b"smiles,x\nC,1\nN\nO,2\n", "row 2: Expected 2 columns, got 1: N"),
        ("a.csv", b"smiles,x\nC,1\nN,1,2\n", "row 2: Expected 2 columns, got 3: N,1,2"),
        ("a.csv", b"x,smiles\n1,C\n2,N\xe9\n", "CSV column #1.* invalid UTF8"),
        ("a.csv", b'smiles,x\n"C,1\nC,1\n', "Expected 2 columns, got 1"),
        ("a.csv.gz", GZIPPED[: len(GZIPPED) // 2], "damaged: Truncated compressed stream"),
        ("a.csv.gz", GZIPPED[:5], "Compressed file ended"),
        ("a.csv.gz", b"smiles,x\nC,1\n", "Not a gzipped file"),
        ("a.csv.gz", GZIPPED[:-8] + bytes(8), "damaged: .*incorrect data check"),
        ("a.smi.gz", GZIPPED[: len(GZIPPED) // 2], "damaged: Truncated compressed stream"),
        ("a.smi", b"C\nN\n\nO\xe9 x\nF\n", "row 3 is not UTF-8"),
        ("a.parquet", b"smiles\nC\n", "Parquet"),
        ("a.parquet", b"", "Parquet"),
        ("a.txt", b"C\n", r"ends in one of \.smi, \.smi\.gz, \.csv, \.csv\.gz, \.parquet"),
        ("a.gz", b"C\n", "ends in one of"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        list(read_batches(path, ["smiles"]))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".smi", ".csv", ".csv.gz", ".parquet"])
def test_what_cannot_be_opened_is_an_os_error(tmp_path, suffix):
    for path in (tmp_path / f"missing{suffix}", tmp_path / f"folder{suffix}"):
        if path.name.startswith("folder"):
            path.mkdir()
        with pytest.raises(OSError, match=path.name):
            list(read_batches(path, ["smiles"]))
        with pytest.raises(OSError, match=path.name):
            columns_of(path)


def test_an_error_of_the_disk_stays_an_os_error(tmp_path, monkeypatch):
    def fail(file, size=-1):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files._Counted, "read", fail)
    with pytest.raises(OSError, match="Input/output error"):
        list(read_batches(write(tmp_path / "a.csv", b"smiles\nC\n"), ["smiles"], lambda size: None))


def test_a_column_is_asked_for_once(tmp_path):
    with pytest.raises(ValueError, match="'smiles' is asked for more than once"):
        list(read_batches(write(tmp_path / "a.smi", b"C\n"), ["smiles", "smiles"]))
    with pytest.raises(ValueError, match=r"'x' is missing; there are \['smiles', 'name'\]"):
        list(read_batches(tmp_path / "a.smi", ["x"]))


@pytest.mark.parametrize("name", ["a.smi", "a.csv"])
def test_a_row_above_a_block_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(files, "BLOCK_BYTES", 64)
    path = write(tmp_path / name, b"smiles\n" + b"C" * 300 + b"\nC\n")
    with pytest.raises(ValueError, match=r"longer than 64 bytes|two block boundaries"):
        list(read_batches(path, ["smiles"]))


@pytest.mark.parametrize("name", ["a.smi", "a.csv", "a.csv.gz", "a.smi.gz"])
def test_progress_counts_the_bytes_of_the_file(tmp_path, monkeypatch, name):
    monkeypatch.setattr(files, "BLOCK_BYTES", 1000)
    path = write(tmp_path / name, b"smiles\n" + b"CCCC\n" * 2000)
    read: list[int] = []
    list(read_batches(path, ["smiles"], read.append))
    assert sum(read) == path.stat().st_size


def test_a_reader_left_early_closes_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 100)
    for name in ("a.smi", "a.csv"):
        batches = read_batches(write(tmp_path / name, b"smiles\n" + b"C\n" * 500), ["smiles"])
        assert next(batches).num_rows
        batches.close()


@pytest.mark.data
def test_real_files(data_dir):
    for name, rows in (("qm9_c7h10o2.csv", 5790), ("zinc250k.csv.gz", 236_984)):
        path = data_dir / name
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as file:
            expected = [row["smiles"].strip() for row in csv.DictReader(file)]
        assert len(expected) == rows
        assert columns(path, "smiles")["smiles"] == expected
