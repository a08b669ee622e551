"""`one_hot` against PyTorch's, bit for bit: there is nothing to round."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stib_fast import functional as F
from stib_fast.ops.one_hot import DTYPES, ID_DTYPES

LAYOUTS = pytest.mark.parametrize("layout", ["BLV", "BVL"])


def reference(ids: Tensor, classes: int, layout: str, padding_idx: int | None = None) -> Tensor:
    dense = torch.nn.functional.one_hot(ids.long(), classes)
    if padding_idx is not None:
        dense[..., padding_idx] = 0
    return dense if layout == "BLV" else dense.transpose(1, 2)


def draw(batch: int, length: int, classes: int, dtype: torch.dtype = torch.int64) -> Tensor:
    ids = torch.randint(classes, (batch, length), dtype=dtype)
    if ids.numel() > 1:  # both ends occur
        ids[0, 0], ids[-1, -1] = 0, classes - 1
    return ids


# The compiled kernel writes pieces of 16 KiB: 4096 float32 are 64 positions of 64 classes.
SHAPES = [
    *[(1, 1, 1), (0, 5, 3), (3, 0, 4), (1, 1, 200)],
    *[(2, 63, 64), (2, 64, 64), (2, 65, 64), (3, 129, 64)],  # below, at, above a piece, two of them
    *[(5, 7, 13), (3, 120, 66)],  # rows that begin where no vector does
    *[(2, 3, 4095), (2, 3, 4096), (2, 3, 4097), (2, 3, 9000)],  # a position about fills a piece
    (300, 11, 9),  # above what one thread does alone
]


@LAYOUTS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, int, int], layout: str, backend: str) -> None:
    torch.set_num_threads(2)
    *size, classes = shape
    ids = draw(*size, classes)
    ours = F.one_hot(ids, classes, layout=layout)
    expected = reference(ids, classes, layout)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous()
    assert torch.equal(ours, expected.float())


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: torch.dtype, layout: str, backend: str) -> None:
    ids = draw(5, 41, 70)
    ours = F.one_hot(ids, 70, dtype=dtype, layout=layout)
    assert ours.dtype == dtype
    assert torch.equal(ours, reference(ids, 70, layout).to(dtype))


@LAYOUTS
@pytest.mark.parametrize("dtype", ID_DTYPES)
def test_dtypes_of_ids(dtype: torch.dtype, layout: str, backend: str) -> None:
    most = min(torch.iinfo(dtype).max + 1, 300)  # the ids fill the smaller types
    ids = draw(4, 30, most, dtype)
    assert torch.equal(F.one_hot(ids, 300, layout=layout), reference(ids, 300, layout).float())


@LAYOUTS
@pytest.mark.parametrize("padding_idx", [0, 3, 6])
def test_padding_is_all_zero(padding_idx: int, layout: str, backend: str) -> None:
    ids = draw(6, 20, 7)
    ours = F.one_hot(ids, 7, layout=layout, padding_idx=padding_idx)
    assert torch.equal(ours, reference(ids, 7, layout, padding_idx).float())
    assert ours.sum() == (ids != padding_idx).sum()


@LAYOUTS
def test_strides_of_ids(layout: str, backend: str) -> None:
    ids = draw(9, 31, 8)
    expected = F.one_hot(ids, 8, layout=layout)
    wide = torch.full((18, 4 * 31), -1)
    wide[::2, 3::4] = ids
    for view in (wide[::2, 3::4], ids.T.contiguous().T, ids.repeat(2, 1)[:9]):
        assert torch.equal(F.one_hot(view, 8, layout=layout), expected)
    repeated = ids[:1].expand(9, 31)
    assert torch.equal(F.one_hot(repeated, 8, layout=layout), expected[:1].expand_as(expected))


@LAYOUTS
def test_out_is_overwritten_and_returned(layout: str, backend: str) -> None:
    ids = draw(6, 20, 7)
    expected = F.one_hot(ids, 7, layout=layout)
    out = torch.full_like(expected, torch.nan)
    assert F.one_hot(ids, 7, layout=layout, out=out) is out
    assert torch.equal(out, expected)
    part = torch.full((8, *expected.shape[1:]), torch.nan)
    F.one_hot(ids, 7, layout=layout, out=part[1:-1])
    assert torch.equal(part[1:-1], expected)
    assert part[0].isnan().all()
    assert part[-1].isnan().all()


@LAYOUTS
def test_any_number_of_threads(layout: str, backend: str) -> None:
    ids = draw(700, 33, 40)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(F.one_hot(ids, 40, layout=layout), reference(ids, 40, layout).float())


@pytest.mark.parametrize("bad", [-1, 7, 255, 2**40, -(2**62)])
@pytest.mark.parametrize("threads", [1, 2])
def test_ids_out_of_range_are_named(bad: int, threads: int, backend: str) -> None:
    torch.set_num_threads(threads)
    ids = draw(900, 30, 7)
    ids[400, 11] = ids[400, 12] = ids[899, 0] = bad
    with pytest.raises(ValueError, match=rf"ids\[400, 11\] is {bad}, outside \[0, 7\)"):
        F.one_hot(ids, 7)
    with pytest.raises(ValueError, match=r"ids\[0, 0\] is 9"):
        F.one_hot(torch.tensor([[9]], dtype=torch.uint8), 7, padding_idx=0)


def bad_arguments() -> list:
    ids, out = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, 4)
    return [
        ("ids must be a torch tensor; got list", ([[0]], 4), {}),
        (r"ids must have shape \[B, L\]; got \(3,\)", (ids[0], 4), {}),
        ("ids must be a dense tensor", (ids.to_sparse(), 4), {}),
        ("ids must be uint8.*got torch.float32", (ids.float(), 4), {}),
        ("ids must be uint8.*got torch.bool", (ids.bool(), 4), {}),
        ("num_classes must be positive; got 0", (ids, 0), {}),
        (r"padding_idx must lie in \[0, 4\); got 4", (ids, 4), {"padding_idx": 4}),
        (r"padding_idx must lie in \[0, 4\); got -1", (ids, 4), {"padding_idx": -1}),
        ("dtype must be one of float32.*got torch.complex64", (ids, 4, torch.complex64), {}),
        ("layout must be 'BLV' or 'BVL'; got 'LBV'", (ids, 4), {"layout": "LBV"}),
        ("out must be a torch tensor", (ids, 4), {"out": [0]}),
        (r"out must have shape \(2, 4, 3\)", (ids, 4), {"out": out, "layout": "BVL"}),
        ("out is torch.float32 but dtype is torch.uint8", (ids, 4, torch.uint8), {"out": out}),
        ("out is on meta but ids is on cpu", (ids, 4), {"out": out.to("meta")}),
        ("out must be contiguous", (ids, 4), {"out": torch.zeros(2, 3, 8)[..., ::2]}),
        ("out has no gradient", (ids, 4), {"out": out.clone().requires_grad_()}),
    ]


@pytest.mark.parametrize(("message", "arguments", "options"), bad_arguments())
def test_bad_arguments(message: str, arguments: tuple, options: dict, backend: str) -> None:
    with pytest.raises(ValueError, match=message):
        F.one_hot(*arguments, **options)


@pytest.mark.usefixtures("library")
class TestOp:
    op = torch.ops.stib_fast.one_hot.default

    @pytest.mark.parametrize("classes_first", [False, True])
    @pytest.mark.parametrize("padding_idx", [None, 2])
    def test_opcheck(self, classes_first: bool, padding_idx: int | None) -> None:
        out = torch.empty((4, 6, 5) if classes_first else (4, 5, 6))
        torch.library.opcheck(self.op, (out, draw(4, 5, 6), classes_first, padding_idx))

    def test_arguments_out_of_bounds_are_refused(self) -> None:
        ids, out = draw(4, 5, 6), torch.empty(4, 5, 6)
        for arguments in (
            (out[1:], ids, False),
            (out, ids, True),
            (out[0], ids, False),
            (out.transpose(1, 2), ids, True),
            (out.to(torch.complex64), ids, False),
            (out, ids[0], False),
            (out, ids.float(), False),
            (out[..., :0], ids, False),
        ):
            with pytest.raises(RuntimeError, match="one_hot: "):
                self.op(*arguments, None)
        ids[3, 2] = 6
        with pytest.raises(RuntimeError, match=r"one_hot: ids\[3, 2\] lies outside \[0, 6\)"):
            self.op(out, ids, False, None)


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
class TestCompile:
    @LAYOUTS
    def test_aot_eager(self, layout: str, backend: str) -> None:
        self.compare(layout, torch.compile(F.one_hot, fullgraph=True, backend="aot_eager"))

    def test_inductor(self) -> None:
        self.compare("BLV", torch.compile(F.one_hot, fullgraph=True))

    @staticmethod
    def compare(layout: str, compiled) -> None:
        for batch in (4, 7):
            ids = draw(batch, 9, 6)
            options = {"layout": layout, "padding_idx": 1, "dtype": torch.bfloat16}
            expected = F.one_hot(ids, 6, **options)
            assert torch.equal(compiled(ids, 6, **options), expected)
            out = torch.full_like(expected, torch.nan)
            compiled(ids, 6, **options, out=out)
            assert torch.equal(out, expected)
