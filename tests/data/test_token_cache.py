from __future__ import annotations

import csv
import errno
import json
import os
import pickle
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import numpy
import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from stib_fast.chem import SmilesTokenizer, Vocabulary, files
from stib_fast.data import CacheSettings, TokenCache, read_table, token_writer, write_token_cache
from stib_fast.data.columns import read_columns
from stib_fast.ops.smiles import id_dtype

ALPHABET = ["C", "Cl", "[nH]", "O", "(", ")", "=", "1"]
strings = st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=9).map("".join)
SMALL = CacheSettings(targets=("x", "y"), rows_per_shard=16)


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing takes milliseconds a file and shows only after a power cut."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A table of 100 rows."""
    path = tmp_path / "molecules.csv"
    rows = (f"{'C' * (i % 7)}O,{i},{i / 8}\n" for i in range(100))
    path.write_text("smiles,x,y\n" + "".join(rows))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- what is written is what encode gives --------------------------------------------------------


@given(
    smiles=st.lists(strings, min_size=1, max_size=30),
    odd=st.lists(st.sampled_from(["N", "[C", "CN(", "", "%1"]), max_size=4),
    rows_per_shard=st.integers(1, 12),
    bos=st.booleans(),
    eos=st.booleans(),
    level=st.sampled_from(["atom", "char"]),
    piece_bytes=st.sampled_from([1, 30, 10**6]),
    block_bytes=st.sampled_from([64, 10**6]),
)
@settings(max_examples=60)
def test_a_cache_holds_what_encode_gives(
    tmp_path_factory, smiles, odd, rows_per_shard, bos, eos, level, piece_bytes, block_bytes
):
    folder = tmp_path_factory.mktemp("cache")
    vocabulary = Vocabulary.from_smiles(smiles, level)
    mixed = [text for pair in zip(smiles, odd, strict=False) for text in pair]
    mixed += smiles[len(odd) :]
    source = folder / "a.csv"
    source.write_text("smiles,x\n" + "".join(f'"{s}",{i}\n' for i, s in enumerate(mixed)))
    chosen = CacheSettings(
        targets=("x",), vocabulary=vocabulary, max_length=7, on_unknown="drop", on_overflow="drop",
        bos=bos, eos=eos, rows_per_shard=rows_per_shard,
    )  # fmt: skip
    expected = SmilesTokenizer(vocabulary, 7, "drop", "drop", bos, eos).encode(mixed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_writer, "PIECE_BYTES", piece_bytes)
        patch.setattr(files, "BLOCK_BYTES", block_bytes)
        if not len(expected.rows):
            with pytest.raises(ValueError, match=f"none of the {len(mixed)} rows is kept"):
                write_token_cache(source, folder / "cache", chosen)
            return
        assert write_token_cache(source, folder / "cache", chosen) == len(mixed)
    cache = TokenCache(folder / "cache", source)
    found = cache[torch.arange(len(cache))]
    assert torch.equal(found.ids, expected.ids)
    assert torch.equal(found.lengths.long(), expected.lengths)
    assert torch.equal(found.rows, expected.rows)
    assert torch.equal(found.targets[:, 0].long(), expected.rows)
    assert [len(shard.ids) for shard in cache.shards[:-1]] == [rows_per_shard] * (
        len(cache.shards) - 1
    )
    assert 1 <= len(cache.shards[-1].ids) <= rows_per_shard
    assert cache.counts["read"] == len(mixed)
    assert cache.counts["kept"] == len(cache) == len(expected.rows)
    assert sum(cache.counts.values()) == 2 * len(mixed)
    cache.verify()


def test_rows_come_in_any_order(tmp_path, source):
    write_token_cache(source, tmp_path / "cache", SMALL)
    cache = TokenCache(tmp_path / "cache")
    rows = torch.randint(100, (300,))
    found = cache[rows]
    assert torch.equal(found.rows, rows)
    assert torch.equal(found.targets, torch.stack([rows, rows / 8], 1).double())
    assert torch.equal(found.lengths.long(), rows % 7 + 2)
    assert cache[[]].ids.shape == (0, 8)
    assert cache[[99]].targets.tolist() == [[99.0, 99 / 8]]
    assert torch.equal(cache.rows, torch.arange(100))
    assert torch.equal(cache.targets[:, 1], torch.arange(100) / 8)
    for outside in ([3, 100], [-1]):
        with pytest.raises(IndexError, match=rf"row {outside[-1]} is outside of the 100 rows"):
            cache[outside]


