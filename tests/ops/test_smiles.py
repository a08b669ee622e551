from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import stib_fast
from stib_fast.ops.smiles import (
    EncodedRows,
    Settings,
    Status,
    count,
    decode,
    encode,
    encode_bytes,
    id_dtype,
    malformation,
)
from stib_fast.ops.smiles_eager import tokenize
from stib_fast.ops.strings import strings_of

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
PIECES = (
    *"BCNOPSFIbcnops123456789()-=#$:/\\.~>*",
    *("Cl", "Br", "%10", "%99", "%(100)", "->", "<-"),
    *("[nH]", "[C@@H]", "[C@]", "[13CH3-]", "[O-]", "[Fe+2]", "[Cl-]", "[*:12]", "[H]"),
    # Past the eight bytes of a slot of the hash table: of one beginning and of one length.
    *("[13C@@H2+]", "[13C@@H2-]", "%(123456789)", "[0123456789abcdef]", "[0123456789abcdeg]"),
)
TOKENS = SPECIAL + PIECES
IDS = {token: i for i, token in enumerate(TOKENS)}
CHARACTERS = tuple(map(chr, range(ord("!"), ord("~") + 1)))
# What a string can be cut into at any place: tokens, halves of tokens, and what is no token.
FRAGMENTS = (*PIECES, "l", "r", "<", "[", "]", "[]", "%", "%1", "%(", "%(12", "[C", "[[C]", "H]")
FRAGMENTS += (" ", "\t", "\r", "\n", "\0", "\x1f", "\x7f", "\x80", "é", "\u0661", "\U0001f600")

atoms = st.lists(st.sampled_from(PIECES), min_size=1, max_size=30).map("".join)
levels = st.sampled_from(["atom", "char"])
LEVELS = pytest.mark.parametrize("level", ["atom", "char"])


def given_settings(**options: Any) -> Settings:
    defaults = {"tokens": TOKENS, "level": "atom", "max_length": 8, "bos": False, "eos": True}
    defaults |= {"on_unknown": "error", "on_overflow": "error"}
    return Settings(**(defaults | options))


def run(smiles: Any, **options: Any) -> tuple[Tensor, list[int], list[int]]:
    ids, lengths, rows = encode(strings_of(smiles), given_settings(**options)).kept()
    return ids, lengths.tolist(), rows.tolist()


def outcome(backend: str, call: Any, *arguments: Any) -> EncodedRows | str:
    """The rows, or the message of the error."""
    with stib_fast.backend(backend):
        try:
            return call(*arguments)
        except ValueError as error:
            return str(error)


def assert_equal(one: EncodedRows | str, other: EncodedRows | str) -> None:
    if isinstance(one, str) or isinstance(other, str):
        assert one == other
        return
    for tensor, same in zip(one, other, strict=True):
        assert tensor.dtype == same.dtype
        assert torch.equal(tensor, same)


def assert_backends_agree(smiles: Any, chosen: Settings) -> EncodedRows | str:
    compiled = outcome("cpp", encode, strings_of(smiles), chosen)
    assert_equal(compiled, outcome("eager", encode, strings_of(smiles), chosen))
    return compiled


# ---- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("smiles", "tokens"),
    [
        ("CCl", ["C", "Cl"]),
        ("BrCBr", ["Br", "C", "Br"]),
        ("BC", ["B", "C"]),
        ("C[C@@H](O)F", ["C", "[C@@H]", "(", "O", ")", "F"]),
        ("[Cl-].[Na+]", ["[Cl-]", ".", "[Na+]"]),
        ("C%12C%(123)C1", ["C", "%12", "C", "%(123)", "C", "1"]),
        ("C%123", ["C", "%12", "3"]),
        ("N->[Fe]<-N", ["N", "->", "[Fe]", "<-", "N"]),
        ("C<->C-->C", ["C", "<-", ">", "C", "-", "->", "C"]),
        ("CC>>C-C", ["C", "C", ">", ">", "C", "-", "C"]),
        ("F/C=C\\F", ["F", "/", "C", "=", "C", "\\", "F"]),
        ("C#N$*~C:c", ["C", "#", "N", "$", "*", "~", "C", ":", "c"]),
        ("CCCll", ["C", "C", "Cl", "l"]),
    ],
)
def test_tokens_of_known_strings(backend: str, smiles: str, tokens: list[str]) -> None:
    assert tokenize(smiles) == tokens
    known = (*SPECIAL, *dict.fromkeys(tokens))
    # The rows behind leave the first to the vector code.
    ids, _, _ = run([smiles] * 65, tokens=known, max_length=len(tokens), eos=False)
    assert (ids == ids[0]).all()
    assert [known[i] for i in ids[0]] == tokens


