#!/usr/bin/env bash
# In an environment with the CUDA build of torch (its default build; gigabytes), needing nvcc but no
# GPU: loads the CPU library built against another torch, which the stable ABI promises, and compares
# it with eager PyTorch; then builds everything there, GPU library included, loads that, compiles
# Triton kernels with the Triton there, and keeps the wheel in dist/cuda for a machine with a GPU.
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
from stib_fast.nn import InvarianceCritic

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

critic = InvarianceCritic(z_dim=5, y_dim=3, hidden=(16,))


def of_mi(z, y):
    return (functional.gaussian_mi(z, y),)


def of_critic(z, y):
    return critic.losses(torch.tanh(z), y, 2.0)


def of_moments(z, y):
    sample = functional.moments(torch.tanh(z), y, y[:, :1])
    return sample.scatter.square().sum() + sample.mean.sum(), sample.mean, sample.count


# torch 2.11 has got backwards of compiled functions wrong (pytorch #180642).
for function, leaves in (
    (of_mi, (z, y)),
    (of_critic, (z, *critic.parameters())),
    (of_moments, (z, y)),
):
    pair = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        values = call(z, y)
        pair.append((*values, *torch.autograd.grad(values[0], leaves)))
    for a, b in zip(*pair):
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

# Without what Triton 3.6 spills a few registers of: moments float32 d=18 fast, apply bfloat16 d=64,
# apply float32 d=33.
for kernels in "knn_radii float32 k=20" "moments float32 d=18 weighted" "moments float32 d=18 16+2" \
  "moments float64 d=18" "moments float64 d=64 weighted" "apply float32 d=18" "apply bfloat16 d=18" \
  "one_hot float32 BLV V=64" "conv1d gradient float32 F=9"; do
  PYTHONPATH=$root "$cuda_python" -m tools.aot --arch 90 --only "$kernels"
done
mkdir -p "$root/dist/cuda"
cp "$copy"/wheel/*.whl "$root/dist/cuda"
echo "kept dist/cuda/$(ls "$copy/wheel")"
