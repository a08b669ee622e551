#!/usr/bin/env bash
# On a machine with a GPU, in 8 minutes: builds everything, runs every GPU test and the GPU
# benchmarks, and lets compute-sanitizer watch small inputs. No network and no molecule files.
#
#   PYTHON=python3 tools/gpu_check.sh [--out DIR] [--work DIR] [--only STEP,...] [BENCHMARK OPTIONS]
#
# Needs nvcc, a C++ compiler, and a Python with the CUDA build of torch (2.10 or newer), Triton (3.6
# or newer), numpy, scipy, pyarrow, tqdm, pyyaml, tensorboard, pybind11, setuptools (77 or newer),
# pytest and hypothesis; matplotlib for the plots.
#
# --out   logs, summary.txt, environment.json, CSV and plots appear there as they are made, and at
#         the end, also where a step failed, all of it as gpu-check.tar.gz (default: dist/gpu-check)
# --work  a folder that keeps the build and the caches of the compilers for the next call
# --only  of build, tests, bench, bench:OP, sanitize; what they need is built all the same
#
# Other options go to python -m benchmarks (paths in them absolute), as --strings FILE does.
# Benchmarks repeat their op's tests unless all tests have passed, here or in an earlier call with
# the same --work.
set -euo pipefail
DEADLINE=480
OPS=(gaussian_mi training_step knn_mi one_hot one_hot_conv1d smiles)
PYTHON=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
results=$root/dist/gpu-check
work=
only=build,tests,bench,sanitize
fail() {
  echo "gpu_check: $1" >&2
  exit "${2:-1}"
}
while [ $# -gt 0 ]; do
  case $1 in
    --out) results=$(realpath -m "${2:?gpu_check: --out needs a folder}") ;;
    --work) work=$(realpath -m "${2:?gpu_check: --work needs a folder}") ;;
    --only) only=${2:?gpu_check: --only needs steps} ;;
    *) break ;;
  esac
  shift 2
done
for step in ${only//,/ }; do
  case " build tests bench sanitize ${OPS[*]/#/bench:} " in
    *" $step "*) ;;
    *) fail "no step $step; there are build tests bench sanitize ${OPS[*]/#/bench:}" 2 ;;
  esac
done
usable=$("$PYTHON" -c "import torch; print(torch.cuda.is_available())" 2>&1 | tail -n 1 || true)
[ "$usable" = True ] \
  || fail "no GPU is usable by $PYTHON: torch.cuda.is_available() is $usable"
PYTHON=$(command -v "$PYTHON")

temporary=
if [ -z "$work" ]; then
  work=$(mktemp -d)
  temporary=$work
fi
source=$work/source
mkdir -p "$source" "$results"
: > "$results/summary.txt"
pack() {
  tar -czf "$work/gpu-check.tar.gz" -C "$results" --exclude ./gpu-check.tar.gz .
  mv "$work/gpu-check.tar.gz" "$results"
  echo "gpu_check: $SECONDS s; results in $results, all of them in gpu-check.tar.gz there"
  [ -z "$temporary" ] || rm -rf "$temporary"
}
trap pack EXIT

# ---- steps ---------------------------------------------------------------------------------------

wanted() { [[ ,$only, == *,$1,* ]]; }
record() { echo "$1: $2" | tee -a "$results/summary.txt"; }

# run NAME SECONDS COMMAND...: its output goes to NAME.log, and the end of that to the terminal.
run() {
  local name=$1 limit=$2 left=$((DEADLINE - SECONDS)) begin=$SECONDS status=0
  shift 2
  if [ "$left" -lt 5 ]; then
    record "$name" "NOT RUN: $DEADLINE s are over"
    return 1
  fi
  [ "$limit" -le "$left" ] || limit=$left
  timeout -k 5 "$limit" "$@" > "$results/$name.log" 2>&1 || status=$?
  tail -n $((status ? 40 : 8)) "$results/$name.log"
  case $status in
    0) record "$name" "passed in $((SECONDS - begin)) s" ;;
    124 | 137) record "$name" "FAILED: more than $limit s" ;;
    *) record "$name" "FAILED with exit code $status after $((SECONDS - begin)) s" ;;
  esac
  return "$status"
}

# start COMMAND...: beside the others; `finish` waits for them and fails where one has.
jobs=()
start() {
  "$@" &
  jobs+=($!)
}
finish() {
  local job status=0
  for job in "${jobs[@]}"; do
    wait "$job" || status=1
  done
  jobs=()
  return "$status"
}

# Of the contents of files in the copy that are not built, and of the Python.
fingerprint() {
  {
    "$PYTHON" -c "import sys, torch; print(sys.version, torch.__version__)"
    find "$@" -type f ! -name '*.so' ! -name '*.pyc' ! -name _build.json -print0 | sort -z \
      | xargs -0 sha256sum
  } | sha256sum
}
same() { [ "$(cat "$work/$1" 2>/dev/null)" = "$2" ]; }

# ---- build ---------------------------------------------------------------------------------------

