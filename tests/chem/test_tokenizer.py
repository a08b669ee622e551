from __future__ import annotations

import csv
import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from stib_fast.chem import Encoded, EncodedRows, SmilesTokenizer, Status, Vocabulary, tokenize

ALPHABET = ["C", "Cl", "[C@@H]", "(", ")", "=", "1", "%12", "%(345)", ".", "->", ">", "c", "\\"]
strings = st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=20).map("".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # one backend for all
@given(
    smiles=st.lists(strings, min_size=1, max_size=6),
    level=st.sampled_from(["atom", "char"]),
    bos=st.booleans(),
    eos=st.booleans(),
)
def test_decode_undoes_encode(
    backend: str, smiles: list[str], level: Any, bos: bool, eos: bool
) -> None:
    # The longest string: 20 tokens of at most 6 characters, bos and eos.
    vocabulary = Vocabulary.from_smiles(smiles, level)
    tokenizer = SmilesTokenizer(vocabulary, max_length=122, bos=bos, eos=eos)
    encoded = tokenizer.encode(smiles)
    assert encoded.ids.shape == (len(smiles), 122)
    assert encoded.lengths.tolist() == [len(tokenize(text, level)) + bos + eos for text in smiles]
    assert tokenizer.decode(encoded.ids) == smiles
    assert (encoded.ids != vocabulary.unk_id).all()


def test_defaults_refuse_unknown_and_long(backend: str) -> None:
    tokenizer = SmilesTokenizer(Vocabulary.from_smiles(["CO"]), max_length=3)
    with pytest.raises(ValueError, match="row 0: token 'N' at column 2"):
        tokenizer.encode(["CN"])
    with pytest.raises(ValueError, match=r"row 1: .* max_length is 3"):
        tokenizer.encode(["C", "CCC"])


def test_policies_reach_the_op(backend: str) -> None:
    vocabulary = Vocabulary.from_smiles(["CO"])
    dropping = SmilesTokenizer(vocabulary, 3, on_unknown="drop", on_overflow="drop")
    assert dropping.encode(["N", "C", "COO", "O", None]).rows.tolist() == [1, 3]
    mending = SmilesTokenizer(vocabulary, 3, on_unknown="unk", on_overflow="truncate")
    assert mending.decode(mending.encode(["N", "COO"]).ids) == ["<unk>", "CO"]


def test_each_row_has_a_status(backend: str) -> None:
    vocabulary = Vocabulary.from_smiles(["CO"])
    tokenizer = SmilesTokenizer(vocabulary, 3, on_unknown="drop", on_overflow="drop", bos=True)
    each = tokenizer.encode_each(["C", "COC", None, "N", "C[", "", "O"])
    assert isinstance(each, EncodedRows)
    assert [Status(status).name for status in each.status.tolist()] == [
        *("KEPT", "TOO_LONG", "MISSING", "UNKNOWN", "MALFORMED", "MALFORMED", "KEPT")
    ]
    assert each.ids.tolist() == [[1, 4, 2], *[[0, 0, 0]] * 5, [1, 5, 2]]
    assert each.lengths.tolist() == [3, 0, 0, 0, 0, 0, 3]
    kept = each.kept()
    assert isinstance(kept, Encoded)
    assert (kept.ids.tolist(), kept.lengths.tolist()) == ([[1, 4, 2], [1, 5, 2]], [3, 3])
    assert kept.rows.tolist() == [0, 6]


def test_a_large_vocabulary_has_wider_ids(backend: str) -> None:
    smiles = [f"[{i}C]" for i in range(1, 254)]
    tokenizer = SmilesTokenizer(Vocabulary.from_smiles(smiles), max_length=2)
    assert len(tokenizer.vocabulary) == 257
    encoded = tokenizer.encode(smiles)
    assert encoded.ids.dtype == torch.int16
    assert tokenizer.decode(encoded.ids) == smiles


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_unknown": "ignore"}, "on_unknown must be one of"),
        ({"on_overflow": "cut"}, "on_overflow must be one of"),
        ({"max_length": 1}, "no room"),
        ({"max_length": 2, "bos": True}, "no room"),
    ],
)
def test_settings_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmilesTokenizer(Vocabulary.from_smiles(["C"]), **{"max_length": 8} | options)


def test_one_string_is_not_a_list() -> None:
    tokenizer = SmilesTokenizer(Vocabulary.from_smiles(["C"]), max_length=8)
    with pytest.raises(ValueError, match="not one string"):
        tokenizer.encode("CCC")


