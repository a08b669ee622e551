#!/usr/bin/env bash
# On a machine with a GPU, its CUDA toolkit, and a Python that has the CUDA build of torch (2.10 or
# newer), Triton (3.6 or newer), pytest and hypothesis; no network, no molecule files. In a copy:
# builds everything, runs every GPU test, compute-sanitizer on small inputs, and the GPU benchmark.
# Logs, CSV, plots and environment.json become one archive, also where a step fails; the benchmark
# runs only after tests that passed.
#
#   PYTHON=python3 tools/gpu_check.sh [--out FILE.tar.gz] [options of python -m benchmarks]
set -euo pipefail
PYTHON=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
archive=$root/dist/gpu-check.tar.gz
if [ "${1:-}" = --out ]; then
  archive=$(realpath -m "${2:?gpu_check: --out needs a file}")
  shift 2
fi
usable=$("$PYTHON" -c "import torch; print(torch.cuda.is_available())" 2>&1 | tail -n 1 || true)
if [ "$usable" != True ]; then
  echo "gpu_check: no GPU is usable by $PYTHON: torch.cuda.is_available() is $usable" >&2
  exit 1
fi
PYTHON=$(command -v "$PYTHON")

copy=$(mktemp -d)
results=$copy/gpu-check
mkdir "$results"
pack() {
  mkdir -p "$(dirname "$archive")"
  tar -czf "$archive" -C "$copy" gpu-check
  echo "gpu_check: $SECONDS s; results in $archive"
  rm -rf "$copy"
}
trap pack EXIT
# step NAME SECONDS COMMAND...: output to the terminal and NAME.log; a failure ends the script.
step() {
  local name=$1 limit=$2
  shift 2
  echo "== $name ($SECONDS s)"
  timeout "$limit" "$@" 2>&1 | tee "$results/$name.log" || {
    [ "${PIPESTATUS[0]}" != 124 ] || echo "gpu_check: $name took more than $limit s"
    return 1
  }
}

cp -r "$root"/{setup.py,pyproject.toml,README.md,LICENSE,csrc,kernels,stib_fast,tests,benchmarks,tools} "$copy"
cd "$copy"
find . -name '*.so' -delete
export PYTHONPATH=$copy PYTHONDONTWRITEBYTECODE=1
# Where the package is not installed, its kernels are found here.
[ -e stib_fast/kernels ] || ln -s ../kernels stib_fast/kernels
CUDA_HOME=${CUDA_HOME:-$("$PYTHON" -c "from torch.utils.cpp_extension import CUDA_HOME; print(CUDA_HOME or '')")}
export CUDA_HOME

echo "== build"
STIB_FAST_REQUIRE_EXT=1 "$PYTHON" setup.py -q build_ext --inplace > "$results/build.log" 2>&1 \
  || { tail -50 "$results/build.log"; exit 1; }
"$PYTHON" - "$results/environment.json" "$(git -C "$root" rev-parse HEAD 2>/dev/null || true)" <<'PYTHON_CODE'
import json
import subprocess
import sys
from pathlib import Path

import torch
import triton

from stib_fast import backends, doctor

if backends.cuda_unusable is not None:
    sys.exit(f"gpu_check: the GPU library is {backends.cuda_unusable}")


def answer(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return None


gpu = torch.cuda.get_device_properties(0)
facts = doctor.report()
facts["gpu"] = {
    "name": gpu.name,
    "capability": torch.cuda.get_device_capability(),
    "multiprocessors": gpu.multi_processor_count,
    "memory": gpu.total_memory,
    "driver": answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    "cuda": torch.version.cuda,
    "triton": triton.__version__,
    "nvcc": (answer("nvcc", "--version") or "").splitlines()[-1:],
}
facts["commit"] = sys.argv[2] or None
Path(sys.argv[1]).write_text(json.dumps(facts, indent=2) + "\n")
print(doctor.text(facts))
PYTHON_CODE

# GPU tests have "gpu" in their names: of the file, the test or its parameters.
step tests 240 "$PYTHON" -m pytest -q -p no:cacheprovider --durations=10 -k gpu tests/kernels \
  tests/ops $(find tests -name '*gpu*.py' -not -path 'tests/kernels/*' -not -path 'tests/ops/*')

sanitizer=$(command -v compute-sanitizer || true)
if [ -z "$sanitizer" ] && [ -x "$CUDA_HOME/bin/compute-sanitizer" ]; then
  sanitizer=$CUDA_HOME/bin/compute-sanitizer
fi
for tool in memcheck racecheck; do
  if [ -z "$sanitizer" ]; then
    echo "== $tool SKIPPED: compute-sanitizer is not here" | tee "$results/$tool.log"
  elif ! PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "$tool" 120 "$sanitizer" --tool "$tool" \
    --error-exitcode 9 "$PYTHON" -m tools.sanitize_gpu; then
    # Some virtual machines let no tool look into the device.
    grep -q "Device not supported" "$results/$tool.log" || exit 1
    echo "== $tool SKIPPED: compute-sanitizer does not support this device"
  fi
done

# The shapes that have targets. One benchmark that fails does not keep the others from running.
failed=
for op in gaussian_mi training_step one_hot one_hot_conv1d knn_mi smiles; do
  shapes=()
  case $op in
    gaussian_mi) shapes=(--shapes 60x2+2,4096x16+2,4194304x16+2,4194304x16+2:bfloat16,4194304x32+32) ;;
    training_step) shapes=(--shapes 60,65536) ;;
  esac
  step "benchmark-$op" 180 "$PYTHON" -m benchmarks "$op" --device cuda --tested --out "$results" \
    "${shapes[@]}" "$@" || failed+=" $op"
done
[ -z "$failed" ] || { echo "gpu_check: no report of$failed"; exit 1; }
