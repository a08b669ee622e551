"""The choice of backend, in processes of their own where it is made at import."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stib_fast
from stib_fast import backends
from stib_fast import functional as F

PACKAGE = Path(stib_fast.__file__).parent
needs_library = pytest.mark.usefixtures("library")


def run(code: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Python of the same environment, in the folder `path`: what it holds is imported first."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("STIB_FAST_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=path,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def output(*arguments, **options) -> str:
    done = run(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_library
def test_library_is_built_and_chosen() -> None:
    assert backends.cpp_unusable is None
    assert backends.backend_for(torch.device("cpu")) == "cpp"


def test_choice_is_for_a_block_and_nests() -> None:
    cpu = torch.device("cpu")
    outside = backends.backend_for(cpu)
    with stib_fast.backend("eager"):
        assert backends.backend_for(cpu) == "eager"
        with stib_fast.backend("auto"):
            assert backends.backend_for(cpu) == outside
        assert backends.backend_for(cpu) == "eager"
    with pytest.raises(KeyError), stib_fast.backend("eager"):
        raise KeyError
    assert backends.backend_for(cpu) == outside


def test_unknown_name() -> None:
    known = "auto, cpp, triton, eager"
    with pytest.raises(ValueError, match=f"backend must be one of {known}; got 'gpu'"):
        stib_fast.backend("gpu").__enter__()
    assert (
        f"ValueError: STIB_FAST_BACKEND must be one of {known}; got 'fast'"
        in run(
            "import torch, stib_fast; x = torch.rand(9, 1); stib_fast.functional.gaussian_mi(x, x)",
            STIB_FAST_BACKEND="fast",
        ).stderr
    )


def test_backend_asked_for_by_name_raises_where_it_is_not_usable(monkeypatch) -> None:
    with (
        stib_fast.backend("cpp"),
        pytest.raises(RuntimeError, match="runs on the CPU, not on meta"),
    ):
        backends.backend_for(torch.device("meta"))
    monkeypatch.setattr(backends, "cpp_unusable", "not built: no compiler")
    x = torch.randn(10, 2)
    with stib_fast.backend("cpp"):
        for op in (lambda: F.gaussian_mi(x, x), lambda: F.moments(x)):
            with pytest.raises(RuntimeError, match=r"'cpp' is not usable: not built: no compiler"):
                op()


MI_OF_A_FIXED_SAMPLE = """
import math, torch, stib_fast
z = torch.arange(300.0).view(100, 3).sin()
value = stib_fast.functional.gaussian_mi(z, z[:, :2].cos(){extra})
print(float(value), type(value.grad_fn).__name__)
"""


@needs_library
def test_environment_sets_the_backend() -> None:
    code = MI_OF_A_FIXED_SAMPLE.format(extra=".requires_grad_()")
    assert "_GaussianMIBackward" in output(code)
    assert "_GaussianMIBackward" not in output(code, STIB_FAST_BACKEND="eager")


@pytest.fixture(scope="module")
def without_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with no compiled file in it."""
    path = tmp_path_factory.mktemp("eager")
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "_build.json", "__pycache__")
    shutil.copytree(PACKAGE, path / "stib_fast", ignore=ignored)
    return path


def test_works_without_library_triton_and_compiler(without_library: Path) -> None:
    code = f"""
import sys, warnings
sys.modules["triton"] = None  # importing it raises
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as told:
    {MI_OF_A_FIXED_SAMPLE.format(extra="").replace(chr(10), chr(10) + "    ")}
    stib_fast.functional.gaussian_mi(z, z)
    stib_fast.functional.moments(z)
told = [w for w in told if "stib_fast" in str(w.message)]
assert stib_fast.__file__.startswith({str(without_library)!r}), stib_fast.__file__
assert len(told) == 1, told
assert "the C++ library is not built" in str(told[0].message), told[0].message
assert told[0].filename == "<string>", told[0].filename  # the caller's line
try:
    with stib_fast.backend("cpp"):
        stib_fast.functional.moments(z)
except RuntimeError as error:
    assert "backend 'cpp' is not usable: not built" in str(error)
else:
    raise AssertionError
"""
    z = torch.arange(300.0).view(100, 3).sin()
    with stib_fast.backend("eager"):
        expected = float(F.gaussian_mi(z, z[:, :2].cos()))
    assert float(output(code, without_library, PATH="").split()[0]) == pytest.approx(expected)


def test_asking_for_eager_is_silent_without_library(without_library: Path) -> None:
    code = "import warnings; warnings.simplefilter('error')\n" + MI_OF_A_FIXED_SAMPLE
    output(code.format(extra=""), without_library, STIB_FAST_BACKEND="eager")


def test_library_that_does_not_load(without_library: Path) -> None:
    library = without_library / "stib_fast" / "_cpu.so"
    library.write_bytes(b"not a library")
    code = "import stib_fast; print(stib_fast.backends.cpp_unusable)"
    try:
        assert output(code, without_library).startswith("_cpu.so does not load in torch 2.")
    finally:
        library.unlink()


@needs_library
@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="one instruction set on this machine"
)
@pytest.mark.parametrize("instructions", ["baseline", "avx2"])
def test_instruction_sets_agree(instructions: str, tmp_path: Path) -> None:
    code = """
import torch, stib_fast
torch.manual_seed(0)
results = []
for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    for n, m in ((1, 1), (2, 1), (3, 4), (8, 8), (16, 2), (17, 19)):
        z = torch.randn(1100, n, dtype=torch.float64)
        y = z @ torch.randn(n, m).double() + torch.randn(1100, m).double()
        z, y = z.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()
        for options in ({}, {"weight": torch.arange(1100.0) % 7}, {"precision": "fast"}):
            value = stib_fast.functional.gaussian_mi(z, y, **options)
            results.append([value.detach(), *torch.autograd.grad(value, (z, y))])
torch.save(results, FILE)
"""
    outputs = []
    for chosen in (instructions, ""):
        file = tmp_path / f"results_{chosen}"
        output(code.replace("FILE", repr(str(file))), tmp_path, STIB_FAST_CPU=chosen)
        outputs.append(torch.load(file, weights_only=True))
    # Sums in another order, times the condition; half precision may round to the other neighbour.
    exact = {
        torch.float64: 1e-12,
        torch.float32: 1e-6,
        torch.bfloat16: 2**-7,
        torch.float16: 2**-10,
    }
    different = 0
    for i, (ours, expected) in enumerate(zip(*outputs, strict=True)):
        for one, other in zip(ours, expected, strict=True):
            tolerance = exact[other.dtype] + (1e-4 if i % 3 == 2 else 0)  # "fast": float32 products
            assert (one - other).double().norm() <= tolerance * other.double().norm()
            different += not torch.equal(one, other)
    assert different  # another set did run