def test_vocabulary_and_length_are_those_of_the_file(tmp_path, source):
    write_token_cache(source, tmp_path / "cache", SMALL)
    cache = TokenCache(tmp_path / "cache", source)
    assert cache.vocabulary == Vocabulary.from_smiles(["CO"])
    assert cache.vocabulary.counts[4:] == (sum(i % 7 for i in range(100)), 100)
    assert (cache.max_length, cache.target_names) == (8, ("x", "y"))


def test_any_arrow_reader_reads_a_shard(tmp_path, source):
    write_token_cache(source, tmp_path / "cache", SMALL)
    with pyarrow.ipc.open_file(tmp_path / "cache" / "tokens-00006.arrow") as reader:
        table = reader.read_all()
    assert [str(kind) for kind in table.schema.types] == [
        "fixed_size_list<item: uint8 not null>[8]",
        "int16",
        "int64",
        "fixed_size_list<item: double not null>[2]",
    ]
    assert not any(field.nullable for field in table.schema)
    assert table.schema.metadata[b"shard"] == b"6"
    assert table["row"].to_pylist() == [96, 97, 98, 99]
    assert table["ids"].to_pylist()[0] == [4] * 5 + [5, 2, 0]
    assert table["targets"].to_pylist()[1] == [97.0, 97 / 8]


def test_a_large_vocabulary_has_wider_ids(tmp_path):
    smiles = [f"[{i}C]" for i in range(1, 254)]
    (tmp_path / "a.smi").write_text("\n".join(smiles))
    write_token_cache(tmp_path / "a.smi", tmp_path / "cache", CacheSettings())
    cache = TokenCache(tmp_path / "cache")
    assert id_dtype(len(cache.vocabulary)) == cache.shards[0].ids.dtype == torch.int16
    tokenizer = SmilesTokenizer(cache.vocabulary, cache.max_length)
    assert tokenizer.decode(cache[range(253)].ids) == smiles
    assert cache.shards[0].targets.shape == (253, 0)


def test_the_mapping_is_private_and_survives_pickling(tmp_path, source):
    write_token_cache(source, tmp_path / "cache", SMALL)
    cache = TokenCache(tmp_path / "cache")
    before = contents(tmp_path / "cache")
    cache.shards[0].ids.fill_(9)
    assert contents(tmp_path / "cache") == before
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.shards[0].ids.max() == 5
    assert torch.equal(copy.rows, cache.rows)


def test_workers_of_a_loader_read_it(tmp_path, source):
    write_token_cache(source, tmp_path / "cache", SMALL)
    cache = TokenCache(tmp_path / "cache")
    order = torch.utils.data.BatchSampler(range(100), 30, drop_last=False)
    loader = torch.utils.data.DataLoader(cache, batch_size=None, sampler=order, num_workers=1)
    assert torch.equal(torch.cat([batch.rows for batch in loader]), torch.arange(100))


# ---- dropped rows and bad targets ----------------------------------------------------------------


