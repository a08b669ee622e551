#!/usr/bin/env bash
# In an environment with the CUDA build of torch (its default build; gigabytes), needing nvcc but no
# GPU: loads the CPU library built against another torch, which the stable ABI promises, and compares
# it with eager PyTorch; then builds everything there, GPU library included, and loads that.
#
#   ARCHITECTURES="8.0;9.0a;10.0" tools/cuda_build.sh
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -x .venv-cuda/bin/python ]; then
  "$PYTHON" -m venv .venv-cuda
  .venv-cuda/bin/python -m pip --disable-pip-version-check -q install "$CUDA_TORCH" numpy scipy \
    pybind11 ninja "setuptools>=77" wheel pyarrow \
    2> .venv-cuda/pip.log || { cat .venv-cuda/pip.log; rm -rf .venv-cuda; exit 1; }
fi
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
STIB_FAST_REQUIRE_EXT=1 "$cuda_python" setup.py build_ext --inplace > build.log 2>&1 \
  || { tail -50 build.log; exit 1; }
grep -E "entry function|spill|registers" build.log | sed 's/^ptxas info *: //'
"$cuda_python" - <<'PYTHON_CODE'
import torch
from stib_fast import backends
from stib_fast.ops import smiles  # noqa: F401: defines the schema

assert backends.cuda_unusable is None, backends.cuda_unusable
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
assert has_kernel("stib_fast::smiles_encode", "CUDA")
print("the GPU library builds and loads; its kernels need a GPU to run")
PYTHON_CODE