def test_a_token_beyond_what_the_table_holds(backend: str) -> None:
    token = "[" + "H" * 70_000 + "]"
    try:
        vocabulary = Vocabulary.from_smiles(["C" + token])
    except ValueError:
        return  # on every backend, or the other one fails below
    tokenizer = SmilesTokenizer(vocabulary, max_length=3)
    assert tokenizer.decode(tokenizer.encode(["C" + token]).ids) == ["C" + token]


def test_it_can_be_pickled_and_compared() -> None:
    tokenizer = SmilesTokenizer(Vocabulary.from_smiles(["CO[nH]"]), 5, on_unknown="unk", bos=True)
    before = tokenizer.encode(["CO"])
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy == tokenizer
    assert hash(copy) == hash(tokenizer)
    assert copy.vocabulary.fingerprint == tokenizer.vocabulary.fingerprint
    assert torch.equal(copy.encode(["CO"]).ids, before.ids)
    assert copy != SmilesTokenizer(tokenizer.vocabulary, 6, on_unknown="unk", bos=True)


# ---- forms of input ------------------------------------------------------------------------------

SMILES = ["CCl", "c1cc[nH]c1", "C%12CC%12", "O->[Fe]"]


def write(path: Path, smiles: list[str]) -> Path:
    """A file of strings, with another column before them."""
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({"n": range(len(smiles)), "s": smiles}), path)
        return path
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as file:
        if path.suffix == ".smi":
            file.writelines(f"{text} name {row}\r\n" for row, text in enumerate(smiles))
        else:
            csv.writer(file).writerows([("n", "s"), *enumerate(smiles)])
    return path


@pytest.mark.parametrize("name", ["f.smi", "f.csv", "f.csv.gz", "f.parquet"])
def test_a_file_reads_as_its_strings(backend: str, tmp_path: Path, name: str) -> None:
    tokenizer = SmilesTokenizer(Vocabulary.from_smiles(SMILES), max_length=10)
    column = "smiles" if name == "f.smi" else "s"
    encoded = tokenizer.encode(write(tmp_path / name, SMILES), column=column)
    for tensor, same in zip(encoded, tokenizer.encode(SMILES), strict=True):
        assert torch.equal(tensor, same)
    with pytest.raises(ValueError, match=rf"{name}.*other"):
        tokenizer.encode(tmp_path / name, column="other")
    with pytest.raises(ValueError, match=rf"{name}: row 2: .*column 2"):
        tokenizer.encode(write(tmp_path / name, ["C", "C[", "C"]), column=column)


def test_no_file(tmp_path: Path) -> None:
    tokenizer = SmilesTokenizer(Vocabulary.from_smiles(SMILES), max_length=10)
    with pytest.raises(OSError, match=r"none\.csv"):
        tokenizer.encode(tmp_path / "none.csv")


def test_arrays_and_bytes_read_as_the_list_of_their_strings(backend: str) -> None:
    tokenizer = SmilesTokenizer(Vocabulary.from_smiles(SMILES), max_length=10)
    wanted = tokenizer.encode(SMILES)
    data = torch.frombuffer(bytearray("".join(SMILES).encode()), dtype=torch.uint8)
    offsets = torch.tensor([0, *map(len, SMILES)]).cumsum(0)
    for encoded in (
        tokenizer.encode(iter(SMILES)),
        tokenizer.encode(np.array(SMILES)),
        tokenizer.encode(pyarrow.chunked_array([SMILES[:1], SMILES[1:]])),
        tokenizer.encode_bytes(data, offsets),
    ):
        for tensor, same in zip(encoded, wanted, strict=True):
            assert torch.equal(tensor, same)


# ---- real molecules ------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "level", "longest"),
    [
        ("qm9_c7h10o2.csv", "atom", 20),
        ("zinc250k.csv.gz", "atom", 72),
        ("zinc250k.csv.gz", "char", 120),
    ],
)
def test_every_real_molecule_comes_back(
    library: None, data_dir: Path, file: str, level: Any, longest: int
) -> None:
    with (gzip.open if file.endswith(".gz") else open)(data_dir / file, "rt") as lines:
        smiles = [row["smiles"] for row in csv.DictReader(lines)]
    tokenizer = SmilesTokenizer(Vocabulary.from_smiles(smiles, level), max_length=longest + 1)
    encoded = tokenizer.encode(data_dir / file)
    assert encoded.rows.tolist() == list(range(len(smiles)))
    assert longest // 2 < encoded.lengths.max() <= longest + 1
    assert tokenizer.decode(encoded.ids) == smiles
