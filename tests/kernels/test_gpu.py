"""The ops on a GPU: under torch.compile, on streams, bytes to ids.

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
