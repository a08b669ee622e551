"""``stib encode``: a molecule file to token ids on disk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import jsonargparse

from stib_fast.chem import Vocabulary
from stib_fast.cli.parsers import Commands, command
from stib_fast.data import CacheSettings, TokenCache, write_token_cache
from stib_fast.training import Interrupted

PRESETS: tuple[Literal["qm9", "zinc250k"], ...] = ("qm9", "zinc250k")
_REASONS = {
    "missing": "missing",
    "malformed": "malformed",
    "unknown": "with an unknown token",
    "too_long": "too long",
    "bad_target": "with a bad target",
}


def add_to(commands: Commands) -> None:
    """Add the command."""
    encode = command(
        "Encode the SMILES of a file into a folder of token ids. What was stopped, the same "
        "command continues; on a finished folder it compares the digests. Messages count rows from "
        "1, after the header; the column row of the folder's files counts from 0."
    )
    encode.add_argument("file", type=str, help=".smi, .csv (also .gz) or .parquet")
    encode.add_argument("-o", "--output", type=str, required=True, help="folder")
    encode.add_argument("--smiles", type=str, default="smiles", help="column of the SMILES")
    encode.add_argument(
        "--target",
        type=str,
        nargs="+",
        action="extend",
        default=[],
        help="columns of numbers to keep",
    )
    encode.add_argument(
        "--vocabulary", type=str, help="JSON file, qm9 or zinc250k; default: that of the file"
    )
    encode.add_argument("--level", choices=["atom", "char"], help="of tokens; default: atom")
    encode.add_argument(
        "--max-length", type=int, help="with bos and eos; default: what the longest needs"
    )
    encode.add_argument("--on-unknown", choices=["error", "unk", "drop"], default="error")
    encode.add_argument("--on-overflow", choices=["error", "truncate", "drop"], default="error")
    encode.add_argument("--on-bad-target", choices=["error", "drop"], default="error")
    encode.add_argument("--bos", action="store_true", help="begin rows with bos")
    encode.add_argument("--no-eos", action="store_true", help="do not end rows with eos")
    encode.add_argument("--rows-per-shard", type=int, help="default: 64 MiB")
    commands.add_subcommand("encode", encode)


def _encode(options: jsonargparse.Namespace) -> None:
    settings = _settings(options)
    start = time.perf_counter()
    try:
        rows = write_token_cache(options.file, options.output, settings)
    except KeyboardInterrupt:
        raise Interrupted("stopped; the same command continues") from None
    seconds = time.perf_counter() - start
    cache = TokenCache(options.output)
    print(_table(cache))
    if rows:
        share = rows / cache.counts["read"]
        rate = share * Path(options.file).stat().st_size / seconds / 1e6
        print(f"{rows} rows encoded in {seconds:.1f} s, {rate:.0f} MB/s of {options.file}")
    else:
        print(f"{options.output} was complete; its digests are right")


def _settings(options: jsonargparse.Namespace) -> CacheSettings:
    vocabulary = _vocabulary(options.vocabulary)
    if vocabulary and options.level not in (None, vocabulary.level):
        raise ValueError(
            f"--level {options.level}: the vocabulary {options.vocabulary} is of level "
            f"{vocabulary.level}"
        )
    return CacheSettings(
        smiles=options.smiles,
        targets=tuple(options.target),
        vocabulary=vocabulary,
        level=options.level or "atom",
        max_length=options.max_length,
        on_unknown=options.on_unknown,
        on_overflow=options.on_overflow,
        on_bad_target=options.on_bad_target,
        bos=options.bos,
        eos=not options.no_eos,
        rows_per_shard=options.rows_per_shard,
    )


def _vocabulary(name: str | None) -> Vocabulary | None:
    if name is None:
        return None
    for preset in PRESETS:
        if name == preset:
            return Vocabulary.preset(preset)
    return Vocabulary.load(name)


def _table(cache: TokenCache) -> str:
    counts = cache.counts
    size = sum(path.stat().st_size for path in cache.folder.iterdir())
    lines = {
        "rows read": counts["read"],
        "kept": counts["kept"],
        **{f"dropped: {text}": counts[reason] for reason, text in _REASONS.items()},
        "tokens in the vocabulary": len(cache.vocabulary),
        "positions a row": cache.max_length,
        "shards": len(cache.shards),
        "bytes": size,
    }
    width = max(len(name) for name in lines)
    return "\n".join(f"{name:<{width}}  {value:>15,}" for name, value in lines.items())


HANDLERS = {"encode": _encode}
