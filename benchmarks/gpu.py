"""The GPU's ops against what a user would write, and against what the GPU can do.

    python -m benchmarks.gpu [--quick] [--out DIR]

`one_hot` beside `fill_` of the same buffer, bytes to ids, and `one_hot_conv1d`, forward and
backward, beside one_hot + conv1d and the gather of an embedding; cuDNN in float32 without TF32, as
ours, and with it. CUDA events around many calls, providers in turns, buffers that exceed the
second-level cache. Results are compared before anything is timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

import torch
import torch.nn.functional as nnf
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import harness
from benchmarks.smiles import made_up_strings
from stib_fast import functional as F
from stib_fast.backends import backend_for, cuda_unusable
from stib_fast.chem import SmilesTokenizer, Vocabulary

Row = harness.Row
LENGTH = 120


def milliseconds(calls: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """Median time of a call of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):
            call()
    for _ in range(repetitions):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(5):
                call()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) / 5)
    return {name: statistics.median(values) for name, values in times.items()}


def one_hot_rows(
    ids: Tensor, classes: int, dtype: torch.dtype, layout: F.OneHotLayout, repetitions: int
) -> Iterator[Row]:
    """Ours and `fill_`, which writes the same bytes and reads none."""
    shape = (LENGTH, classes) if layout == "BLV" else (classes, LENGTH)
    out = torch.empty((len(ids), *shape), dtype=dtype, device="cuda")
    expected = nnf.one_hot(ids.long(), classes).to(dtype)
    if layout == "BVL":
        expected = expected.transpose(1, 2)
    if not torch.equal(F.one_hot(ids, classes, dtype, layout, out=out), expected):
        raise harness.Disagreement(f"one_hot {dtype} {layout} is wrong")
    del expected
    calls = {
        "fill_": lambda: out.fill_(1),
        "ours": lambda: F.one_hot(ids, classes, dtype, layout, out=out),
    }
    for name, ms in milliseconds(calls, repetitions).items():
        rate = out.numel() * out.element_size() / ms / 1e6
        yield row("one_hot", f"{dtype} {layout}".removeprefix("torch."), name, ms, rate)


def bytes_rows(strings: list[str], tokenizer: SmilesTokenizer, repetitions: int) -> Iterator[Row]:
    """Bytes of input a second, errors checked (which waits for the device)."""
    data = torch.frombuffer(bytearray("".join(strings).encode()), dtype=torch.uint8).cuda()
    offsets = torch.tensor([0, *map(len, strings)]).cumsum(0).cuda()
    if not torch.equal(
        tokenizer.encode_bytes(data, offsets).ids.cpu(), tokenizer.encode(strings).ids
    ):
        raise harness.Disagreement("encode_bytes on the GPU is unlike encode")
    calls = {"ours": lambda: tokenizer.encode_bytes(data, offsets)}
    for name, ms in milliseconds(calls, repetitions).items():
        yield row("bytes to ids", f"{len(strings):,} strings", name, ms, len(data) / ms / 1e6)


def conv1d_rows(ids: Tensor, classes: int, filters: int, repetitions: int) -> Iterator[Row]:
    """Forward and backward of the first layer of a SMILES encoder."""
    taps = 9
    weight = torch.randn(filters, classes, taps, device="cuda", requires_grad=True)
    grad = torch.randn(len(ids), filters, LENGTH, device="cuda")
    table = weight.detach().permute(2, 1, 0).reshape(taps * classes, filters).contiguous()
    table.requires_grad_()

    def dense() -> Tensor:
        one_hot = nnf.one_hot(ids.long(), classes).float().transpose(1, 2)
        return torch.autograd.grad(nnf.conv1d(one_hot, weight, padding=4), weight, grad)[0]

    def with_tf32() -> Tensor:
        torch.backends.cudnn.allow_tf32 = True
        try:
            return dense()
        finally:
            torch.backends.cudnn.allow_tf32 = False

    def gather() -> Tensor:
        windows = nnf.pad(ids.long(), (4, 4), value=0).unfold(1, taps, 1)
        rows = windows + classes * torch.arange(taps, device="cuda")
        out = nnf.embedding(rows, table).sum(2).transpose(1, 2)
        return torch.autograd.grad(out, table, grad)[0]

    def ours() -> Tensor:
        out = F.one_hot_conv1d(ids, weight, padding=4)
        return torch.autograd.grad(out, weight, grad)[0]

    error = harness.relative_error([ours()], [dense().double()])
    harness.require_agreement("one_hot_conv1d", error, 1e-4)
    calls = {"ours": ours, "one_hot + conv1d": dense, "one_hot + conv1d, TF32": with_tf32}
    calls["gather"] = gather
    for name, ms in milliseconds(calls, repetitions).items():
        yield row("one_hot_conv1d", f"B={len(ids)}, F={filters}", name, ms, None)


def row(op: str, case: str, provider: str, ms: float, rate: float | None) -> Row:
    return {"op": op, "case": case, "provider": provider, "ms": ms, "gb_per_s": rate}


def figure_of(rows: list[Row]) -> Figure:
    """Draw the times."""
    names = [f"{r['op']} {r['case']}: {r['provider']}" for r in rows]
    figure = Figure(figsize=(9, 0.25 * len(rows) + 1.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.barh(names, [r["ms"] for r in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("ms")
    return figure


def main() -> None:
    parser = harness.arguments("Time the GPU's ops.")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU is usable here")
    for backend, reason in (("triton", None), ("cuda", cuda_unusable)):
        used = backend_for(torch.device("cuda"), ("triton",)) if backend == "triton" else backend
        if used != backend or reason is not None:
            raise SystemExit(f"{backend} is not usable: {reason}")
    torch.backends.cudnn.allow_tf32 = False
    repetitions = 3 if options.quick else 20
    strings = [s for s, _ in zip(made_up_strings(), range(20_000), strict=False)]
    strings *= 1 if options.quick else 50
    tokenizer = SmilesTokenizer(Vocabulary.preset("zinc250k"), LENGTH)
    ids = tokenizer.encode(strings[: 8192 if options.quick else 65_536]).ids.cuda()
    classes = len(tokenizer.vocabulary)
    rows: list[Row] = []
    for dtype in (torch.float32, torch.bfloat16, torch.uint8):
        for layout in get_args(F.OneHotLayout):
            rows += one_hot_rows(ids, classes, dtype, layout, repetitions)
    rows += bytes_rows(strings, tokenizer, repetitions)
    for filters in (9, 128):
        rows += conv1d_rows(ids[:8192], classes, filters, repetitions)
    table = {"op": str, "case": str, "provider": str, "ms": "{:.3f}".format}
    print(harness.markdown(rows, table | {"gb_per_s": "{:.0f}".format}))
    record = harness.environment() | {"gpu": torch.cuda.get_device_name()}
    harness.write(options.out / "gpu", "gpu", rows, record, figure_of(rows))


if __name__ == "__main__":
    main()
