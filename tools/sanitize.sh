#!/usr/bin/env bash
# The tests of the C++ under the address and undefined-behaviour sanitizers, once for each
# instruction set that this machine has; then libFuzzer on the tokeniser for FUZZ_SECONDS (60).
#
#   PYTHON=path/to/python tools/sanitize.sh [arguments of pytest]
#
# The Python needs torch, pytest, hypothesis and pyarrow; the compiler (CXX, default c++) must be
# GCC, and CLANGXX (default clang++) Clang with libFuzzer. All is built in a temporary copy: neither
# the checkout nor an installed stib_fast changes.
set -euo pipefail

PYTHON=$(command -v "${PYTHON:-python3}")
CXX=${CXX:-c++}
CLANGXX=${CLANGXX:-clang++}
FUZZ_SECONDS=${FUZZ_SECONDS:-60}
if ! command -v "$CLANGXX" >/dev/null; then
  echo "sanitize: $CLANGXX is not here, and the fuzzer needs it (apt install clang)" >&2
  exit 1
fi
root=$(cd "$(dirname "$0")/.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

cp -r "$root"/{setup.py,pyproject.toml,csrc,kernels,stib_fast,tests} "$copy"
cd "$copy"
find . -name '*.so' -delete
export CXX STIB_FAST_SANITIZE=1 STIB_FAST_REQUIRE_EXT=1
if ! "$CLANGXX" -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
  -Icsrc csrc/smiles/fuzz.cpp -o fuzz >fuzz.log 2>&1; then
  cat fuzz.log
  echo "sanitize: $CLANGXX cannot build the fuzzer (is libFuzzer, of libclang-rt-*-dev, here?)" >&2
  exit 1
fi
"$PYTHON" setup.py -q build_ext --inplace >build.log 2>&1 || { cat build.log; exit 1; }

# Python itself is not instrumented, so the runtimes come first by preloading; they report to the
# file descriptor that --capture=sys below leaves alone.
preload=$("$CXX" -print-file-name=libasan.so):$("$CXX" -print-file-name=libubsan.so)
# Leaks are not looked for: the interpreter and torch keep much of their memory until exit, and it
# would all be reported. The kernels own memory in destructors alone.
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1
export UBSAN_OPTIONS=print_stacktrace=1
export OMP_NUM_THREADS=2

sets=baseline
if grep -qw avx2 /proc/cpuinfo; then sets+=" avx2"; fi
if grep -qw avx512bw /proc/cpuinfo; then sets+=" avx512"; fi
sanitized() {
  LD_PRELOAD=$preload PYTHONDONTWRITEBYTECODE=1 "$PYTHON" -m pytest -q -p no:cacheprovider \
    --capture=sys -m "not data" "$@"
}
for set in $sets; do
  echo "== $set"
  export STIB_FAST_CPU=$set
  # Compiled graphs add no C++ of ours, only minutes.
  sanitized -k "(cpp or TestOp) and not compile and not opcheck" tests/ops/test_gaussian_mi.py \
    tests/ops/test_gaussian_mi_finalize.py tests/ops/test_moments.py tests/ops/test_one_hot.py \
    tests/ops/test_one_hot_conv1d.py "$@"
  sanitized -k "not eager and not instruction_sets and not opcheck" tests/ops/test_knn_mi.py "$@"
  sanitized -k "not eager" tests/ops/test_smiles.py tests/ops/test_strings.py "$@"
done
unset STIB_FAST_CPU

echo "== fuzzer, $FUZZ_SECONDS s"
# From random bytes on; of an input that fails, libFuzzer prints up to 256 bytes, in base64.
mkdir corpus
for i in {1..200}; do head -c 256 /dev/urandom >corpus/$i; done
if ! env -u ASAN_OPTIONS ./fuzz -max_len=256 -len_control=0 -max_total_time="$FUZZ_SECONDS" \
  -print_final_stats=1 corpus >fuzz.log 2>&1; then
  tail -n 60 fuzz.log
  exit 1
fi
grep -E 'DONE|average_exec_per_sec' fuzz.log
