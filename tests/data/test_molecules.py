from __future__ import annotations

import bz2
import gzip
import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from stib_fast.chem.validity import canonical_smiles
from stib_fast.data.molecules import EV_PER_HARTREE, MoleculeTable, read_qm9, read_table
from stib_fast.ops.smiles import malformation
from stib_fast.ops.smiles_eager import Level

# The layout of QM9's records: atoms, properties, the atoms, frequencies, SMILES, InChI.
WATER = (
    "3\n"
    "gdb 3\t799.58812\t437.90386\t282.94545\t1.8511\t6.31\t-0.2928\t0.0687\t0.3615\t19.0002\t"
    "0.021375\t-76.404702\t-76.401867\t-76.400922\t-76.422349\t6.002\t\n"
    "O\t-0.0343604951\t 0.9775395708\t 0.0076015923\t-0.589706\n"
    "H\t 0.0647664923\t 0.0205721989\t 0.0015346341\t 0.294853\n"
    "H\t 0.8717903737\t 1.3007924048\t 1.5*^-5\t 0.294853\n"
    "1671.4222\t3803.6305\t3907.698\n"
    "O\tO\t\n"
    "InChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2\n"
)
ALCOHOL = (
    "1\ntag_7 7 1 2 3 4 7.75*^1 -1 1 3.6*^-1 0\nC\t0\t0\t0\t0\n1\t2\t3\n"
    "CC(O)C\tC[C@H](O)C\nInChI=1S/x\ty\n"
)


def archive(path: Path, records: dict[str, str]) -> Path:
    with tarfile.open(path, "w:bz2") as tar:
        for name, text in records.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def write(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_csv(tmp_path: Path, name: str) -> None:
    # A trailing newline inside the quotes (as in the published ZINC file), other columns, a blank
    # line, a byte-order mark and Windows line ends.
    path = write(
        tmp_path / name, '\ufeffid,smiles,qed,logP\r\n1,"CCO\n",0.4,-1e-1\r\n\r\n2,N,.5,2\r\n'
    )
    table = read_table(path, targets=["logP", "qed"])
    assert table.smiles == ["CCO", "N"]
    assert torch.equal(table.targets, torch.tensor([[-0.1, 0.4], [2, 0.5]], dtype=torch.float64))
    assert table.target_names == ("logP", "qed")
    assert (len(table), table.left_out) == (2, ())


def test_csv_of_smiles_alone(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", "s\nC\nN\n"), smiles="s", targets=[])
    assert table.targets.shape == (2, 0)


@pytest.mark.parametrize(
    "type_", [pa.float32(), pa.int64(), pa.string(), pa.dictionary(pa.int8(), pa.string())]
)
def test_parquet_of_any_type_of_numbers(tmp_path: Path, type_: pa.DataType) -> None:
    numbers = ["1", None, "3"] if "string" in str(type_) else [1, None, 3]
    smiles = pa.array(["C", "CC", "CC"]).dictionary_encode()
    columns = {"s": smiles, "y": pa.array(numbers).cast(type_)}
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet", "s", targets=["y"], strict=False)
    assert table.smiles == ["C", "CC"]
    assert table.targets.tolist() == [[1], [3]]
    assert table.left_out[0].first == ("row 2: None in column 'y'",)


def test_parquet_of_the_wrong_types(tmp_path: Path) -> None:
    columns = {"s": pa.array(["C"]), "i": pa.array([1]), "t": pa.array([1], pa.timestamp("ms"))}
    pa.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"column 'i' holds int64, not strings"):
        read_table(tmp_path / "t.parquet", "i", targets=[])
    with pytest.raises(ValueError, match=r"column 't' holds timestamp\[ms\], not numbers"):
        read_table(tmp_path / "t.parquet", "s", targets=["t"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"column 'smiles' is missing; there are \[\]"),
        ("smiles,logP\n", "no molecules"),
        ("smiles,qed\nC,1\n", "column 'logP' is missing; there are .*'qed'"),
        ("smiles,logP,logP\nC,1,2\n", "column 'logP' appears more than once"),
        ("smiles,logP\nC,1\nN,two\n", "1 with a target .*: row 2: 'two' in column 'logP'"),
        ("smiles,logP\nC,1\nC,\n", "row 2: '' in column 'logP'"),
        ("smiles,logP\nC,1\nC,nan\nN,inf\n", "2 with a target .*: row 2: 'nan'.* row 3: 'inf'"),
        ("smiles,logP\nC,a\nC,nan\n", "column 'logP' holds no number in 2 rows"),
        ("smiles,logP\n ,1\nC,2\n", "1 without SMILES: row 1"),
        (
            "smiles,logP\nC,1\n" + "C,x\n" * 100,
            r"100 with a target .*: row 2.*row 6: [^;]*; \.\.\.$",
        ),
        ("smiles,logP\nC,1\nC[C,2\n", r"1 with a malformed SMILES: row 2: '\[' opens no complete"),
    ],
)
def test_csv_refuses(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"t\.csv: .*{message}"):
        read_table(write(tmp_path / "t.csv", text), targets=["logP"])


