#!/usr/bin/env bash
# On a machine with a GPU, its CUDA toolkit, and a Python that has the CUDA build of torch: builds
# everything in a copy, runs every GPU test and the GPU benchmark. Results go to OUT (default: the
# copy's benchmarks/results, copied back).
#
#   PYTHON=python3 OUT=folder tools/gpu_check.sh
set -euo pipefail
PYTHON=$(command -v "${PYTHON:-python3}")
root=$(cd "$(dirname "$0")/.." && pwd)
out=${OUT:-$root/benchmarks/results}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r "$root"/{setup.py,pyproject.toml,README.md,LICENSE,csrc,kernels,stib_fast,tests,benchmarks} "$copy"
cd "$copy"
find . -name '*.so' -delete
# Where the package is not installed, its kernels are found here.
ln -s ../kernels stib_fast/kernels
"$PYTHON" -c "import torch; assert torch.cuda.is_available(), 'no GPU is usable here'"
STIB_FAST_REQUIRE_EXT=1 "$PYTHON" setup.py -q build_ext --inplace > build.log 2>&1 \
  || { tail -50 build.log; exit 1; }
"$PYTHON" -m stib_fast doctor
"$PYTHON" -m pytest -q -p no:cacheprovider tests/kernels/test_gpu.py tests/kernels/test_on_device.py
"$PYTHON" -m benchmarks.gpu --out "$out"