def test_reasons_are_counted(tmp_path):
    table = pyarrow.table(
        {
            "s": ["CO", "C[", "CN", "CCCC", None, "C", "O", "CC"],
            "x": [1.0, 2.0, 3.0, 4.0, 5.0, None, numpy.inf, 8.0],
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    chosen = CacheSettings(
        "s", ("x",), Vocabulary.from_smiles(["CO"]), max_length=4,
        on_unknown="drop", on_overflow="drop", on_bad_target="drop", rows_per_shard=1,
    )  # fmt: skip
    write_token_cache(tmp_path / "a.parquet", tmp_path / "cache", chosen)
    cache = TokenCache(tmp_path / "cache")
    assert cache.rows.tolist() == [0, 7]
    assert cache.counts == {
        "read": 8, "kept": 2, "missing": 1, "malformed": 1, "unknown": 1, "too_long": 1,
        "bad_target": 2,
    }  # fmt: skip


@pytest.mark.parametrize("cell", ["", "nan", "inf", "abc", "1.5.2"])
def test_a_bad_target_is_an_error_with_its_place(tmp_path, source, cell):
    source.write_text(source.read_text().replace("\nCCCO,94,", f"\nCCCO,{cell},"))
    message = rf"molecules.csv: column 'x', row 95: '{cell}' is not a finite number.*--on-bad"
    with pytest.raises(ValueError, match=message):
        write_token_cache(source, tmp_path / "cache", SMALL)
    dropping = replace(SMALL, on_bad_target="drop")
    write_token_cache(source, tmp_path / "other", dropping)
    cache = TokenCache(tmp_path / "other")
    assert cache.counts["bad_target"] == 1
    assert 94 not in cache.rows


def test_the_policies_errors_name_file_column_and_row(tmp_path, source):
    source.write_text(source.read_text().replace("\nCCCO,94,", "\nC[CO,94,"))
    with pytest.raises(ValueError, match=r"molecules.csv: column 'smiles', row 95: "):
        write_token_cache(source, tmp_path / "cache", SMALL)
    chosen = replace(SMALL, vocabulary=Vocabulary.from_smiles(["CO"]), max_length=8)
    with pytest.raises(ValueError, match=r"molecules.csv: column 'smiles', row 95: "):
        write_token_cache(source, tmp_path / "cache", chosen)


def test_a_file_without_smiles_is_an_error(tmp_path):
    (tmp_path / "a.smi").write_text("C[\nN(%\n")
    with pytest.raises(ValueError, match=r"a.smi: there is no well-formed SMILES in its 2 rows"):
        write_token_cache(tmp_path / "a.smi", tmp_path / "c", CacheSettings(on_unknown="drop"))


def test_columns_of_other_types_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"s": ["C"], "n": [1], "many": [[1.0]]}), path)
    with pytest.raises(ValueError, match=r"a.parquet: column 'n' holds int64, not strings"):
        write_token_cache(path, tmp_path / "cache", CacheSettings("n"))
    with pytest.raises(ValueError, match=r"a.parquet: column 'many' holds list.*, not numbers"):
        write_token_cache(path, tmp_path / "cache", CacheSettings("s", ("many",)))
    with pytest.raises(ValueError, match=r"column 'q' is missing; there are \['s', 'n', 'many'\]"):
        write_token_cache(path, tmp_path / "other", CacheSettings("s", ("q",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_unknown": "ignore"}, "on_unknown must be one of"),
        ({"on_bad_target": "ignore"}, "on_bad_target must be one of"),
        ({"max_length": 1}, "no room"),
        ({"level": "word"}, "level must be one of"),
        ({"rows_per_shard": 0}, "rows_per_shard must be at least 1; got 0"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        CacheSettings(**options)


def test_a_shard_has_a_largest_size(tmp_path, source):
    with pytest.raises(ValueError, match="rows_per_shard: 1000000000 rows of 34 bytes are more"):
        write_token_cache(source, tmp_path / "cache", replace(SMALL, rows_per_shard=10**9))


def test_a_shard_and_a_piece_count_all_columns(tmp_path, source, monkeypatch):
    row = 8 + 2 + 8 + 2 * 8  # ids, length, row, targets
    monkeypatch.setattr(token_writer, "SHARD_BYTES", 10 * row + 1)
    monkeypatch.setattr(token_writer, "PIECE_BYTES", 7 * row + 1)
    encode = token_writer._encode
    pieces = []

    def encode_and_note(*arguments):
        encoded = encode(*arguments)
        pieces.append(len(encoded.reasons))
        return encoded

    monkeypatch.setattr(token_writer, "_encode", encode_and_note)
    write_token_cache(source, tmp_path / "cache", replace(SMALL, rows_per_shard=None))
    cache = TokenCache(tmp_path / "cache")
    assert [len(shard.ids) for shard in cache.shards] == [10] * 10
    assert pieces == [7] * 14 + [2]


def test_files_are_read_alike_by_training_encoding_and_mi(tmp_path):
    cells = ["2", "1.5*^-5", "1_000", " 3 ", "", "x"]
    path = tmp_path / "a.csv"
    path.write_text("smiles,x\n" + "".join(f"{'C' * i}O,{x}\n" for i, x in enumerate(cells)))
    table = read_table(path, targets={"x": ""}, strict=False)
    write_token_cache(path, tmp_path / "c", CacheSettings(targets=("x",), on_bad_target="drop"))
    cache = TokenCache(tmp_path / "c")
    assert torch.equal(cache.targets, table.targets)
    assert cache.targets[:, 0].tolist() == [2.0, 1.5e-5, 3.0]
    assert torch.equal(cache.rows + 1, table.rows)  # messages count from 1
    with pytest.raises(ValueError, match="column 'x', row 3: '1_000' is not a number"):
        read_columns(path, ["x"])
    path.write_text("smiles,x\nO,2\nO,1.5*^-5\nO,\n")
    numpy.testing.assert_array_equal(read_columns(path, ["x"])["x"], [2, 1.5e-5, numpy.nan])


# ---- stopping and continuing ---------------------------------------------------------------------


class Killed(BaseException):
    """What no handler catches."""


@pytest.mark.parametrize("moved", [False, True])
def test_killed_anywhere_it_continues_to_the_same_bytes(tmp_path, source, monkeypatch, moved):
    write_token_cache(source, tmp_path / "whole", SMALL)
    whole = contents(tmp_path / "whole")
    real_replace = os.replace
    moves = 0

    def killing(at: int):
        nonlocal moves
        moves = 0

        def move(old, new):
            nonlocal moves
            moves += 1
            if moves == at:
                if moved:
                    real_replace(old, new)
                else:
                    old.write_bytes(old.read_bytes()[:50])
                raise Killed
            real_replace(old, new)

        monkeypatch.setattr(os, "replace", move)

    killing(at=0)
    write_token_cache(source, tmp_path / "counted", SMALL)
    assert moves == 2 + 7 * 2 + 1  # vocabulary, 7 shards, cache.json before, after each and last
    for at in range(1, moves + 1):
        folder = tmp_path / f"killed{at}"
        killing(at)
        with pytest.raises(Killed):
            write_token_cache(source, folder, SMALL)
        if not (at == 17 and moved):
            with pytest.raises(ValueError, match=r"is unfinished|has no cache\.json"):
                TokenCache(folder)
        killing(at=0)
        write_token_cache(source, folder, SMALL)
        found = {name: content for name, content in contents(folder).items() if name in whole}
        assert found == whole
        TokenCache(folder, source).verify()


def test_a_finished_cache_is_only_verified(tmp_path, source):
    folder = tmp_path / "cache"
    assert write_token_cache(source, folder, SMALL) == 100
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert write_token_cache(source, folder, SMALL) == 0
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    shard = folder / "tokens-00003.arrow"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match=r"tokens-00003.arrow was altered"):
        write_token_cache(source, folder, SMALL)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ("x",)}, r"targets is \['x', 'y'\] there and \['x'\] here"),
        ({"max_length": 9}, "max_length is None there and 9 here"),
        ({"on_unknown": "drop", "bos": True}, "on_unknown is 'error' there and 'drop' here, bos"),
        ({"vocabulary": Vocabulary.from_smiles(["CO"])}, "vocabulary is None there and '25c6"),
        ({"rows_per_shard": None}, "rows_per_shard is 16 there and None here"),
    ],
)
def test_other_settings_are_refused(tmp_path, source, finished, changes, message):
    folder = tmp_path / "cache"
    write_token_cache(source, folder, SMALL)
    if not finished:
        unfinish(folder, shards=3)
    with pytest.raises(ValueError, match=message) as error:
        write_token_cache(source, folder, replace(SMALL, **changes))
    assert "name another folder, or delete that" in str(error.value)


