#!/usr/bin/env bash
# In an environment with the CUDA build of torch (its default build; gigabytes), needing nvcc but no
# GPU: loads the CPU library built against another torch, which the stable ABI promises, and compares
# it with eager PyTorch; then builds everything there, GPU library included, loads that, and keeps
# the wheel in dist/cuda for a machine with a GPU.
#
#   ARCHITECTURES="8.0;9.0a;10.0" tools/cuda_build.sh
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
[ -x .venv-cuda/bin/python ] || "$PYTHON" -m venv .venv-cuda
.venv-cuda/bin/python -m pip --disable-pip-version-check -q install "$CUDA_TORCH" numpy scipy \
  pybind11 ninja "setuptools>=77" wheel pyarrow tqdm \
  2> .venv-cuda/pip.log || { cat .venv-cuda/pip.log; exit 1; }
cuda_python=$PWD/.venv-cuda/bin/python

PYTHONPATH=. "$cuda_python" - <<'PYTHON_CODE'
import torch
import stib_fast
from stib_fast import backends, functional

print("torch", torch.__version__, "CUDA", torch.version.cuda, "library:", backends.cpp_unusable or "loads")
assert backends.cpp_unusable is None, backends.cpp_unusable
torch.manual_seed(0)
z, y = torch.randn(5000, 5, requires_grad=True), torch.randn(5000, 3, requires_grad=True)
found = {}
for name in ("cpp", "eager"):
    with stib_fast.backend(name):
        value = functional.gaussian_mi(z, y)
        found[name] = (value, *torch.autograd.grad(value, (z, y)))
for a, b in zip(*found.values()):
    torch.testing.assert_close(a, b)
compiled = torch.compile(functional.gaussian_mi, fullgraph=True, backend="aot_eager")
value = compiled(z, y)
for a, b in zip(found["cpp"], (value, *torch.autograd.grad(value, (z, y)))):
    torch.testing.assert_close(a, b)
print("cpp, eager and compiled agree, values and gradients")
PYTHON_CODE

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r setup.py pyproject.toml README.md LICENSE csrc kernels stib_fast "$copy"
cd "$copy"
find . -name '*.so' -delete
export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
[ -x "$CUDA_HOME/bin/nvcc" ] || { echo "no nvcc in $CUDA_HOME/bin: set CUDA_HOME"; exit 1; }
export TORCH_CUDA_ARCH_LIST=${ARCHITECTURES:-8.0;9.0a;10.0}
# A warning is an error here alone: users build with compilers that are yet to come.
STIB_FAST_REQUIRE_EXT=1 NVCC_APPEND_FLAGS="-Werror all-warnings" "$cuda_python" -m pip -v \
  --disable-pip-version-check wheel --no-build-isolation --no-deps -w wheel . > build.log 2>&1 \
  || { tail -50 build.log; exit 1; }
grep -E "entry function|spill|registers" build.log | sed 's/^ *ptxas info *: //'
if grep -qE "[1-9][0-9]* bytes spill" build.log; then echo "cuda_build: a kernel spills registers"; exit 1; fi
"$cuda_python" -m pip --disable-pip-version-check -q install --no-deps --target installed wheel/*.whl

cd installed
"$cuda_python" - <<'PYTHON_CODE'
import torch
from stib_fast import backends
from stib_fast.ops import gaussian_mi, moments
from stib_fast.ops import smiles  # noqa: F401: defines the schema

assert backends.cuda_unusable is None, backends.cuda_unusable
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
for op in ("smiles_encode", "gaussian_mi_finalize"):
    assert has_kernel(f"stib_fast::{op}", "CUDA"), op
sample = torch.randn(500, 9, dtype=torch.float64)
of_sample = (*moments.moments([sample], None, False), 4, 1e-9, 2.0**-53)
for a, b in zip(
    gaussian_mi.finalize_state_eager(*of_sample),
    torch.ops.stib_fast.gaussian_mi_finalize(*of_sample),
):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
print("the GPU library builds and loads; its kernels need a GPU to run")
PYTHON_CODE
mkdir -p "$root/dist/cuda"
cp "$copy"/wheel/*.whl "$root/dist/cuda"
echo "kept dist/cuda/$(ls "$copy/wheel")"