DIRTY = """smiles,y
CCO,1
,2
OCC,3
CC,
C1CC,5
CCO,6
C[C,7
N,8
"""


def test_what_cannot_be_used_is_counted_and_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", DIRTY)
    table = read_table(path, targets=["y"], strict=False, check=True, unique=True)
    assert (table.smiles, table.targets.tolist()) == (["CCO", "N"], [[1], [8]])
    assert table.rows is not None
    assert table.rows.tolist() == [1, 8]
    assert {note.reason: (note.count, note.first) for note in table.left_out} == {
        "with a target that is not a finite number": (1, ("row 4: '' in column 'y'",)),
        "without SMILES": (1, ("row 2: an empty cell",)),
        "with a malformed SMILES": (
            1,
            ("row 7: '[' opens no complete bracket atom at column 2 of 'C[C'",),
        ),
        "with a SMILES that RDKit does not read": (1, ("row 5: C1CC",)),
        # The same molecule, in another string and in its own.
        "repeating a molecule": (2, ("row 3: OCC is that of row 1", "row 6: CCO is that of row 1")),
    }


def test_only_malformed_strings_that_are_named_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described: list[str] = []

    def describe(text: str, level: Level) -> str:
        described.append(text)
        return malformation(text, level)

    monkeypatch.setattr("stib_fast.data.molecules.malformation", describe)
    rows = [*(f"{'C' * i}O,1" for i in range(50)), *(f"C[{'C' * i},1" for i in range(8))]
    table = read_table(
        write(tmp_path / "t.csv", "\n".join(["smiles,y", *rows]) + "\n"),
        targets=["y"],
        strict=False,
    )
    assert table.smiles == ["C" * i + "O" for i in range(50)]
    assert table.left_out[0].count == 8
    assert described == ["C[" + "C" * i for i in range(5)]


def test_without_rdkit_strings_are_told_apart_as_they_are_written(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", DIRTY)
    table = read_table(path, targets=["y"], strict=False, unique=True)
    assert table.smiles == ["CCO", "OCC", "C1CC", "N"]
    assert [note.count for note in table.left_out] == [1, 1, 1, 1]
    kept = read_table(path, targets=["y"], strict=False)
    assert kept.smiles == ["CCO", "OCC", "C1CC", "CCO", "N"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("CCO,1\nC1CC,2", "1 with a SMILES that RDKit does not read: row 2: C1CC"),
        ("CCO,1\nOCC,2", "1 repeating a molecule: row 2: OCC is that of row 1"),
    ],
)
def test_strict_reading_names_what_it_refuses(tmp_path: Path, rows: str, message: str) -> None:
    path = write(tmp_path / "t.csv", f"smiles,y\n{rows}\n")
    with pytest.raises(ValueError, match=message):
        read_table(path, targets=["y"], check=True, unique=True)


def test_nothing_usable_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "smiles,y\nC[,1\nC1,2\n,3\n")
    with pytest.raises(ValueError, match=r"no usable row is left; .*1 without.* \| 1 with a malf"):
        read_table(path, targets=["y"], strict=False, check=True)


def test_rdkit_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert canonical_smiles(["C1CC", "C(C)(C)(C)(C)C", "OCC"]) == [None, None, "CCO"]
    assert capfd.readouterr() == ("", "")


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "none.csv", targets=[])
    whole = gzip.compress(b"smiles\n" + b"CCO\n" * 1000)
    (tmp_path / "t.csv.gz").write_bytes(whole[:-12])
    with pytest.raises(ValueError, match=r"t\.csv\.gz: "):
        read_table(tmp_path / "t.csv.gz", targets=[])


def test_qm9_csv_units_and_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "q.csv", "mol_id,smiles,mu,alpha,gap\ngdb_3,O,1.8,6.31,0.3615\n")
    table = read_qm9(path)
    assert table.target_names == ("gap", "polarisability")
    assert table.targets.tolist() == [[0.3615 * EV_PER_HARTREE, 6.31]]
    path = write(tmp_path / "q.csv", "string,pol,width\nO,6.31,9.84\n")
    table = read_qm9(path, gap="width", polarisability="pol", smiles="string", gap_unit="ev")
    assert table.targets.tolist() == [[9.84, 6.31]]
    with pytest.raises(ValueError, match="column 'alpha' is missing"):
        read_qm9(path, gap="width", smiles="string")
    with pytest.raises(ValueError, match="gap_unit must be"):
        read_qm9(path, gap_unit="eV")