def unfinish(folder: Path, shards: int) -> None:
    """Take a cache back to where only some shards were written."""
    content = json.loads((folder / "cache.json").read_text())
    content |= {"finished": False, "shards": content["shards"][:shards]}
    (folder / "cache.json").write_text(json.dumps(content))


def test_an_error_before_the_first_shard_leaves_the_folder_free(tmp_path, source):
    folder = tmp_path / "cache"
    source.write_text(source.read_text().replace("\nCCCO,94,", "\nCCCO,,"))
    whole = replace(SMALL, rows_per_shard=None)
    with pytest.raises(ValueError, match="row 95: '' is not a finite number"):
        write_token_cache(source, folder, whole)
    dropping = replace(whole, on_bad_target="drop", vocabulary=Vocabulary.from_smiles(["CON"]))
    write_token_cache(source, folder, dropping)
    write_token_cache(source, tmp_path / "other", dropping)
    assert contents(folder) == contents(tmp_path / "other")


def test_a_second_writer_is_refused(tmp_path, source, monkeypatch):
    folder = tmp_path / "cache"
    add = token_writer._ShardWriter.add
    refusals = []

    def add_with_company(writer, rows):
        with pytest.raises(ValueError, match="cache is being written by another process: wait"):
            write_token_cache(source, folder, SMALL)
        refusals.append(rows.first_row)
        add(writer, rows)

    with monkeypatch.context() as patch:
        patch.setattr(token_writer._ShardWriter, "add", add_with_company)
        assert write_token_cache(source, folder, SMALL) == 100
    assert refusals == [0]
    assert write_token_cache(source, folder, SMALL) == 0


