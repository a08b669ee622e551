from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stib_fast.chem import Vocabulary, VocabularyBuilder, tokenize

SMILES = ["CCl", "C[nH]", "BrC%10", "C=O"]


def test_tokens_are_sorted_after_the_four_special_ones(backend: str) -> None:
    vocabulary = Vocabulary.from_smiles(SMILES)
    assert vocabulary.tokens == (
        *("<pad>", "<bos>", "<eos>", "<unk>"),
        *("%10", "=", "Br", "C", "Cl", "O", "[nH]"),
    )
    assert vocabulary.counts == (0, 0, 0, 0, 1, 1, 1, 4, 1, 1, 1)
    assert len(vocabulary) == 11
    assert [vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id] == [
        0,
        1,
        2,
        3,
    ]
    assert [vocabulary.token_ids[token] for token in vocabulary.tokens] == list(range(11))


def test_character_level(backend: str) -> None:
    assert Vocabulary.from_smiles(["CCl"], level="char").tokens[4:] == ("C", "l")


def test_order_and_frequency_of_the_strings_change_nothing_but_counts() -> None:
    shuffled = SMILES * 3
    random.Random(0).shuffle(shuffled)
    one, other = Vocabulary.from_smiles(SMILES), Vocabulary.from_smiles(iter(shuffled))
    assert one == other
    assert hash(one) == hash(other)
    assert one.fingerprint == other.fingerprint
    assert one.counts != other.counts


def test_the_fingerprint_is_of_level_and_tokens() -> None:
    # Pinned: a change of the canonical content orphans every saved model.
    assert Vocabulary.from_smiles(["CO"]).fingerprint == PINNED
    others = [
        Vocabulary.from_smiles(["CN"]),
        Vocabulary.from_smiles(["CO"], level="char"),
        Vocabulary.from_smiles(["CON"]),
    ]
    assert len({PINNED, *(other.fingerprint for other in others)}) == 4


PINNED = "25c6499c9bb0ebd85148e869d3ccd0c6f12464a9d06ba84ed6ef932a703787a7"