@given(atoms, levels)
def test_tokens_join_to_the_string(smiles: str, level: str) -> None:
    assert "".join(tokenize(smiles, level)) == smiles


@given(st.text(max_size=20), levels)
def test_any_text_is_tokenised_whole_or_refused(text: str, level: str) -> None:
    try:
        tokens = tokenize(text, level)
    except ValueError:
        return
    assert "".join(tokens) == text
    assert all("!" <= character <= "~" for character in text)


MALFORMED = [
    ("", "empty"),
    ("CC[CH", r"'\[' .*column 3"),
    ("C[C[CH]]", r"'\[' .*column 2"),
    ("C[]", r"'\[' .*column 2"),
    ("[", r"'\[' .*column 1"),
    ("CC]", r"'\]' .*column 3"),
    ("[C]]", r"'\]' .*column 4"),
    ("C%1C", "'%' .*column 2"),
    ("C%1", "'%' .*column 2"),
    ("C%", "'%' .*column 2"),
    ("C%(", "'%' .*column 2"),
    ("C%()", "'%' .*column 2"),
    ("C%(12", "'%' .*column 2"),
    ("C%(1C)", "'%' .*column 2"),
    ("C C", "' ' at column 2"),
    (" C", "' ' at column 1"),
    ("C\t", r"'\\t' at column 2"),
    ("CC\n", r"'\\n' at column 3"),
    ("CC\r", r"'\\r' at column 3"),
    ("C[C C]", "' ' at column 4"),
    ("C\x00C", r"'\\x00' at column 2"),
    ("C\x1f", r"'\\x1f' at column 2"),
    ("C\x7f", r"'\\x7f' at column 2"),
    ("Cé", r"'\\xe9' at column 2"),
    # Arabic digits are digits to Python, not to SMILES.
    ("C%\u0661\u0662", r"'\\u0661' at column 3"),
    ("C\ud800", r"'\\ud800' at column 2"),
]


@pytest.mark.parametrize(("smiles", "message"), MALFORMED)
def test_malformed_strings_name_row_and_column(backend: str, smiles: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tokenize(smiles)
    assert malformation(smiles, "atom") == str(caught.value)
    with pytest.raises(ValueError, match=rf"^row 7: .*{message}"):
        encode(strings_of(["C"] * 7 + [smiles] + ["C"] * 70), given_settings(on_unknown="unk"))
    rows = ["N", smiles] * 40
    dropped = encode(strings_of(rows), given_settings(on_unknown="drop"))
    assert dropped.status.tolist() == [Status.KEPT, Status.MALFORMED] * 40
    assert dropped.lengths.tolist() == [2, 0] * 40
    assert not dropped.ids[1::2].any()


@pytest.mark.parametrize("byte", [0x00, 0x09, 0x20, 0x7F, 0x80, 0xC3, 0xFF])
def test_bytes_that_are_no_smiles(backend: str, byte: int) -> None:
    data = b"CC" + bytes([byte]) + b"N"
    strings, offsets = as_tensor(data + b"C"), torch.tensor([0, 4, 5])
    with pytest.raises(ValueError, match=r"^row 0: character .* at column 3 of"):
        encode_bytes(strings, offsets, given_settings())
    encoded = encode_bytes(strings, offsets, given_settings(on_unknown="drop"))
    assert encoded.status.tolist() == [Status.MALFORMED, Status.KEPT]


def test_an_unclosed_bracket_is_legal_at_character_level_only(backend: str) -> None:
    assert tokenize("C[", level="char") == ["C", "["]
    ids, _, _ = run(["C[%"] * 65, level="char", tokens=SPECIAL + CHARACTERS)
    assert decode(ids, SPECIAL + CHARACTERS) == ["C[%"] * 65


def test_long_strings_are_shortened_in_messages(backend: str) -> None:
    with pytest.raises(ValueError, match="column 10001") as caught:
        run(["C" * 10_000 + "["])
    assert len(str(caught.value)) < 200


def test_unknown_level() -> None:
    with pytest.raises(ValueError, match="level"):
        tokenize("C", level="word")


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"level": "word"},
        {"on_unknown": "ignore"},
        {"on_overflow": "cut"},
        {"max_length": 1},
        {"max_length": 2, "bos": True},
        {"max_length": 0, "eos": False},
    ],
)
def test_unknown_settings_are_refused(options: dict[str, Any]) -> None:
    # Under "drop" a wrong level must not read as a table of malformed strings.
    with pytest.raises(ValueError, match=next(iter(options))):
        given_settings(**({"on_unknown": "drop"} | options))


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


