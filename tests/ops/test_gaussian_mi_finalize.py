"""`gaussian_mi_finalize`: fallback in PyTorch, kernel and block of the GPU against finalize.h.

That finalize.h is right is what test_gaussian_mi.py is about. What rounding may cost depends on the
sample; it is taken to be the change when every correlation changes by a few units of rounding.
"""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stib_fast.backends import cuda_unusable
from stib_fast.ops import gaussian_mi as ops
from stib_fast.ops.moments import moments_eager

CSRC = Path(__file__).parents[2] / "csrc"
U = 2.0**-53
EPS = 1e-9
op = torch.ops.stib_fast.gaussian_mi_finalize.default
Triple = tuple[Tensor, Tensor, Tensor]
Finalize = Callable[..., tuple[Tensor, ...]]


def sample(n: int, m: int, noise: float = 1.0, rows: int | None = None) -> Tensor:
    z = torch.randn(4 * (n + m) + 10 if rows is None else rows, n).double()
    return torch.cat([z, z @ torch.randn(n, m).double() + noise * torch.randn(len(z), m)], dim=1)


def moments_of(x: Tensor) -> Triple:
    return moments_eager([x], None, False)


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest, relative to the largest expected; infinite where only one is NaN."""
    if not torch.equal(found.isnan(), expected.isnan()):
        return math.inf
    largest = expected.nan_to_num().abs().max().clamp(min=1e-300)
    return ((found - expected).nan_to_num().abs().max() / largest).item()


def allowed(triple: Triple, n: int) -> tuple[float, float]:
    """Errors of value and gradient: 8 times the change under 4 units of rounding."""
    count, mean, scatter = triple
    d = len(mean)
    mi, state = op(count, mean, scatter, n, EPS, U)
    changes = [(d * U, d * U)]
    for _ in range(3):
        noise = torch.empty_like(scatter).uniform_(-4 * U, 4 * U).tril()
        other = op(count, mean, scatter * (1 + noise + noise.tril(-1).mT), n, EPS, U)
        changes.append((difference(other[0], mi), difference(other[1][2:], state[2:])))
    return 8 * max(c[0] for c in changes), 8 * max(c[1] for c in changes)


def on_gpu(function: Finalize) -> Finalize:
    def wrapped(count: Tensor, mean: Tensor, scatter: Tensor, *others: Any) -> tuple[Tensor, ...]:
        found = function(count.cuda(), mean.cuda(), scatter.cuda(), *others)
        assert all(x.is_cuda for x in found)
        return tuple(x.cpu() for x in found)

    return wrapped


def kernel(*arguments: Any) -> tuple[Tensor, ...]:
    assert cuda_unusable is None, cuda_unusable
    return ops.finalize_state(*arguments[:-1], torch.float64)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is usable here")


@pytest.fixture(
    params=[
        pytest.param(ops.finalize_state_eager, id="fallback"),
        pytest.param(on_gpu(ops.finalize_state_eager), id="gpu-fallback", marks=needs_gpu),
        pytest.param(on_gpu(kernel), id="gpu-kernel", marks=needs_gpu),
    ]
)
def finalize(request: pytest.FixtureRequest) -> Finalize:
    return request.param


def compare(function: Finalize, triple: Triple, n: int) -> None:
    mi, state = op(*triple, n, EPS, U)
    found_mi, found = function(*triple, n, EPS, U)
    assert found_mi.shape == mi.shape
    assert found.shape == state.shape
    torch.testing.assert_close(found[:2], state[:2], rtol=4 * U, atol=0, equal_nan=True)
    value_error, gradient_error = allowed(triple, n)
    assert difference(found_mi, mi) <= value_error
    assert difference(found[2:], state[2:]) <= gradient_error


@pytest.mark.usefixtures("library")
class TestAgainstTheLibrary:
    @pytest.mark.parametrize(
        ("n", "m"),
        # One column a side; odd and even sides, either the smaller; more columns than CUDA's block.
        [(1, 1), (1, 4), (4, 1), (2, 2), (5, 3), (9, 9), (30, 17), (64, 64), (1, 127), (70, 65)],
    )
    @pytest.mark.parametrize("noise", [1.0, 1e-3])
    def test_samples(self, finalize: Finalize, n: int, m: int, noise: float) -> None:
        compare(finalize, moments_of(sample(n, m, noise)), n)

    @pytest.mark.parametrize(
        "change",
        [
            lambda x: x[:, 0].fill_(3.0),
            lambda x: x[:, 5].fill_(-1e5),
            lambda x: x.fill_(7.0),
            lambda x: x[:, 2].copy_(x[:, 1]),  # collinear in Z
            lambda x: x[:, 6].copy_(x[:, 1]),  # Y has a column of Z
            lambda x: x[:, 0].mul_(1e-150),
            lambda x: x[:, 6].mul_(1e150),
            lambda x: x.add_(1e8),
        ],
        ids=[
            "constant",
            "constant-y",
            "all-constant",
            "collinear",
            "shared",
            "tiny",
            "huge",
            "offset",
        ],
    )
    def test_degenerate_samples(
        self, finalize: Finalize, change: Callable[[Tensor], Tensor]
    ) -> None:
        x = sample(4, 3)
        change(x)
        triple = moments_of(x)
        assert op(*triple, 4, EPS, U)[0].isfinite()
        compare(finalize, triple, 4)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("column", [0, 6])
    def test_nan_and_infinity_become_nan(
        self, finalize: Finalize, value: float, column: int
    ) -> None:
        x = sample(4, 3)
        x[2, column] = value
        compare(finalize, moments_of(x), 4)
        mi, state = finalize(*moments_of(x), 4, EPS, U)
        assert mi.isnan()
        assert state[2:].isnan().all()

    @pytest.mark.parametrize("rows", [0, 1])
    def test_fewer_than_two_rows_are_nan(self, finalize: Finalize, rows: int) -> None:
        triple = moments_of(sample(4, 3, rows=rows))
        compare(finalize, triple, 4)
        assert finalize(*triple, 4, EPS, U)[0].isnan()

    def test_no_correlation_matrix_is_nan(self, finalize: Finalize) -> None:
        scatter = torch.eye(4).double()
        scatter[2, 3] = scatter[3, 2] = 1.5
        compare(finalize, (torch.tensor(9.0).double(), scatter[0], scatter), 2)


@pytest.mark.usefixtures("library")
class TestOp:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
    def test_is_the_end_of_gaussian_mi(self, dtype: torch.dtype) -> None:
        z, y = sample(5, 3)[:, :5].to(dtype), sample(5, 3)[:, 5:].to(dtype)
        z[:, 1] = 3000.1  # constant, but for the rounding of its mean
        mi, state = torch.ops.stib_fast.gaussian_mi(z, y, None, EPS, False)
        triple = torch.ops.stib_fast.moments([z, y], None, False)
        found_mi, found = ops.finalize_state(*triple, 5, EPS, dtype)
        assert torch.equal(found, state)
        assert torch.equal(found_mi.to(mi.dtype), mi)
        assert found[1, 1] == 0

    def test_runs_on_devices_without_a_kernel(self) -> None:
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        name = "stib_fast::gaussian_mi_finalize"
        assert has_kernel(name, "CPU")
        assert has_kernel(name, "CompositeExplicitAutograd")

    def test_opcheck(self) -> None:
        torch.library.opcheck(op, (*moments_of(sample(4, 3)), 4, EPS, U))

    def test_compiles(self) -> None:
        compiled = torch.compile(ops.finalize_state, fullgraph=True, backend="aot_eager")
        arguments = (*moments_of(sample(4, 3)), 4, EPS, torch.float32)
        for found, expected in zip(
            compiled(*arguments), ops.finalize_state(*arguments), strict=True
        ):
            assert torch.equal(found, expected)

    def test_arguments_out_of_bounds_are_refused(self) -> None:
        count, mean, scatter = moments_of(sample(4, 3))
        for arguments in (
            (count, mean, scatter, 0),
            (count, mean, scatter, 7),
            (count, mean[1:], scatter, 4),
            (count, mean.float(), scatter, 4),
            (count, mean, scatter[1:].mT, 4),
        ):
            with pytest.raises(RuntimeError, match="gaussian_mi: "):
                op(*arguments, EPS, U)

    def test_gradient_is_refused(self) -> None:
        count, mean, scatter = moments_of(sample(4, 3))
        mi, _ = op(count, mean, scatter.requires_grad_(), 4, EPS, U)
        with pytest.raises(RuntimeError, match=r"gaussian_mi_finalize can't be differentiated"):
            mi.backward()


def test_the_block_of_the_gpu_on_the_cpu(tmp_path: Path) -> None:
    """csrc/gaussian_mi/finalize_block_check.cpp says what is compared."""
    program = tmp_path / "check"
    compiler = os.environ.get("CXX", "c++").split()
    strict = [
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    source = CSRC / "gaussian_mi" / "finalize_block_check.cpp"
    command = [*compiler, "-std=c++20", "-O1", *strict, f"-I{CSRC}", str(source), "-o"]
    subprocess.run([*command, str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("largest relative difference") >= 12