def test_qm9_archive(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "ds.xyz.tar.bz2",
        {"x/a_1.xyz": WATER, "readme.txt": "no record", "b.xyz": ALCOHOL},
    )
    table = read_qm9(path)
    # GDB's string, not the one with stereo marks; exponents written '*^'.
    assert table.smiles == ["O", "CC(O)C"]
    assert table.targets.tolist() == [
        [0.3615 * EV_PER_HARTREE, 6.31],
        [0.36 * EV_PER_HARTREE, 77.5],
    ]
    with pytest.raises(ValueError, match="in Hartree"):
        read_qm9(path, gap_unit="ev")


# Header and footer as QM9's list has them: molecules begin with their index.
UNCHARACTERISED = """# Molecules that failed the consistency check
=========
Index  GDB-17  Corina  B3LYP

     3  O  O  [OH2]
    21  CC  CC  C.C
=========
"""


@pytest.mark.parametrize("strict", [False, True])
def test_qm9_leaves_out_what_its_list_names(tmp_path: Path, strict: bool) -> None:
    write(tmp_path / "uncharacterized.txt", UNCHARACTERISED)
    path = archive(
        tmp_path / "all.tar.bz2",
        {"x/dsgdb9nsd_000003.xyz": WATER, "x/dsgdb9nsd_000007.xyz": ALCOHOL},
    )
    table = read_qm9(path, strict=strict)
    assert table.smiles == ["CC(O)C"]
    assert table.targets.tolist() == [[0.36 * EV_PER_HARTREE, 77.5]]
    assert list(map(str, table.left_out)) == ["1 listed in uncharacterized.txt: row 1: index 3, O"]
    # The isomers are numbered for themselves: their third is another molecule than the list's.
    isomers = archive(tmp_path / "isomers.tar.bz2", {"dsC7O2H10nsd_0003.xyz": WATER})
    assert read_qm9(isomers, strict=strict).smiles == ["O"]
    write(tmp_path / "uncharacterized.txt", "<html>no list</html>\n")
    with pytest.raises(ValueError, match=r"uncharacterized\.txt: no line begins with the index"):
        read_qm9(path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("", "record a.xyz has no property line"),
        (WATER.split("InChI")[0], "record a.xyz has no .* InChI"),
        (WATER.replace("\t0.3615", "\tgap"), "record a.xyz: gap 'gap' or alpha '6.31'"),
        (WATER.replace("\t6.31", "\tnan"), "record a.xyz: gap '0.3615' or alpha 'nan'"),
        (WATER.replace("O\tO\t\n", "\n"), "record a.xyz: the SMILES is empty"),
    ],
)
def test_qm9_archive_names_the_damaged_record(tmp_path: Path, record: str, message: str) -> None:
    path = archive(tmp_path / "ds.tar.bz2", {"good.xyz": WATER, "a.xyz": record})
    with pytest.raises(ValueError, match=message):
        read_qm9(path)


def test_damaged_archives(tmp_path: Path) -> None:
    path = archive(tmp_path / "ds.tar.bz2", {"a.xyz": WATER})
    whole = path.read_bytes()
    middle = len(whole) // 2
    altered = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    for damaged in (whole[:middle], altered, b"", b"not an archive", bz2.compress(b"no tar" * 200)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"ds\.tar\.bz2: not a readable"):
            read_qm9(path)


def test_a_table_is_consistent() -> None:
    with pytest.raises(ValueError, match="1 SMILES and 2 target names do not fit"):
        MoleculeTable(["C"], torch.zeros(1, 3, dtype=torch.float64), ("a", "b"))
    with pytest.raises(ValueError, match=r"rows has shape \[2\], not \[1\]"):
        MoleculeTable(["C"], torch.zeros(1, 0), (), rows=torch.arange(2))


@pytest.mark.data
def test_real_qm9(data_dir: Path) -> None:
    isomers = read_qm9(data_dir / "qm9_c7h10o2.csv")
    assert len(isomers) == 5790
    # The ranges which the data's description states, to its digits.
    assert isomers.targets[:, 0].aminmax() == pytest.approx((3.85, 9.64), abs=0.005)
    assert isomers.targets[:, 1].aminmax() == pytest.approx((71.45, 86.24), abs=0.005)
    assert len(read_qm9(data_dir / "qm9_other.csv.gz")) == 46868


@pytest.mark.data
def test_real_zinc(data_dir: Path) -> None:
    targets = ["logP", "qed", "sas"]
    table = read_table(data_dir / "zinc250k.csv.gz", targets=targets, unique=True)
    assert len(table) == 236984
    assert 0 < table.targets[:, 1].min() < table.targets[:, 1].max() < 1