# ---- encode and decode ---------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # one backend for all
@given(smiles=st.lists(atoms, max_size=5), bos=st.booleans(), repeated=st.sampled_from([1, 9]))
def test_decode_undoes_encode(backend: str, smiles: list[str], bos: bool, repeated: int) -> None:
    smiles = smiles * repeated
    ids, lengths, rows = run(smiles, max_length=32, bos=bos)
    assert decode(ids, TOKENS) == smiles
    assert rows == list(range(len(smiles)))
    assert lengths == [len(tokenize(text)) + 1 + bos for text in smiles]
    assert (ids != 0).sum(1).tolist() == lengths


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_decode_takes_any_integers_and_views(backend: str, dtype: torch.dtype) -> None:
    ids, _, _ = run(["CCl", "N"])
    assert decode(ids.to(dtype).T.contiguous().T, TOKENS) == ["CCl", "N"]
    assert decode(ids.to(dtype).repeat(2, 1)[::2], TOKENS) == ["CCl", "CCl"]


@pytest.mark.parametrize("size", [256, 257, 32768])
def test_ids_of_large_vocabularies(backend: str, size: int) -> None:
    tokens = (*SPECIAL, *(f"[{i}C]" for i in range(4, size)))
    first, last = "[4C]", f"[{size - 1}C]"
    ids, _, _ = run([last + first, first] * 40, tokens=tokens, max_length=3)
    assert ids.dtype == (torch.uint8 if size == 256 else torch.int16)
    assert ids.tolist() == [[size - 1, 4, 2], [4, 2, 0]] * 40
    assert decode(ids, tokens) == [last + first, first] * 40


@pytest.mark.parametrize("length", [3, 8, 9, 16, 17, 62, 63, 64, 65, 66, 300, 3000])
def test_tokens_of_any_length(backend: str, length: int) -> None:
    token = "[" + "Z" * (length - 2) + "]"
    other = token[:-2] + "C]"  # alike up to the last character
    ids, _, _ = run([token, "C" + token, other + "N"] * 25, tokens=(*TOKENS, token, other))
    one, two = len(TOKENS), len(TOKENS) + 1
    expected = [[one, 2, 0], [IDS["C"], one, 2], [two, IDS["N"], 2]]
    assert ids[:, :3].tolist() == expected * 25
    assert decode(ids, (*TOKENS, token, other)) == [token, "C" + token, other + "N"] * 25
    smiles = [token, "C" + token, other + "N"] * 25
    ids, _, _ = run(smiles, tokens=(*TOKENS, other), on_unknown="unk")
    assert ids[:3, :2].tolist() == [[3, 2], [IDS["C"], 3], [one, IDS["N"]]]


def test_bos_eos_and_padding(backend: str) -> None:
    ids, lengths, _ = run(["CN"] * 65, bos=True, max_length=6)
    assert ids.tolist() == [[1, IDS["C"], IDS["N"], 2, 0, 0]] * 65
    assert lengths == [4] * 65
    ids, lengths, _ = run(["CN"] * 65, eos=False, max_length=3)
    assert ids.tolist() == [[IDS["C"], IDS["N"], 0]] * 65
    assert lengths == [2] * 65


def test_unknown_token_names_row_token_and_column(backend: str) -> None:
    with pytest.raises(ValueError, match=r"row 1: token '\[Xe\]' at column 4 of 'CBr\[Xe\]'"):
        run(["C", "CBr[Xe]"])


def test_unknown_token_becomes_its_id_or_leaves_the_row_out(backend: str) -> None:
    ids, _, _ = run(["C[Xe]N"], on_unknown="unk")
    assert ids[0, :4].tolist() == [IDS["C"], 3, IDS["N"], 2]
    assert decode(ids, TOKENS) == ["C<unk>N"]
    ids, lengths, rows = run(["C", "[Xe]", "C[", "", None, "N"], on_unknown="drop")
    assert decode(ids, TOKENS) == ["C", "N"]
    assert (lengths, rows) == ([2, 2], [0, 5])


