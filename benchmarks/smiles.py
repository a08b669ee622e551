"""SMILES strings to token ids and back, against what a user would write or install.

Shapes are tasks: encode, decode and, on a CPU, an epoch of training. Rates are bytes of SMILES a
second, the strings' own bytes, whatever form they come in. Every provider writes its ids in full,
[N, L] padded, and prints their CRC-32: those of one level must agree with plain Python's, or there
is no report. The slow baselines see the first rows only, and ours sees the same rows, and all of
them; a row of the table says how many. --providers chooses among those of encode.

Baselines: a loop over characters that writes a NumPy one-hot, as published molecular autoencoders
do; the usual regular expression and a dictionary; Hugging Face `tokenizers` with that expression as
pre-tokeniser; a NumPy look-up table of characters. The limit is the traffic of one pass, strings
read and ids written, at the bandwidth of a copy measured in the run.

The epoch is that of a property predictor (the encoder of our SMILES model and a linear layer, qed
of ZINC or the string's length) that tokenises its batches as it goes.

On a GPU bytes become ids there; its strings come from --strings, without which it is skipped.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import harness, molecules, report
from benchmarks.harness import Row
from stib_fast.chem import SmilesTokenizer, Vocabulary, tokenize
from stib_fast.models import SmilesEncoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = ("encode", "decode", "epoch")
QUICK_ROWS = 4000
SLOW_ROWS = 20_000
# The expression in use everywhere since Schwaller et al. 2018 (Chem. Sci. 9:6091), in short.
EXPRESSION = (
    r"\[[^\]]+\]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>|\*|\$|%\d\d|\d"
)


# ---- data ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """The strings in every form, and what is known of them."""

    source: str
    strings: list[str]
    targets: Tensor
    vocabulary: Vocabulary
    characters: Vocabulary
    longest: int

    @property
    def bytes(self) -> int:
        """Of all strings."""
        return sum(map(len, self.strings))

    def first(self, count: int) -> Data:
        """Keep the first rows; the vocabularies stay."""
        return replace(self, strings=self.strings[:count], targets=self.targets[:count])

    def tokenizer(self, level: str = "atom") -> SmilesTokenizer:
        """Ids of at least 120 positions, without marks, as one-hot tables have them."""
        vocabulary = self.vocabulary if level == "atom" else self.characters
        return SmilesTokenizer(vocabulary, max(120, self.longest), eos=False)


@cache
def load_data(path: Path | None, quick: bool) -> Data:
    """The strings, with the vocabularies made of them."""
    found = molecules.load(path, QUICK_ROWS if quick else None)
    strings = found.strings
    print(f"{found.source}: {len(strings):,} strings, {sum(map(len, strings)) / 1e6:.1f} MB")
    return Data(
        found.source,
        strings,
        torch.tensor(found.targets),
        Vocabulary.from_smiles(strings),
        Vocabulary.from_smiles(strings, level="char"),
        max(map(len, strings)),
    )


# ---- providers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Provider:
    """Something that turns its strings into ids, and what it is measured on."""

    name: str
    level: str
    data: Data
    call: Callable[[], Any]
    ours: bool


def character_loop(data: Data) -> Tensor:
    """Write a float32 one-hot [N, L, V] with a loop over characters; give its ids for the check."""
    place = {token: i for i, token in enumerate(data.characters.tokens)}
    length = data.tokenizer("char").max_length
    one_hot = np.zeros((len(data.strings), length, len(place)), dtype=np.float32)
    for i, text in enumerate(data.strings):
        for j, character in enumerate(text):
            one_hot[i, j, place[character]] = 1
    return torch.from_numpy(one_hot)


def regular_expression(data: Data) -> Tensor:
    """Find the tokens with the usual expression and look them up in a dictionary."""
    tokens = re.compile(EXPRESSION)
    place = data.vocabulary.token_ids
    ids = np.zeros((len(data.strings), data.tokenizer().max_length), dtype=np.uint8)
    for i, text in enumerate(data.strings):
        found = [place[token] for token in tokens.findall(text)]
        ids[i, : len(found)] = found
    return torch.from_numpy(ids)


def character_table(data: Data) -> Tensor:
    """Look all characters up at once in a NumPy table."""
    table = np.zeros(256, dtype=np.uint8)
    for token, i in data.characters.token_ids.items():
        if len(token) == 1:
            table[ord(token)] = i
    strings = np.array(data.strings, dtype="S")
    found = table[strings.view(np.uint8).reshape(len(strings), -1)]
    ids = np.zeros((len(strings), data.tokenizer("char").max_length), dtype=np.uint8)
    ids[:, : found.shape[1]] = found
    return torch.from_numpy(ids)


def hugging_face(data: Data) -> Callable[[], Tensor]:
    """Make `tokenizers` with the usual expression as pre-tokeniser and a word-level model."""
    import tokenizers

    model = tokenizers.models.WordLevel(data.vocabulary.token_ids, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(EXPRESSION), behavior="isolated"
    )
    tokenizer.enable_padding(length=data.tokenizer().max_length, pad_id=0, pad_token="<pad>")

    def call() -> Tensor:
        # Its threads are those of Rayon; one thread is had by turning them off.
        parallel = "false" if torch.get_num_threads() == 1 else "true"
        os.environ["TOKENIZERS_PARALLELISM"] = parallel
        encoded = tokenizer.encode_batch_fast(data.strings, add_special_tokens=False)
        return torch.tensor([row.ids for row in encoded], dtype=torch.uint8)

    return call


def providers(data: Data, folder: Path, few: Data) -> list[Provider]:
    """Everything that is timed. The forms of the strings are made before."""
    import pyarrow.parquet  # a GPU's benchmark does without

    atom, char = data.tokenizer(), data.tokenizer("char")
    arrow = pyarrow.array(data.strings)
    wide = np.array(data.strings)
    text = "\n".join(data.strings).encode()
    smi, csv, parquet = folder / "data.smi", folder / "data.csv", folder / "data.parquet"
    smi.write_bytes(text)
    csv.write_bytes(b"smiles\n" + text)
    pyarrow.parquet.write_table(pyarrow.table({"smiles": arrow}), parquet)
    joined = torch.frombuffer(bytearray("".join(data.strings).encode()), dtype=torch.uint8)
    offsets = torch.tensor([0, *map(len, data.strings)]).cumsum(0)

    def ours(name: str, call: Callable[[], Any], of: Data = data, level: str = "atom") -> Provider:
        return Provider(f"ours, {name}", level, of, call, ours=True)

    def theirs(name: str, call: Callable[[], Any], level: str = "atom") -> Provider:
        return Provider(name, level, few, call, ours=False)

    return [
        theirs("loop over characters, one-hot", lambda: character_loop(few), "char"),
        theirs("NumPy table of characters", lambda: character_table(few), "char"),
        ours("list", lambda: char.encode(few.strings).ids, few, "char"),
        theirs("regular expression, dictionary", lambda: regular_expression(few)),
        theirs("Hugging Face tokenizers", hugging_face(few)),
        ours("list", lambda: atom.encode(few.strings).ids, few),
        ours("list", lambda: atom.encode(data.strings).ids),
        ours("NumPy U", lambda: atom.encode(wide).ids),
        ours("Arrow", lambda: atom.encode(arrow).ids),
        ours("bytes and offsets", lambda: atom.encode_bytes(joined, offsets).ids),
        ours(".smi file", lambda: atom.encode(smi).ids),
        ours(".csv file", lambda: atom.encode(csv).ids),
        ours(".parquet file", lambda: atom.encode(parquet).ids),
    ]


def reference_ids(data: Data, level: str) -> Tensor:
    """Tokenise in plain Python."""
    tokenizer = data.tokenizer(level)
    place = tokenizer.vocabulary.token_ids
    ids = np.zeros((len(data.strings), tokenizer.max_length), dtype=np.uint8)
    for i, text in enumerate(data.strings):
        found = [place[token] for token in tokenize(text, tokenizer.vocabulary.level)]
        ids[i, : len(found)] = found
    return torch.from_numpy(ids)


def checksum(ids: Tensor) -> int:
    """CRC-32 of ids as bytes; a one-hot is turned into its ids first."""
    if ids.ndim == 3:
        ids = ids.argmax(2).to(torch.uint8)
    return zlib.crc32(ids.numpy().tobytes())


# ---- measurements --------------------------------------------------------------------------------


def measure(task: str, names: Sequence[str], setting: harness.Setting) -> Iterator[Row]:
    """Time a task."""
    if setting.device.type == "cuda":
        if setting.strings is None:
            print("SKIPPED: bytes to ids on a GPU needs --strings PATH")
            return
        data = load_data(setting.strings, setting.quick)
        yield from measure_on_gpu(data, setting)
        return
    data = load_data(setting.strings, setting.quick)
    few = data.first(500 if setting.quick else SLOW_ROWS)
    if task == "encode":
        with tempfile.TemporaryDirectory() as folder:
            todo = [p for p in providers(data, Path(folder), few) if p.name in names]
            yield from measure_encode(todo, setting)
    elif task == "decode":
        yield from measure_decode(data, few, setting)
    else:
        yield from measure_epochs(few, batch=256)


def measure_encode(todo: Sequence[Provider], setting: harness.Setting) -> Iterator[Row]:
    """Time every provider, after its ids were compared."""
    references: dict[tuple[str, int], int] = {}
    sums = {}
    for number, provider in enumerate(todo):
        key = (provider.level, len(provider.data.strings))
        if key not in references:
            references[key] = checksum(reference_ids(provider.data, provider.level))
        sums[number] = checksum(provider.call())
        if sums[number] != references[key]:
            raise harness.Disagreement(f"{provider.name}: ids unlike those of plain Python")
    # A call of the slowest takes many seconds: it is repeated less.
    timings: dict[int, harness.Timing] = {}
    for slow in (True, False):
        chosen = {str(i): p.call for i, p in enumerate(todo) if p.name.startswith("loop") == slow}
        found = harness.interleaved(
            chosen, [()], 2 if slow else repetitions(setting), setting.device
        )
        timings |= {int(name): timing for name, timing in found.items()}
    for number, provider in enumerate(todo):
        yield row_of(provider, timings[number], sums[number], setting.machine)


def measure_on_gpu(data: Data, setting: harness.Setting) -> Iterator[Row]:
    """Bytes with offsets to ids on the device; the check for errors, which waits for it, is in."""
    tokenizer = data.tokenizer()
    joined = torch.frombuffer(bytearray("".join(data.strings).encode()), dtype=torch.uint8)
    inputs = joined.cuda(), torch.tensor([0, *map(len, data.strings)]).cumsum(0).cuda()
    found = checksum(tokenizer.encode_bytes(*inputs).ids.cpu())
    if found != checksum(tokenizer.encode(data.strings).ids):
        raise harness.Disagreement("encode_bytes on the GPU is unlike encode")

    def call() -> object:
        return tokenizer.encode_bytes(*inputs)

    name = "ours, bytes and offsets"
    timing = harness.interleaved({name: call}, [()], repetitions(setting), setting.device)[name]
    yield row_of(Provider(name, "atom", data, call, ours=True), timing, found, setting.machine)


def repetitions(setting: harness.Setting) -> int:
    return 3 if setting.quick else 9


def row_of(provider: Provider, timing: harness.Timing, crc: int, machine: harness.Machine) -> Row:
    size = provider.data.bytes
    rows = len(provider.data.strings)
    # The strings are read and the ids written once, and a cache line that is written is read first.
    traffic = size + 2 * rows * provider.data.tokenizer(provider.level).max_length
    return {
        "level": provider.level,
        "provider": provider.name,
        "ours": provider.ours,
        "rows": rows,
        **timing.columns(),
        "mb_per_s": size / timing.median / 1e6,
        "of_copy": traffic / machine.bandwidth / timing.median,
        "crc32": f"{crc:08x}",
    }


def measure_decode(data: Data, few: Data, setting: harness.Setting) -> Iterator[Row]:
    """Time decode and the loop that a user writes."""
    tokenizer = data.tokenizer()
    tokens = tokenizer.vocabulary.tokens

    def join(ids: Tensor) -> list[str]:
        return ["".join(tokens[i] for i in row if i) for row in ids.tolist()]

    for name, chosen, decode in (
        ("list comprehension, join", few, join),
        ("ours", few, tokenizer.decode),
        ("ours", data, tokenizer.decode),
    ):
        ids = tokenizer.encode(chosen.strings).ids
        if decode(ids) != chosen.strings:
            raise harness.Disagreement(f"{name}: decode(encode(strings)) are other strings")
        found = harness.interleaved({name: decode}, [(ids,)], repetitions(setting), setting.device)
        provider = Provider(name, "atom", chosen, lambda: None, ours=name == "ours")
        crc = zlib.crc32("\n".join(chosen.strings).encode())
        yield row_of(provider, found[name], crc, setting.machine)


# ---- an epoch ------------------------------------------------------------------------------------


class DenseEncoder(SmilesEncoder):
    """The encoder as it is written without our ops: a float one-hot, then a convolution."""

    def forward(self, ids: Tensor) -> Tensor:
        """Return the means."""
        first = self.convolutions[0]
        one_hot = F.one_hot(ids.long(), self.vocabulary_size).float().transpose(1, 2)
        weight, bias = first.parameters()
        features = F.conv1d(one_hot, weight, bias, padding="same")
        return self.head(self.convolutions[1:](features).flatten(1))


def epoch(
    data: Data,
    encoder_type: type[SmilesEncoder],
    encode: Callable[[list[str]], Tensor],
    batch: int,
) -> dict[str, float]:
    """Seconds of an epoch that tokenises each batch, and those of the tokenising alone."""
    torch.manual_seed(0)
    encoder = encoder_type(len(data.vocabulary), data.tokenizer().max_length, 64)
    model = nn.Sequential(encoder, nn.SiLU(), nn.Linear(64, 1))
    optimiser = torch.optim.Adam(model.parameters())
    tokenising = 0.0
    losses = []
    start = time.perf_counter()
    for begin in range(0, len(data.strings), batch):
        before = time.perf_counter()
        ids = encode(data.strings[begin : begin + batch])
        tokenising += time.perf_counter() - before
        loss = F.mse_loss(model(ids).squeeze(1), data.targets[begin : begin + batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokenising": tokenising, "loss": float(torch.stack(losses).mean())}


def measure_epochs(data: Data, batch: int) -> Iterator[Row]:
    """An epoch with ours and one with what a user would write; both must learn the same."""
    tokenizer = data.tokenizer()

    def by_expression(strings: list[str]) -> Tensor:
        return regular_expression(replace(data, strings=strings))

    def by_ours(strings: list[str]) -> Tensor:
        return tokenizer.encode(strings).ids

    results = {}
    for name, encoder, encode in (
        ("regular expression, one_hot, conv1d", DenseEncoder, by_expression),
        ("ours, one_hot, conv1d", DenseEncoder, by_ours),
        ("ours, one_hot_conv1d", SmilesEncoder, by_ours),
    ):
        epoch(data.first(4 * batch), encoder, encode, batch)
        results[name] = epoch(data, encoder, encode, batch)
    losses = [result["loss"] for result in results.values()]
    harness.require_agreement("an epoch", (max(losses) - min(losses)) / max(losses), 1e-3)
    slowest = max(result["seconds"] for result in results.values())
    for name, result in results.items():
        yield {
            "provider": name,
            "rows": len(data.strings),
            "seconds": result["seconds"],
            "tokenising": result["tokenising"],
            "share": result["tokenising"] / result["seconds"],
            "gain": slowest / result["seconds"],
            "loss": result["loss"],
        }


# ---- report --------------------------------------------------------------------------------------


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    """Draw the rates, one line of marks a provider, on a logarithmic scale."""
    rows = [row for row in rows if "mb_per_s" in row]
    names = list(dict.fromkeys(label(row) for row in rows))
    figure.set_size_inches(9, 0.32 * len(names) + 1.5)
    axes = figure.subplots()
    for threads, mark in zip(
        dict.fromkeys(row["threads"] for row in rows), "od^vsP*X", strict=False
    ):
        chosen = [row for row in rows if row["threads"] == threads]
        axes.plot(
            [row["mb_per_s"] for row in chosen],
            [names.index(label(row)) for row in chosen],
            mark,
            label=report.where(threads),
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("MB of SMILES a second")
    axes.grid(which="both", alpha=0.3)
    axes.legend()


def label(row: Row) -> str:
    return f"{row['shape']}, {row['level']}: {row['provider']} ({row['rows']:,} rows)"


def parse(text: str) -> str:
    """Check the name of a task.

    Raises
    ------
    ValueError
        Where there is none of that name.
    """
    if text not in TASKS:
        raise ValueError(f"a shape is a task, {', '.join(TASKS)}; got {text!r}")
    return text


PROVIDERS = (
    "loop over characters, one-hot",
    "NumPy table of characters",
    "regular expression, dictionary",
    "Hugging Face tokenizers",
    "ours, list",
    "ours, NumPy U",
    "ours, Arrow",
    "ours, bytes and offsets",
    "ours, .smi file",
    "ours, .csv file",
    "ours, .parquet file",
)
BENCHMARK = harness.Benchmark(
    on={
        "cpu": harness.On(
            backend="cpp",
            tests=("tests/ops/test_smiles.py",),
            providers=PROVIDERS,
            shapes={"all": TASKS},
            quick=TASKS,
        ),
        "cuda": harness.On(
            backend="auto",
            tests=("tests/kernels/test_gpu.py",),
            providers=("ours, bytes and offsets",),
            shapes={"all": ("encode",)},
            quick=("encode",),
            kernels=("smiles_encode",),
        ),
    },
    parse=parse,
    measure=measure,
    table={
        "level": str,
        "provider": str,
        "rows": "{:,}".format,
        "ms": "{:.3g}".format,
        "mb_per_s": "{:.3g}".format,
        "of_copy": "{:.1%}".format,
        "crc32": str,
        "seconds": "{:.2f}".format,
        "tokenising": "{:.3f}".format,
        "share": "{:.1%}".format,
        "gain": "{:.2f}x".format,
        "loss": "{:.6f}".format,
    },
    draw=draw,
    conclude=lambda rows: (),
)
