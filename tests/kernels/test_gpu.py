"""The ops on a GPU: under torch.compile, on streams, in CUDA graphs, bytes to ids.

`on_device/` has the Triton kernels themselves.
"""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from stib_fast import functional as F
from stib_fast.backends import cuda_unusable
from stib_fast.chem import SmilesTokenizer, Vocabulary
from stib_fast.ops import gaussian_mi as mi_ops
from stib_fast.ops.moments import moments_eager

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is usable here")


def function(ids: Tensor, weight: Tensor) -> Tensor:
    dense = F.one_hot(ids, 7, padding_idx=0).sum()
    return F.one_hot_conv1d(ids, weight, None, 2, 1).square().sum() + dense


def test_compiled_is_as_eager() -> None:
    compiled = torch.compile(function, fullgraph=True)
    for batch in (3, 8):
        ids = torch.randint(7, (batch, 37), dtype=torch.uint8, device="cuda")
        weight = torch.randn(4, 7, 3, device="cuda", requires_grad=True)
        one, other = compiled(ids, weight), function(ids, weight)
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(*(torch.autograd.grad(x, weight) for x in (one, other)))


def test_runs_on_the_stream_in_force() -> None:
    ids = torch.randint(7, (64, 120), dtype=torch.uint8, device="cuda")
    expected = F.one_hot(ids, 7)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        out = F.one_hot(ids, 7)
        total = out.sum()
    stream.synchronize()
    assert total == expected.sum()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("level", ["atom", "char"])
@pytest.mark.parametrize("bos", [False, True])
def test_bytes_become_the_ids_of_the_cpu(level: Literal["atom", "char"], bos: bool) -> None:
    assert cuda_unusable is None, cuda_unusable
    smiles = ["C[C@@H](Cl)Br", "c1ccccc1%12", "U", "C[", "", "C" * 40, "[13C@@H2+]->O", "BCl<-N"]
    vocabulary = Vocabulary.from_smiles([s for s in smiles if s not in ("U", "C[", "")], level)
    tokenizer = SmilesTokenizer(vocabulary, 30, on_unknown="drop", on_overflow="drop", bos=bos)
    strings = smiles * 100
    data = torch.frombuffer(bytearray("".join(strings).encode()), dtype=torch.uint8)
    offsets = torch.tensor([0, *map(len, strings)]).cumsum(0)
    found = tokenizer.encode_bytes(data.cuda(), offsets.cuda())
    for gpu, cpu in zip(found, tokenizer.encode(strings), strict=True):
        assert gpu.is_cuda
        assert torch.equal(gpu.cpu(), cpu)


def test_bytes_that_are_refused_are_named() -> None:
    tokenizer = SmilesTokenizer(Vocabulary.from_smiles(["CO"]), 5)
    data = torch.frombuffer(bytearray(b"CON"), dtype=torch.uint8).cuda()
    with pytest.raises(ValueError, match="row 1: token 'N' at column 1"):
        tokenizer.encode_bytes(data, torch.tensor([0, 2, 3]).cuda())
    for offsets in ([0, 2, 4], [0, 3, 2], [-1, 2, 3]):
        with pytest.raises(ValueError, match="offsets must ascend"):
            tokenizer.encode_bytes(data, torch.tensor(offsets).cuda())


# One warp's work and less, 48 KB of shared memory and more, all that the kernel takes.
finalize_sizes = pytest.mark.parametrize(("n", "m"), [(2, 2), (9, 9), (40, 30), (64, 64)])