find "$source" -type f ! -name '*.so' ! -name _build.json -delete
tar -C "$root" --exclude='*.so' --exclude=_build.json --exclude=__pycache__ -cf - setup.py \
  pyproject.toml README.md LICENSE csrc kernels stib_fast tests benchmarks tools \
  | tar -C "$source" -xf -
cd "$source"
# Where the package is not installed, its kernels are found here.
[ -e stib_fast/kernels ] || ln -s ../kernels stib_fast/kernels
export PYTHONPATH=$source PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
export STIB_FAST_BACKEND=auto TRITON_INTERPRET=0
export TRITON_CACHE_DIR=$work/triton TORCHINDUCTOR_CACHE_DIR=$work/inductor
CUDA_HOME=${CUDA_HOME:-$("$PYTHON" -c "from torch.utils.cpp_extension import CUDA_HOME; print(CUDA_HOME or '')")}
export CUDA_HOME
# The commit that tables name is that of the checkout.
[ ! -e "$root/.git" ] || export GIT_DIR="$root/.git" GIT_WORK_TREE="$root"

environment=$(
  cat <<'PYTHON_CODE'
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
facts["commit"] = answer("git", "rev-parse", "HEAD") or None
Path(sys.argv[1]).write_text(json.dumps(facts, indent=2) + "\n")
print(doctor.text(facts))
PYTHON_CODE
)
inputs=$(fingerprint setup.py pyproject.toml csrc)
if ! same built "$inputs"; then
  find . -name '*.so' -delete
  run build 240 env STIB_FAST_REQUIRE_EXT=1 "$PYTHON" setup.py -q build_ext --inplace --force
fi
run environment 60 "$PYTHON" -c "$environment" "$results/environment.json"
echo "$inputs" > "$work/built"

# ---- tests ---------------------------------------------------------------------------------------

failed=0
everything=$(fingerprint setup.py pyproject.toml csrc kernels stib_fast tests)
# tests NAME ARGUMENTS...: of pytest.
tests() {
  start run "tests-$1" 240 "$PYTHON" -m pytest -q --tb=short -p no:cacheprovider --durations=5 \
    "${@:2}"
}
if wanted tests; then
  on_device=tests/kernels/on_device
  # Each in processes of its own: most of the time goes into compiling kernels.
  tests moments -k moments $on_device/gaussian_mi.py
  tests apply -k "apply and not moments" $on_device/gaussian_mi.py
  tests gaussian_mi -k "not apply and not moments" $on_device/gaussian_mi.py
  tests knn_mi $on_device/knn_mi.py
  tests one_hot $on_device/one_hot.py
  tests training tests/training/test_step_gpu.py
  tests distributed -k gpu tests/distributed/test_group.py
  # Tests that run on a GPU have "gpu" in their names: of the file, the test or its parameters.
  tests ops -k "gpu and not on_the_cpu and not without_a_gpu" tests/kernels/test_gpu.py tests/ops
  if finish; then
    echo "$everything" > "$work/tested"
  else
    failed=1
    rm -f "$work/tested"
  fi
fi

# ---- benchmarks ----------------------------------------------------------------------------------

# bench OP OPTIONS...: what has targets, in the shapes that have them.
bench() {
  local op=$1 limit=60 options=()
  shift
  case $op in
    gaussian_mi)
      limit=180
      options=(
        --providers "ours,careful float32,careful float64 eager"
        --shapes 60x2+2,4096x16+2,4194304x16+2,4194304x16+2:bfloat16,4194304x32+32
      )
      ;;
    training_step)
      limit=120
      options=(--providers "ours captured,best eager,plain eager" --shapes 60,65536)
      ;;
  esac
  if same tested "$everything"; then
    options+=(--tested)
  else
    limit=$((limit + 120))
  fi
  run "benchmark-$op" "$limit" "$PYTHON" -m benchmarks "$op" --device cuda --out "$results" \
    "${options[@]}" "$@"
}
for op in "${OPS[@]}"; do
  if wanted bench || wanted "bench:$op"; then bench "$op" "$@" || failed=1; fi
done

# ---- compute-sanitizer ---------------------------------------------------------------------------

sanitize() {
  local tool=$1
  shift
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 run "$tool" 180 "$sanitizer" --tool "$tool" "$@" \
    --error-exitcode 9 "$PYTHON" -m tools.sanitize_gpu && return
  # Some virtual machines let no tool look into the device.
  grep -qs "Device not supported" "$results/$tool.log" || return 1
  record "$tool" "SKIPPED, for compute-sanitizer does not support this device"
}
if wanted sanitize; then
  sanitizer=$(command -v compute-sanitizer || true)
  [ -n "$sanitizer" ] || sanitizer=$CUDA_HOME/bin/compute-sanitizer
  if [ -x "$sanitizer" ]; then
    # Kernels are compiled before anything watches.
    run sanitize-alone 90 "$PYTHON" -m tools.sanitize_gpu || failed=1
    # PyTorch asks CUDA what may fail, and does without.
    start sanitize memcheck --report-api-errors no
    start sanitize racecheck
    finish || failed=1
  else
    record sanitize "SKIPPED: compute-sanitizer is not here"
  fi
fi
exit "$failed"