@pytest.mark.parametrize("finished", [True, False])
def test_another_source_is_refused(tmp_path, source, finished):
    folder = tmp_path / "cache"
    write_token_cache(source, folder, SMALL)
    if not finished:
        unfinish(folder, shards=3)
    source.write_text(source.read_text() + "C,1,2\n")
    with pytest.raises(ValueError, match=r"cache is a cache of molecules.csv .* other content"):
        write_token_cache(source, folder, SMALL)


def test_a_source_that_moved_is_the_same_source(tmp_path, source):
    folder = tmp_path / "cache"
    write_token_cache(source, folder, SMALL)
    unfinish(folder, shards=3)
    (tmp_path / "elsewhere").mkdir()
    moved = source.rename(tmp_path / "elsewhere" / "renamed.csv")
    assert write_token_cache(moved, folder, SMALL) == 100 - 48
    assert len(TokenCache(folder, moved)) == 100


def test_a_source_that_changes_meanwhile_is_refused(tmp_path, source, monkeypatch):
    add = token_writer._ShardWriter.add

    def change(writer, rows):
        add(writer, rows)
        source.write_text(source.read_text() + "C,1,2\n")

    monkeypatch.setattr(token_writer._ShardWriter, "add", change)
    with pytest.raises(ValueError, match=r"molecules.csv changed while it was read: delete"):
        write_token_cache(source, tmp_path / "cache", SMALL)


def test_a_folder_of_something_else_is_left_alone(tmp_path, source):
    with pytest.raises(ValueError, match="holds something else than a token cache"):
        write_token_cache(source, tmp_path, SMALL)
    assert contents(tmp_path) == {source.name: source.read_bytes()}


