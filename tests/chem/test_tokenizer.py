from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stib_fast.chem import SmilesTokenizer, Vocabulary
from stib_fast.data.molecules import read_csv

ALPHABET = ["C", "Cl", "[C@@H]", "(", ")", "=", "1", "%12", "%(345)", ".", "->", ">", "c", "\\"]
strings = st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=20).map("".join)


@given(st.lists(strings, min_size=1, max_size=6), st.sampled_from(["atom", "char"]), st.booleans())
def test_decode_undoes_encode(smiles: list[str], level: str, bos: bool) -> None:
    # The longest string: 20 tokens of at most 6 characters, bos and eos.
    tokenizer = SmilesTokenizer(Vocabulary.from_smiles(smiles, level), max_length=122, bos=bos)
    encoded = tokenizer.encode(smiles)
    assert encoded.ids.shape == (len(smiles), 122)
    assert tokenizer.decode(encoded.ids) == smiles


def test_defaults_refuse_unknown_and_long() -> None:
    tokenizer = SmilesTokenizer(Vocabulary.from_smiles(["CO"]), max_length=3)
    with pytest.raises(ValueError, match="row 0: token 'N' at column 2"):
        tokenizer.encode(["CN"])
    with pytest.raises(ValueError, match=r"row 1: .* max_length is 3"):
        tokenizer.encode(["C", "CCC"])


def test_policies_reach_the_op() -> None:
    vocabulary = Vocabulary.from_smiles(["CO"])
    dropping = SmilesTokenizer(vocabulary, 3, on_unknown="drop", on_overflow="drop")
    assert dropping.encode(["N", "C", "COO", "O"]).rows.tolist() == [1, 3]
    mending = SmilesTokenizer(vocabulary, 3, on_unknown="unk", on_overflow="truncate")
    assert mending.decode(mending.encode(["N", "COO"]).ids) == ["<unk>", "CO"]


def test_a_large_vocabulary_has_wider_ids() -> None:
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


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "level", "longest"),
    [
        ("qm9_c7h10o2.csv", "atom", 20),
        ("zinc250k.csv.gz", "atom", 72),
        ("zinc250k.csv.gz", "char", 120),
    ],
)
def test_real_strings_come_back(data_dir: Path, file: str, level: str, longest: int) -> None:
    # Every eighth string of ZINC keeps the test within two seconds.
    smiles = read_csv(data_dir / file, targets={}).smiles[:: 8 if "zinc" in file else 1]
    tokenizer = SmilesTokenizer(Vocabulary.from_smiles(smiles, level), max_length=longest + 1)
    encoded = tokenizer.encode(smiles)
    assert len(encoded.rows) == len(smiles)
    assert longest // 2 < encoded.lengths.max() <= longest + 1
    assert tokenizer.decode(encoded.ids) == smiles