@pytest.mark.parametrize("special", SPECIAL)
def test_special_tokens_cannot_be_written(backend: str, special: str) -> None:
    ids, _, _ = run([special] * 65, on_unknown="unk", max_length=9)
    assert not torch.isin(ids[:, :5], torch.tensor([0, 1, 2], dtype=torch.uint8)).any()


@pytest.mark.parametrize("on_unknown", ["error", "unk"])
def test_malformed_rows_are_refused_unless_dropped(backend: str, on_unknown: str) -> None:
    with pytest.raises(ValueError, match=r"row 1: .*column 2"):
        run(["C", "C["], on_unknown=on_unknown)
    with pytest.raises(ValueError, match="row 1: the SMILES is missing"):
        run(["C", None], on_unknown=on_unknown)


def test_the_first_row_is_counted_from_where_the_caller_says(backend: str) -> None:
    for smiles in (["C", "C["], ["C", None], ["C", "[Xe]"], ["C", "C" * 9], ["C", 3]):
        with pytest.raises(ValueError, match=r"^row 101: "):
            encode(strings_of(smiles, 100), given_settings(), first_row=100)


def test_rows_of_later_parts_are_counted_on(backend: str) -> None:
    parts = strings_of(["C", "N"]) + strings_of([]) + strings_of(["O", "["])
    with pytest.raises(ValueError, match=r"^row 13: "):
        encode(parts, given_settings(), first_row=10)
    assert encode(parts, given_settings(on_unknown="drop")).status.tolist() == [0, 0, 0, 1]


def test_overflow_counts_eos(backend: str) -> None:
    assert run(["CCC"], max_length=4)[1] == [4]
    with pytest.raises(ValueError, match=r"row 0: .* needs 5 positions but max_length is 4"):
        run(["CCCC"], max_length=4)


def test_overflow_truncates_between_tokens_or_drops(backend: str) -> None:
    ids, lengths, rows = run(["CCClBr", "N"], max_length=4, bos=True, on_overflow="truncate")
    assert decode(ids, TOKENS) == ["CC", "N"]
    assert ids[0].tolist() == [1, IDS["C"], IDS["C"], 2]
    assert (lengths, rows) == ([4, 3], [0, 1])
    ids, lengths, rows = run(["CCCC", "N"], max_length=4, on_overflow="drop")
    assert decode(ids, TOKENS) == ["N"]
    assert (lengths, rows) == ([2], [1])


def test_a_fault_behind_the_last_kept_token_still_counts(backend: str) -> None:
    smiles = ["CC" + fault for fault in ("[Xe]", "C[")] * 40
    encoded = encode(
        strings_of(smiles), given_settings(max_length=3, on_unknown="drop", on_overflow="truncate")
    )
    assert encoded.status.tolist() == [Status.UNKNOWN, Status.MALFORMED] * 40


def test_nothing_in_nothing_out(backend: str) -> None:
    ids, lengths, rows = run([])
    assert ids.shape == (0, 8)
    assert ids.dtype == torch.uint8
    assert (lengths, rows) == ([], [])
    assert decode(ids, TOKENS) == []
    assert decode(torch.zeros((2, 0), dtype=torch.uint8), TOKENS) == ["", ""]


def test_decode_stops_at_eos(backend: str) -> None:
    carbon = IDS["C"]
    assert decode(torch.tensor([[1, carbon, 0, carbon, 2, carbon], [2] * 6]), TOKENS) == ["CC", ""]


@pytest.mark.parametrize("bad", [-1, len(TOKENS), 2**40])
def test_decode_refuses_ids_outside_the_vocabulary(backend: str, bad: int) -> None:
    with pytest.raises(ValueError, match=rf"ids\[1, 2\] is {bad} but the vocabulary has"):
        decode(torch.tensor([[4, 4, 4], [4, 2, bad]]), TOKENS)


def test_decode_refuses_other_shapes_and_dtypes(backend: str) -> None:
    for ids in (torch.zeros(3, 3), torch.zeros(3, dtype=torch.int64), torch.zeros(2, 2) > 0):
        with pytest.raises(ValueError, match="integers"):
            decode(ids, TOKENS)


# ---- bytes with offsets --------------------------------------------------------------------------