def test_it_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Vocabulary.from_smiles(["C"]).level = "char"


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        ([], "at least one"),
        (["C", "C["], r"row 1: .*column 2"),
        (["C", ""], "row 1: .*empty"),
        ("CCO", "not one string"),
        (["C", None], "row 1: the SMILES is missing"),
        (["C", 3], "row 1: expected a SMILES string"),
    ],
)
def test_from_smiles_refuses(backend: str, smiles: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_smiles(smiles)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("C", "O"), "must begin with"),
        (("<bos>", "<pad>", "<eos>", "<unk>", "C"), "must begin with"),
        (("<pad>", "<bos>", "<eos>", "<unk>", "C", "C"), "'C' is repeated"),
        (("<pad>", "<bos>", "<eos>", "<unk>", "CC"), "'CC' is not one token"),
        (("<pad>", "<bos>", "<eos>", "<unk>", "<pad>"), "not one token"),
    ],
)
def test_the_constructor_refuses(tokens: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary(tokens, "atom", (0,) * len(tokens))


def test_the_constructor_refuses_counts_of_another_length() -> None:
    with pytest.raises(ValueError, match="1 counts for 4 tokens"):
        Vocabulary(("<pad>", "<bos>", "<eos>", "<unk>"), "atom", (0,))


def test_save_and_load(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_smiles(SMILES)
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded == vocabulary
    assert loaded.counts == vocabulary.counts
    assert json.loads((tmp_path / "vocabulary.json").read_text())["version"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 1"),
        ({"tokens": ["<pad>", "<bos>", "<eos>", "<unk>", "N"], "counts": [0] * 5}, "altered"),
        ({"fingerprint": "0"}, "altered"),
        ({"tokens": None}, "wrong type"),
        ({"level": "word"}, "level"),
    ],
)
def test_load_names_the_file_and_what_is_wrong(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(Vocabulary.from_smiles(["C"]).to_dict() | change))
    with pytest.raises(ValueError, match=rf"vocabulary\.json: .*{message}"):
        Vocabulary.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", '{"version": 1}'])
def test_load_refuses_other_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json"):
        Vocabulary.load(path)


def test_load_of_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Vocabulary.load(tmp_path / "none.json")


# ---- VocabularyBuilder ---------------------------------------------------------------------------

PIECES = ["C", "Cl", "[nH]", "[13C@@H2+]", "%12", "->", "[", "%", " ", "é", "1"]
batches = st.lists(
    st.lists(
        st.one_of(st.none(), st.lists(st.sampled_from(PIECES), max_size=6).map("".join)),
        max_size=6,
    ),
    max_size=4,
)


def is_well_formed(text: str | None, level: Any) -> bool:
    try:
        return text is not None and bool(tokenize(text, level))
    except ValueError:
        return False


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # one backend for all
@given(batches=batches, level=st.sampled_from(["atom", "char"]))
def test_batches_add_up(backend: str, batches: list[list[str | None]], level: Any) -> None:
    builder = VocabularyBuilder(level, drop_malformed=True)
    for batch in batches:
        builder.add(batch)
    rows = [text for batch in batches for text in batch]
    kept = [tokenize(text, level) for text in rows if is_well_formed(text, level)]
    assert builder.strings == len(rows)
    assert builder.malformed == len(rows) - len(kept)
    assert builder.longest == max(map(len, kept), default=0)
    if not kept:
        with pytest.raises(ValueError, match="at least one"):
            builder.vocabulary()
        return
    vocabulary = builder.vocabulary()
    counts = Counter(token for tokens in kept for token in tokens)
    assert dict(zip(vocabulary.tokens[4:], vocabulary.counts[4:], strict=True)) == counts
    assert vocabulary.tokens[4:] == tuple(sorted(counts))


def test_a_builder_names_the_row(backend: str) -> None:
    builder = VocabularyBuilder()
    with pytest.raises(ValueError, match=r"^row 11: .*column 2"):
        builder.add(["C", "C["], first_row=10)
    with pytest.raises(ValueError, match=r"^row 12: the SMILES is missing"):
        builder.add(pyarrow.chunked_array([["C", "C"], [None]]), first_row=10)


def test_a_builder_takes_every_form(backend: str) -> None:
    wanted = Vocabulary.from_smiles(SMILES)
    for smiles in (iter(SMILES), np.array(SMILES), pyarrow.chunked_array([SMILES[:1], SMILES[1:]])):
        vocabulary = Vocabulary.from_smiles(smiles)
        assert vocabulary == wanted
        assert vocabulary.counts == wanted.counts


def test_a_builder_refuses_an_unknown_level() -> None:
    with pytest.raises(ValueError, match="level"):
        VocabularyBuilder("word")


# ---- presets and real molecules ------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [("qm9", 29), ("zinc250k", 66)])
def test_presets(name: str, size: int) -> None:
    vocabulary = Vocabulary.preset(name)
    assert len(vocabulary) == size
    assert vocabulary.level == "atom"
    assert all(vocabulary.counts[4:])


def test_presets_are_known_by_name() -> None:
    with pytest.raises(ValueError, match=r"no vocabulary 'chembl'; there are qm9, zinc250k"):
        Vocabulary.preset("chembl")


def smiles_in(path: Path) -> pyarrow.ChunkedArray:
    from pyarrow import csv

    return csv.read_csv(path)["smiles"]


@pytest.mark.data
def test_presets_are_of_the_real_molecules(library: None, data_dir: Path) -> None:
    qm9, zinc = VocabularyBuilder(), VocabularyBuilder()
    qm9.add(smiles_in(data_dir / "qm9_c7h10o2.csv"))
    qm9.add(smiles_in(data_dir / "qm9_other.csv.gz"))
    zinc.add(smiles_in(data_dir / "zinc250k.csv.gz"))
    for name, builder in (("qm9", qm9), ("zinc250k", zinc)):
        assert builder.vocabulary() == Vocabulary.preset(name)
        assert builder.vocabulary().counts == Vocabulary.preset(name).counts
    assert zinc.longest == 72


@pytest.mark.data
def test_real_vocabularies(library: None, data_dir: Path) -> None:
    isomers = Vocabulary.from_smiles(smiles_in(data_dir / "qm9_c7h10o2.csv"))
    # The data's own description: 9 atom-level tokens, besides the special ones.
    assert len(isomers) == 9 + 4
    vocabulary = Vocabulary.from_smiles(smiles_in(data_dir / "zinc250k.csv.gz"))
    assert len(vocabulary) == 62 + 4
    assert {"Cl", "Br", "[nH]", "[C@@H]"} <= set(vocabulary.tokens)
