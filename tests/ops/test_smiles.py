from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stib_fast.ops.smiles import decode, encode, id_dtype, tokenize

PIECES = [
    *"BCNOPSFIbcnops123456789()-=#$:/\\.~>*",
    *("Cl", "Br", "%10", "%99", "%(100)", "->", "<-"),
    *("[nH]", "[C@@H]", "[C@]", "[13CH3-]", "[O-]", "[Fe+2]", "[Cl-]", "[*:12]", "[H]"),
]
TOKEN_IDS = {token: i for i, token in enumerate(PIECES, start=4)}
TOKENS = ["<pad>", "<bos>", "<eos>", "<unk>", *PIECES]

strings = st.lists(st.sampled_from(PIECES), min_size=1, max_size=30).map("".join)


def run(smiles: list[str], **options: object) -> tuple[torch.Tensor, list[int], list[int]]:
    settings = {"level": "atom", "max_length": 8, "bos": False, "eos": True}
    settings |= {"on_unknown": "error", "on_overflow": "error"} | options
    ids, lengths, rows = encode(smiles, TOKEN_IDS, **settings)
    return ids, lengths.tolist(), rows.tolist()


@pytest.mark.parametrize(
    ("smiles", "tokens"),
    [
        ("CCl", ["C", "Cl"]),
        ("BrCBr", ["Br", "C", "Br"]),
        ("BC", ["B", "C"]),
        ("C[C@@H](O)F", ["C", "[C@@H]", "(", "O", ")", "F"]),
        ("[Cl-].[Na+]", ["[Cl-]", ".", "[Na+]"]),
        ("C%12C%(123)C1", ["C", "%12", "C", "%(123)", "C", "1"]),
        ("N->[Fe]<-N", ["N", "->", "[Fe]", "<-", "N"]),
        ("CC>>C-C", ["C", "C", ">", ">", "C", "-", "C"]),
        ("F/C=C\\F", ["F", "/", "C", "=", "C", "\\", "F"]),
        ("C#N$*~C:c", ["C", "#", "N", "$", "*", "~", "C", ":", "c"]),
    ],
)
def test_tokens_of_known_strings(smiles: str, tokens: list[str]) -> None:
    assert tokenize(smiles) == tokens


@given(strings, st.sampled_from(["atom", "char"]))
def test_tokens_join_to_the_string(smiles: str, level: str) -> None:
    assert "".join(tokenize(smiles, level)) == smiles


@given(st.text(max_size=20), st.sampled_from(["atom", "char"]))
def test_any_text_is_tokenised_whole_or_refused(text: str, level: str) -> None:
    try:
        tokens = tokenize(text, level)
    except ValueError:
        return
    assert "".join(tokens) == text
    assert all("!" <= character <= "~" for character in text)


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        ("", "empty"),
        ("CC[CH", r"'\[' .*column 3"),
        ("C[C[CH]]", r"'\[' .*column 2"),
        ("C[]", r"'\[' .*column 2"),
        ("CC]", r"'\]' .*column 3"),
        ("C%1C", "'%' .*column 2"),
        ("C%(1C", "'%' .*column 2"),
        ("C C", "' ' at column 2"),
        ("CC\n", r"'\\n' at column 3"),
        ("C\x00C", r"'\\x00' at column 2"),
        ("C\x7f", r"'\\x7f' at column 2"),
        ("Cé", r"'\\xe9' at column 2"),
        # Arabic digits are digits to Python, not to SMILES.
        ("C%\u0661\u0662", r"'\\u0661' at column 3"),
    ],
)
def test_malformed_strings_name_the_column(smiles: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenize(smiles)


def test_an_unclosed_bracket_is_legal_at_character_level_only() -> None:
    assert tokenize("C[", level="char") == ["C", "["]


def test_long_strings_are_shortened_in_messages() -> None:
    with pytest.raises(ValueError, match="column 10001") as caught:
        tokenize("C" * 10_000 + "[")
    assert len(str(caught.value)) < 200


def test_unknown_level() -> None:
    with pytest.raises(ValueError, match="level"):
        tokenize("C", level="word")


@pytest.mark.parametrize(
    "options",
    [{"level": "word"}, {"on_unknown": "ignore"}, {"on_overflow": "cut"}, {"max_length": 1}],
)
def test_encode_refuses_unknown_settings(options: dict[str, object]) -> None:
    # Under "drop" a wrong level must not read as a table of malformed strings.
    with pytest.raises(ValueError, match=next(iter(options))):
        run(["C"], **({"on_unknown": "drop"} | options))


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(5, torch.uint8), (256, torch.uint8), (257, torch.int16), (32768, torch.int16)],
)
def test_id_dtype_is_the_narrowest(size: int, dtype: torch.dtype) -> None:
    assert id_dtype(size) == dtype
    assert torch.iinfo(dtype).max >= size - 1


def test_id_dtype_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="32769"):
        id_dtype(32769)


@given(st.lists(strings, max_size=5), st.booleans())
def test_decode_undoes_encode(smiles: list[str], bos: bool) -> None:
    ids, lengths, rows = run(smiles, max_length=32, bos=bos)
    assert decode(ids, TOKENS) == smiles
    assert rows == list(range(len(smiles)))
    assert lengths == [len(tokenize(text)) + 1 + bos for text in smiles]
    assert (ids != 0).sum(1).tolist() == lengths


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_decode_takes_any_integers_and_views(dtype: torch.dtype) -> None:
    ids, _, _ = run(["CCl", "N"])
    assert decode(ids.to(dtype).T.contiguous().T, TOKENS) == ["CCl", "N"]