def as_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bytes_and_their_offsets(backend: str, dtype: torch.dtype) -> None:
    data, offsets = as_tensor(b"xCClBrNNyy"), torch.tensor([1, 4, 4, 6, 8], dtype=dtype)
    encoded = encode_bytes(data, offsets, given_settings(on_unknown="drop"))
    assert decode(encoded.ids, TOKENS) == ["CCl", "", "Br", "NN"]
    assert encoded.status.tolist() == [0, 1, 0, 0]
    apart, placed = data.repeat_interleave(2)[::2], offsets.repeat_interleave(3)[::3]
    again = encode_bytes(apart, placed, given_settings(on_unknown="drop"))
    assert_equal(encoded, again)


def test_no_bytes(backend: str) -> None:
    empty = torch.empty(0, dtype=torch.uint8)
    assert encode_bytes(empty, torch.tensor([0]), given_settings()).ids.shape == (0, 8)
    encoded = encode_bytes(empty, torch.tensor([0, 0]), given_settings(on_unknown="drop"))
    assert encoded.status.tolist() == [Status.MALFORMED]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("offsets", [[0, 2, 1], [2, 1, 3], [0, 4], [-1, 2], [-3, -1], [4, 4], [-1]])
def test_offsets_must_ascend_within_the_data(
    backend: str, offsets: list[int], dtype: torch.dtype
) -> None:
    with pytest.raises(ValueError, match="offsets must ascend and stay within the data"):
        encode_bytes(as_tensor(b"CCO"), torch.tensor(offsets, dtype=dtype), given_settings())


@pytest.mark.parametrize(
    ("data", "offsets", "message"),
    [
        (torch.zeros(3, dtype=torch.int8), torch.tensor([0, 3]), "data must be uint8"),
        (torch.zeros(3, 1, dtype=torch.uint8), torch.tensor([0, 3]), "data must be uint8"),
        (torch.zeros(3, dtype=torch.uint8), torch.tensor([0.0, 3.0]), "offsets must be int32"),
        (torch.zeros(3, dtype=torch.uint8), torch.tensor([[0, 3]]), "offsets must be int32"),
        (torch.zeros(3, dtype=torch.uint8), torch.tensor([], dtype=torch.int64), "offsets must be"),
        (torch.zeros(3, dtype=torch.uint8), torch.tensor([0, 3], device="meta"), "on meta"),
    ],
)
def test_other_types_and_shapes_are_refused(
    backend: str, data: Tensor, offsets: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode_bytes(data, offsets, given_settings())


def test_shapes_of_the_gpu_op_are_known_without_a_gpu() -> None:
    data, offsets = torch.empty(9, dtype=torch.uint8, device="meta"), torch.tensor([0, 4, 9])
    for wide, dtype in ((False, torch.uint8), (True, torch.int16)):
        ids, lengths, status = torch.ops.stib_fast.smiles_encode(
            data, offsets.to("meta"), data, 7, False, True, False, False, wide
        )
        assert (ids.shape, ids.dtype) == ((2, 7), dtype)
        assert (lengths.shape, lengths.dtype) == ((2,), torch.int64)
        assert (status.shape, status.dtype) == ((2,), torch.uint8)


# ---- the compiled tokeniser against plain Python -------------------------------------------------

policies = {
    "bos": st.booleans(),
    "eos": st.booleans(),
    "on_unknown": st.sampled_from(["error", "unk", "drop"]),
    "on_overflow": st.sampled_from(["error", "truncate", "drop"]),
}
lenient_policies = policies | {
    "on_unknown": st.sampled_from(["unk", "drop"]),
    "on_overflow": st.sampled_from(["truncate", "drop"]),
}


@st.composite
def chosen_settings(draw: Any, lenient: bool = False) -> Settings:
    level = draw(levels)
    tokens = PIECES if level == "atom" else CHARACTERS
    known = draw(st.one_of(st.just(tokens), st.lists(st.sampled_from(tokens), unique=True)))
    options = {
        name: draw(values) for name, values in (lenient_policies if lenient else policies).items()
    }
    fewest = 1 + options["bos"] + options["eos"]
    max_length = draw(st.one_of(st.integers(fewest, 140), st.integers(fewest, 8)))
    wide = [f"[{i}]" for i in range(300 * draw(st.booleans()) * (level == "atom"))]
    return Settings((*SPECIAL, *known, *wide), level, max_length, **options)


# Between every two characters a block of 64 bytes may end.
near_a_block = st.builds(
    lambda length, before, pieces: (before * length)[:length] + "".join(pieces),
    st.sampled_from([*range(57, 66), *range(121, 130), *range(185, 194)]),
    st.sampled_from(["c", "C", "cCl", "[nH]", "C-"]),
    st.lists(st.sampled_from(FRAGMENTS[: FRAGMENTS.index(" ")]), max_size=6),
)
near_misses = st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join)
printable = st.text(st.sampled_from(CHARACTERS), max_size=200)
any_string = st.one_of(st.none(), atoms, near_a_block, near_misses, printable)


