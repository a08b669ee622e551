#!/usr/bin/env bash
# In an environment with the CUDA build of torch (its default build; gigabytes): loads the CPU library
# built against another torch, which the stable ABI promises, and compares it with eager PyTorch.
# The CUDA kernels will be compiled here, too, once there are any.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -x .venv-cuda/bin/python ]; then
  "$PYTHON" -m venv .venv-cuda
  .venv-cuda/bin/python -m pip --disable-pip-version-check -q install "$CUDA_TORCH" numpy scipy \
    2> .venv-cuda/pip.log || { cat .venv-cuda/pip.log; exit 1; }
fi
PYTHONPATH=. .venv-cuda/bin/python - <<'PYTHON_CODE'
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