def test_a_full_disk_is_told_and_mended(tmp_path, source, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device; once that is mended.*cache"):
            write_token_cache(source, folder, SMALL)
    assert contents(folder) == {"lock": b""}
    write_token_cache(source, folder, SMALL)
    assert len(TokenCache(folder)) == 100


def test_a_file_that_may_not_grow_is_told(tmp_path, source):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    chosen = replace(SMALL, rows_per_shard=100)  # one shard, above the limit; the rest is below
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large; once .*tokens-00000.arrow"):
            write_token_cache(source, tmp_path / "cache", chosen)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(contents(tmp_path / "cache")) == ["cache.json", "lock", "vocabulary.json"]
    write_token_cache(source, tmp_path / "cache", chosen)


def test_a_folder_that_cannot_be_made(tmp_path, source):
    with pytest.raises(OSError, match=r"molecules\.csv"):
        write_token_cache(source, source / "cache", SMALL)
    with pytest.raises(OSError, match=r"nowhere\.csv"):
        write_token_cache(tmp_path / "nowhere.csv", tmp_path / "cache", SMALL)
    assert not (tmp_path / "cache").exists()


# ---- what the reader refuses ---------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, source: Path) -> Path:
    write_token_cache(source, tmp_path / "cache", SMALL)
    return tmp_path / "cache"


def test_another_version_is_told_whatever_it_holds(folder):
    for content in ({"version": 2, "pieces": []}, {"version": 0, "shards": [{"name": "a"}]}):
        (folder / "cache.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=rf"cache.json is of version {content['version']}, "):
            TokenCache(folder)


def test_a_truncated_shard_is_refused(folder):
    shard = folder / "tokens-00002.arrow"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"tokens-00002.arrow has \d+ bytes, not \d+; delete"):
        TokenCache(folder)


def test_a_missing_shard_is_refused(folder):
    (folder / "tokens-00002.arrow").unlink()
    with pytest.raises(ValueError, match=r"tokens-00002.arrow is missing; delete the folder"):
        TokenCache(folder)


def test_shards_in_another_order_are_refused(folder):
    first, second = (folder / f"tokens-0000{i}.arrow" for i in range(2))
    content = first.read_bytes()
    shutil.move(second, first)
    second.write_bytes(content)
    with pytest.raises(ValueError, match=r"tokens-00000.arrow is a shard of another cache"):
        TokenCache(folder)


def test_a_shard_of_another_cache_is_refused(folder, source, tmp_path):
    source.write_text(source.read_text().replace("\nCCCO,94,", "\nCCCO,95,"))
    write_token_cache(source, tmp_path / "other", SMALL)
    shutil.copy(tmp_path / "other" / "tokens-00000.arrow", folder)
    with pytest.raises(ValueError, match=r"tokens-00000.arrow is a shard of another cache"):
        TokenCache(folder)


def test_a_damaged_shard_is_refused(folder):
    shard = folder / "tokens-00001.arrow"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(ValueError, match=r"tokens-00001.arrow is damaged"):
        TokenCache(folder)


def test_altered_ids_are_found_by_verify(folder):
    shard = folder / "tokens-00001.arrow"
    content = shard.read_bytes()
    ids = bytes([4, 4, 4, 5, 2, 0, 0, 0])
    assert ids in content
    shard.write_bytes(content.replace(ids, bytes([5, 4, 4, 5, 2, 0, 0, 0])))
    cache = TokenCache(folder)
    with pytest.raises(ValueError, match=r"tokens-00001.arrow was altered.*encode again"):
        cache.verify()


def test_a_changed_source_is_refused(folder, source):
    source.write_text(source.read_text().replace("\nCCCO,94,", "\nCCCO,95,"))
    TokenCache(folder)
    with pytest.raises(ValueError, match=r"encoded from another file than .*molecules.csv"):
        TokenCache(folder, source)


def test_another_vocabulary_is_refused(folder):
    Vocabulary.from_smiles(["CON"]).save(folder / "vocabulary.json")
    with pytest.raises(ValueError, match=r"vocabulary.json is not the vocabulary of the ids"):
        TokenCache(folder)


def test_an_unfinished_cache_is_refused(folder):
    unfinish(folder, shards=2)
    with pytest.raises(ValueError, match="cache is unfinished: run the command that began it"):
        TokenCache(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{", "", r"cache\.json is damaged"),
        ('"finished"', '"fnished"', r"cache\.json is damaged"),
        ('"version": 1', '"version": 2', r"cache\.json is of version 2, not 1"),
        ('"max_length": 8', '"max_length": 9', r"cache\.json was altered"),
        ('"rows": 16', '"rows": 15', r"tokens-00000.arrow holds torch.uint8 ids \[16, 8\]"),
    ],
)
def test_an_altered_record_is_refused(folder, old, new, message):
    path = folder / "cache.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        TokenCache(folder)


def test_what_is_no_cache_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"is not a token cache: it has no cache\.json"):
            TokenCache(path)


@pytest.mark.data
def test_real_molecules(data_dir, tmp_path):
    source = data_dir / "qm9_c7h10o2.csv"
    chosen = CacheSettings(targets=("alpha", "gap"), rows_per_shard=1000)
    write_token_cache(source, tmp_path / "cache", chosen)
    cache = TokenCache(tmp_path / "cache", source)
    assert len(cache) == 5790
    assert cache.max_length == 21
    with source.open() as file:
        expected = list(csv.DictReader(file))
    tokenizer = SmilesTokenizer(cache.vocabulary, 21)
    order = torch.randperm(5790)
    found = cache[order]
    assert tokenizer.decode(found.ids) == [expected[row]["smiles"] for row in order.tolist()]
    for i, name in enumerate(cache.target_names):
        assert found.targets[:, i].tolist() == [float(expected[r][name]) for r in order.tolist()]