@pytest.mark.usefixtures("library")
class TestBackendsAgree:
    """cpp and eager give the same ids, lengths, statuses and messages."""

    # The strings are repeated, for the vector code leaves the last rows to the scalar code.
    @settings(max_examples=200)
    @given(smiles=st.lists(any_string, max_size=8), chosen=chosen_settings(lenient=True))
    def test_on_rows_of_any_kind(self, smiles: list[str | None], chosen: Settings) -> None:
        encoded = assert_backends_agree(smiles * 12, chosen)
        if isinstance(encoded, str):
            return
        refused = encoded.status != Status.KEPT
        assert not encoded.ids[refused].any()
        assert not encoded.lengths[refused].any()
        compiled, eager = (
            outcome(name, decode, encoded.ids, chosen.tokens) for name in ("cpp", "eager")
        )
        assert compiled == eager
        for text, status, found in zip(smiles * 12, encoded.status, compiled, strict=True):
            truncated = chosen.on_overflow == "truncate" and text not in (None, found)
            if status == Status.KEPT and "<unk>" not in found:
                assert text.startswith(found) if truncated else text == found

    @settings(max_examples=100)
    @given(smiles=st.lists(any_string, min_size=1, max_size=3), chosen=chosen_settings())
    def test_on_what_they_refuse(self, smiles: list[str | None], chosen: Settings) -> None:
        assert_backends_agree((smiles * 70)[:70], chosen)

    @settings(max_examples=150)
    @given(near=near_a_block, chosen=chosen_settings())
    @example("c" * 63 + "Cl", given_settings(max_length=130))
    @example("c" * 63 + "C", given_settings(max_length=130))
    @example("c" * 63 + "->C", given_settings(max_length=130))
    @example("c" * 62 + "[nH]", given_settings(max_length=130))
    @example("c" * 62 + "[[nH]]", given_settings(max_length=130, on_unknown="drop"))
    @example("[" + "H" * 62 + "]", given_settings(max_length=130, on_unknown="unk"))
    @example("[" + "H" * 63 + "]", given_settings(max_length=130, on_unknown="unk"))
    @example("c" * 62 + "%12", given_settings(max_length=130))
    @example("[nH]" * 48 + "C", given_settings(max_length=130))
    @example("[*]" * 43, given_settings(max_length=130, on_unknown="unk"))
    def test_where_blocks_of_64_bytes_end(self, near: str, chosen: Settings) -> None:
        assert_backends_agree([near] * 66, chosen)

    @settings(max_examples=100)
    @given(
        pieces=st.lists(st.one_of(st.binary(max_size=70), atoms.map(str.encode)), max_size=6),
        chosen=chosen_settings(lenient=True),
        before=st.integers(0, 3),
    )
    def test_on_any_bytes(self, pieces: list[bytes], chosen: Settings, before: int) -> None:
        pieces = pieces * 12
        data = as_tensor(b"x" * before + b"".join(pieces) + b"x")
        offsets = torch.tensor([before, *map(len, pieces)]).cumsum(0)
        arguments = (encode_bytes, data, offsets, chosen)
        assert_equal(outcome("cpp", *arguments), outcome("eager", *arguments))

    @pytest.mark.parametrize("on_unknown", ["unk", "drop"])
    @pytest.mark.parametrize("bos", [False, True])
    def test_rows_do_not_touch_their_neighbours(self, on_unknown: str, bos: bool) -> None:
        """The vector code writes up to 64 bytes beyond a row."""
        kinds = ["C", "c" * 200, "C[", "[nH]N", "[Xe]C", "CCl" * 20, "", "Br" * 64, None, "c%12"]
        if on_unknown == "unk":
            kinds = [text for text in kinds if text not in ("C[", "", None)]
        smiles = [kinds[i * i % len(kinds)] for i in range(50)] + kinds * 4
        for max_length in range(2 + bos, 131):
            for on_overflow in ("truncate", "drop"):
                chosen = given_settings(
                    max_length=max_length, bos=bos, on_unknown=on_unknown, on_overflow=on_overflow
                )
                assert_backends_agree(smiles, chosen)

    @LEVELS
    def test_on_rdkit_random_smiles(self, level: str) -> None:
        rdkit = pytest.importorskip("rdkit.Chem")
        smiles = [
            text
            for molecule in map(rdkit.MolFromSmiles, ZINC_LIKE)
            for text in rdkit.MolToRandomSmilesVect(molecule, 40, randomSeed=7)
        ]
        assert len(set(smiles)) > 200
        tokens = sorted({token for text in smiles for token in tokenize(text, level)})
        chosen = given_settings(level=level, tokens=(*SPECIAL, *tokens), max_length=150)
        encoded = assert_backends_agree(smiles, chosen)
        for name in ("cpp", "eager"):
            assert outcome(name, decode, encoded.ids, chosen.tokens) == smiles

    @settings(max_examples=80)
    @given(batches=st.lists(st.lists(any_string, max_size=6), max_size=4), level=levels)
    def test_on_counts(self, batches: list[list[str | None]], level: str) -> None:
        for batch in batches:
            compiled, eager = (
                outcome(name, count, strings_of(batch)[0], level) for name in ("cpp", "eager")
            )
            assert compiled.counts == eager.counts
            assert compiled.longest == eager.longest
            assert torch.equal(compiled.status, eager.status)