def test_ids_beyond_a_byte_survive() -> None:
    token_ids = {f"[{i}C]": i for i in range(4, 400)}
    ids, _, _ = encode(
        ["[399C][4C]"],
        token_ids,
        level="atom",
        max_length=3,
        bos=False,
        eos=True,
        on_unknown="error",
        on_overflow="error",
    )
    assert ids.dtype == torch.int16
    assert ids.tolist() == [[399, 4, 2]]


def test_bos_eos_and_padding() -> None:
    ids, lengths, _ = run(["CN"], bos=True, max_length=6)
    assert ids.tolist() == [[1, TOKEN_IDS["C"], TOKEN_IDS["N"], 2, 0, 0]]
    assert lengths == [4]
    ids, lengths, _ = run(["CN"], eos=False, max_length=3)
    assert ids.tolist() == [[TOKEN_IDS["C"], TOKEN_IDS["N"], 0]]
    assert lengths == [2]


def test_unknown_token_names_row_token_and_column() -> None:
    with pytest.raises(ValueError, match=r"row 1: token '\[Xe\]' at column 4 of 'CBr\[Xe\]'"):
        run(["C", "CBr[Xe]"])


def test_unknown_token_becomes_its_id_or_leaves_the_row_out() -> None:
    ids, _, _ = run(["C[Xe]N"], on_unknown="unk")
    assert ids[0, :4].tolist() == [TOKEN_IDS["C"], 3, TOKEN_IDS["N"], 2]
    assert decode(ids, TOKENS) == ["C<unk>N"]
    ids, lengths, rows = run(["C", "[Xe]", "C[", "", "N"], on_unknown="drop")
    assert decode(ids, TOKENS) == ["C", "N"]
    assert (lengths, rows) == ([2, 2], [0, 4])


@pytest.mark.parametrize("on_unknown", ["error", "unk"])
def test_malformed_rows_are_refused_unless_dropped(on_unknown: str) -> None:
    with pytest.raises(ValueError, match=r"row 1: .*column 2"):
        run(["C", "C["], on_unknown=on_unknown)


@pytest.mark.parametrize("entry", [None, float("nan"), 3, b"C"])
@pytest.mark.parametrize("on_unknown", ["error", "drop"])
def test_entries_that_are_no_strings(entry: object, on_unknown: str) -> None:
    with pytest.raises(ValueError, match="row 1: expected a SMILES string"):
        run(["C", entry], on_unknown=on_unknown)


def test_overflow_counts_eos() -> None:
    assert run(["CCC"], max_length=4)[1] == [4]
    with pytest.raises(ValueError, match=r"row 0: .* needs 5 positions but max_length is 4"):
        run(["CCCC"], max_length=4)


def test_overflow_truncates_between_tokens_or_drops() -> None:
    ids, lengths, rows = run(["CCClBr", "N"], max_length=4, bos=True, on_overflow="truncate")
    assert decode(ids, TOKENS) == ["CC", "N"]
    assert ids[0].tolist() == [1, TOKEN_IDS["C"], TOKEN_IDS["C"], 2]
    assert (lengths, rows) == ([4, 3], [0, 1])
    ids, lengths, rows = run(["CCCC", "N"], max_length=4, on_overflow="drop")
    assert decode(ids, TOKENS) == ["N"]
    assert (lengths, rows) == ([2], [1])


def test_nothing_in_nothing_out() -> None:
    ids, lengths, rows = run([])
    assert ids.shape == (0, 8)
    assert ids.dtype == torch.uint8
    assert (lengths, rows) == ([], [])
    assert decode(ids, TOKENS) == []


def test_decode_stops_at_eos() -> None:
    carbon = TOKEN_IDS["C"]
    assert decode(torch.tensor([[1, carbon, 0, carbon, 2, carbon], [2] * 6]), TOKENS) == ["CC", ""]


@pytest.mark.parametrize("bad", [-1, len(TOKENS)])
def test_decode_refuses_ids_outside_the_vocabulary(bad: int) -> None:
    with pytest.raises(ValueError, match=rf"ids\[1, 2\] is {bad} but the vocabulary has"):
        decode(torch.tensor([[4, 4, 4], [4, 4, bad]]), TOKENS)


def test_decode_refuses_other_shapes_and_dtypes() -> None:
    for ids in (torch.zeros(3, 3), torch.zeros(3, dtype=torch.int64), torch.zeros(2, 2) > 0):
        with pytest.raises(ValueError, match="integers"):
            decode(ids, TOKENS)


@pytest.mark.data
@pytest.mark.parametrize("level", ["atom", "char"])
@pytest.mark.parametrize("file", ["qm9_c7h10o2.csv", "qm9_other.csv.gz", "zinc250k.csv.gz"])
def test_real_strings_are_tokenised_whole(data_dir: Path, file: str, level: str) -> None:
    opener = gzip.open if file.endswith(".gz") else open
    with opener(data_dir / file, "rt") as lines:
        smiles = [row["smiles"] for row in csv.DictReader(lines)]
    # Every tenth string of ZINC keeps the test within a second; its rare tokens still occur.
    for text in smiles[:: 10 if len(smiles) > 100_000 else 1]:
        assert "".join(tokenize(text, level)) == text