def moments_on_gpu(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    z = torch.randn(500, n, device="cuda", dtype=torch.float64)
    return moments_eager([z, z[:, :1] + torch.randn(500, m, device="cuda")], None, False)


def finalize(moments: tuple[Tensor, ...], n: int) -> tuple[Tensor, Tensor]:
    assert cuda_unusable is None, cuda_unusable
    return torch.ops.stib_fast.gaussian_mi_finalize(*moments, n, 1e-9, 2.0**-24)


@finalize_sizes
def test_finalize_has_the_same_bits_in_every_run(n: int, m: int) -> None:
    moments = moments_on_gpu(n, m)
    expected = finalize(moments, n)
    for _ in range(50):
        assert all(map(torch.equal, finalize(moments, n), expected))


@finalize_sizes
def test_finalize_is_captured_in_a_cuda_graph(n: int, m: int) -> None:
    moments, others = moments_on_gpu(n, m), moments_on_gpu(n, m)
    finalize(moments, n)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = finalize(moments, n)
    for given, other in zip(moments, others, strict=True):
        given.copy_(other)
    graph.replay()
    assert all(map(torch.equal, found, finalize(others, n)))


@finalize_sizes
def test_finalize_never_waits_for_the_device(n: int, m: int) -> None:
    moments = moments_on_gpu(n, m)
    torch.cuda.set_sync_debug_mode("error")
    try:
        finalize(moments, n)
        mi_ops.finalize_state_eager(*moments, n, 1e-9, 2.0**-24)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_finalize_refuses_more_columns_than_a_block_holds() -> None:
    with pytest.raises(RuntimeError, match="at most 128"):
        finalize(moments_on_gpu(65, 64), 65)


# ---- gaussian_mi as a whole --------------------------------------------------------------------


def parts_on_gpu(rows: int, n: int, m: int) -> tuple[Tensor, Tensor]:
    z = torch.randn(rows, n, device="cuda")
    y = torch.randn(rows, m, device="cuda") + z[:, :1]
    return z.requires_grad_(), y.requires_grad_()


def mi_and_gradients(z: Tensor, y: Tensor, weight: Tensor | None = None) -> tuple[Tensor, ...]:
    value = -2 * F.gaussian_mi(z, y, weight=weight)
    return value.detach(), *torch.autograd.grad(value, (z, y))


# One program alone; programs that are merged; tiles of the scatter.
mi_shapes = pytest.mark.parametrize(("rows", "n", "m"), [(60, 2, 2), (4096, 9, 9), (500, 64, 64)])


@mi_shapes
@pytest.mark.parametrize("weighted", [False, True])
def test_compiled_mi_is_as_eager(rows: int, n: int, m: int, weighted: bool) -> None:
    """Of the output of a network: torch 2.11 has got such backwards wrong (pytorch #180642)."""

    def loss(z: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        features = torch.tanh(z) + z
        return -2 * F.gaussian_mi(features, y, weight=weight) + F.moments(features).scatter.sum()

    compiled = torch.compile(loss, fullgraph=True)
    for size in (rows, rows + 7):
        z, y = parts_on_gpu(size, n, m)
        weight = torch.rand(size, device="cuda") + 0.5 if weighted else None
        values = [function(z, y, weight) for function in (compiled, loss)]
        torch.testing.assert_close(*values)
        for one, other in zip(*(torch.autograd.grad(v, (z, y)) for v in values), strict=True):
            torch.testing.assert_close(one, other)


@mi_shapes
def test_mi_is_captured_in_a_cuda_graph(rows: int, n: int, m: int) -> None:
    assert cuda_unusable is None, cuda_unusable
    (z, y), others = parts_on_gpu(rows, n, m), parts_on_gpu(rows, n, m)
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        mi_and_gradients(z, y)
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = mi_and_gradients(z, y)
    with torch.no_grad():
        z.copy_(others[0])
        y.copy_(others[1])
    graph.replay()
    assert all(map(torch.equal, found, mi_and_gradients(*others)))


@mi_shapes
def test_mi_never_waits_for_the_device(rows: int, n: int, m: int) -> None:
    z, y = parts_on_gpu(rows, n, m)
    weight = torch.rand(rows, device="cuda")
    mi_and_gradients(z, y, weight)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        mi_and_gradients(z, y, weight)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_mi_runs_on_the_stream_in_force() -> None:
    z, y = parts_on_gpu(4096, 9, 9)
    expected = mi_and_gradients(z, y)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        found = mi_and_gradients(*(x.detach().clone().requires_grad_() for x in (z, y)))
    stream.synchronize()
    assert all(map(torch.equal, found, expected))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU alone")
def test_mi_runs_on_the_device_of_its_parts() -> None:
    z, y = (x.detach().to("cuda:1").requires_grad_() for x in parts_on_gpu(300, 3, 2))
    assert torch.cuda.current_device() == 0
    found = mi_and_gradients(z, y)
    assert all(x.device == z.device for x in found)
    expected = mi_and_gradients(*(x.detach().cpu().requires_grad_() for x in (z, y)))
    for ours, other in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), other)