ZINC_LIKE = [
    "CC(C)(C)c1ccc2occ(CC(=O)Nc3ccccc3F)c2c1",
    "C[C@@H]1CC(Nc2cncc(-c3nncn3C)c2)C[C@@H](C)C1",
    "N#Cc1ccc(-c2ccc(O[C@@H](C(=O)N3CCCC3)c3ccccc3)cc2)cc1",
    "CCOC(=O)[C@@H]1CCCN(C(=O)c2nc(-c3ccc(C)cc3)n3c2CCCCC3)C1",
    "O=C(NCCNC(=O)N1C[C@H]2CC=CC[C@@H]2C1)c1cccc(Cl)c1",
    "CC[NH+](CC)[C@](C)(CC)[C@H](O)c1cscc1Br",
    "C/C(=N\\NC(=O)c1ccc([N+](=O)[O-])cc1)c1c[nH]c2ccccc12",
    "[O-]c1ccc(F)cc1-c1nc(Cl)nc(I)c1S(=O)(=O)P",
]


# ---- counts --------------------------------------------------------------------------------------


def test_counts_leave_out_what_is_malformed(backend: str) -> None:
    smiles = ["CCl", "CC[", None, "", "[nH]Cl[nH]", "N]", "%12%12"]
    counts, longest, status = count(strings_of(smiles)[0], "atom")
    assert counts == Counter({"C": 1, "Cl": 2, "[nH]": 2, "%12": 2})
    assert longest == 3
    assert status.tolist() == [0, 1, 4, 1, 0, 1, 0]


# ---- threads -------------------------------------------------------------------------------------


def test_the_number_of_threads_changes_nothing(library: None) -> None:
    # Parts are of 2048 rows or more: 5 threads, and a rest; every length, kept and refused.
    pieces = ["C", "c" * 70, "C[", "[nH]Cl", None, "Br" * 40, "[Xe]", "", "[C@@H](N)O%12"]
    smiles = [pieces[i * i % 9] for i in range(11_003)]
    chosen = given_settings(max_length=33, on_unknown="drop", on_overflow="truncate")
    narrow = np.array([text or "" for text in smiles])
    seen = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        encoded = encode(strings_of(smiles), chosen)
        counted = count(strings_of(smiles)[0], "atom")
        seen.append((encoded, encode(strings_of(narrow), chosen), counted))
        assert decode(encoded.ids, TOKENS) == decode(encoded.ids.long(), TOKENS)
    one = seen[0]
    for other in seen[1:]:
        assert_equal(one[0], other[0])
        assert_equal(one[1], other[1])
        assert one[2].counts == other[2].counts
        assert one[2].longest == other[2].longest
        assert torch.equal(one[2].status, other[2].status)
    assert_equal(one[0], outcome("eager", encode, strings_of(smiles), chosen))
    torch.set_num_threads(5)
    decoded = decode(one[0].ids, TOKENS)
    assert decoded == outcome("eager", decode, one[0].ids, TOKENS)


@pytest.mark.parametrize("row", [0, 2200, 11_002])
def test_a_bad_row_is_found_whichever_thread_has_it(library: None, row: int) -> None:
    torch.set_num_threads(5)
    smiles = ["CN"] * 11_003
    smiles[row] = "C["
    with pytest.raises(ValueError, match=rf"^row {row}: "):
        run(smiles)
    ids = torch.full((11_003, 3), 4)
    ids[row, 1] = 999
    with pytest.raises(ValueError, match=rf"^ids\[{row}, 1\] is 999"):
        decode(ids, TOKENS)


def test_python_threads_share_one_tokeniser(library: None) -> None:
    smiles = [["C" * (1 + i), "[nH]Cl", "Br" * i + "N"] * 2000 for i in range(4)]
    found: list[list[str]] = [[]] * len(smiles)

    def work(i: int) -> None:
        for _ in range(3):
            found[i] = decode(run(smiles[i])[0], TOKENS)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(smiles))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == smiles


def test_a_list_emptied_meanwhile(library: None) -> None:
    """The strings are read without the GIL, so another thread may let go of them."""
    chosen = given_settings(max_length=41, on_unknown="drop", on_overflow="drop")
    ended = threading.Event()
    current: list[list[str]] = [[]]

    def empty() -> None:
        while not ended.is_set():
            current[0].clear()

    emptier = threading.Thread(target=empty)
    emptier.start()
    try:
        for _ in range(30):
            current[0] = smiles = [f"[{i}C]" + "C" * 30 for i in range(2000)]
            try:
                encoded = encode(strings_of(smiles), chosen)
            except ValueError:
                continue  # it had fewer rows than when it was counted
            assert len(encoded.ids) in (0, 2000)
    finally:
        ended.set()
        emptier.join()


# ---- instruction sets ----------------------------------------------------------------------------

# Without stib_fast, whose torch would take seconds to import.
DIGEST = """
import hashlib, importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("_smiles", sys.argv[1])
smiles = importlib.util.module_from_spec(spec)
spec.loader.exec_module(smiles)
pieces = ["C", "c" * 70, "C[", "[nH]Cl", None, "Br" * 40, "[Xe]", "", "[C@@H](N)O%12", "N->[nH]"]
rows = [pieces[i * i % 10] for i in range(300)] + ["c" * i + "Cl[nH]->" for i in range(140)]
tokens = ["<pad>", "<bos>", "<eos>", "<unk>", *"CcNO()", "Cl", "Br", "[nH]", "[C@@H]", "->"]
digest = hashlib.sha256()
for atom_level in (True, False):
    for keep, truncate in ((True, True), (False, False)):
        for width in (2, 9, 64, 130):
            ids, lengths = np.empty((440, width), np.uint8), np.empty(440, np.int64)
            status = np.empty(440, np.uint8)
            smiles.Codec(tokens, atom_level).encode(
                smiles.Strings(rows), ids, lengths, status,
                bos=False, eos=True, keep_unknown=keep, truncate=truncate, threads=1)
            for table in (ids, lengths, status):
                digest.update(table.tobytes())
print(digest.hexdigest())
"""


def test_every_instruction_set_gives_the_same(library: None) -> None:
    from stib_fast import _smiles

    def digest(instruction_set: str) -> str:
        # Any other value than baseline and avx2 leaves the choice free.
        return subprocess.run(
            [sys.executable, "-c", DIGEST, _smiles.__file__],
            env=os.environ | {"STIB_FAST_CPU": instruction_set},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert digest("baseline") == digest("avx2") == digest("best")


# ---- real molecules ------------------------------------------------------------------------------


@pytest.mark.data
@LEVELS
@pytest.mark.parametrize("file", ["qm9_c7h10o2.csv", "qm9_other.csv.gz", "zinc250k.csv.gz"])
def test_every_real_molecule_is_the_same_and_comes_back(
    library: None, data_dir: Path, file: str, level: str
) -> None:
    from pyarrow import csv

    column = csv.read_csv(data_dir / file)["smiles"]
    smiles = column.to_pylist()
    tokens = (*SPECIAL, *sorted(count(strings_of(smiles)[0], level).counts))
    chosen = given_settings(level=level, tokens=tokens, max_length=121)
    encoded = assert_backends_agree(smiles, chosen)
    assert encoded.status.eq(Status.KEPT).all()
    assert decode(encoded.ids, tokens) == smiles
    assert_equal(encoded, encode(strings_of(column), chosen))
