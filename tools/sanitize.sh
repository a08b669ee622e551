#!/usr/bin/env bash
# The tests of the C++ kernels under the address and undefined-behaviour sanitizers, once for each
# instruction set that this machine has.
#
#   PYTHON=path/to/python tools/sanitize.sh [arguments of pytest]
#
# The Python needs torch, pytest and hypothesis; the compiler (CXX, default c++) must be GCC. All is
# built in a temporary copy: neither the checkout nor an installed stib_fast changes.
set -euo pipefail

PYTHON=$(command -v "${PYTHON:-python3}")
CXX=${CXX:-c++}
root=$(cd "$(dirname "$0")/.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

cp -r "$root"/{setup.py,pyproject.toml,csrc,kernels,stib_fast,tests} "$copy"
cd "$copy"
find . -name '*.so' -delete
export CXX STIB_FAST_SANITIZE=1 STIB_FAST_REQUIRE_EXT=1
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
for set in $sets; do
  echo "== $set"
  # Compiled graphs add no C++ of ours, only minutes.
  STIB_FAST_CPU=$set LD_PRELOAD=$preload PYTHONDONTWRITEBYTECODE=1 "$PYTHON" -m pytest -q \
    -p no:cacheprovider --capture=sys -k "(cpp or TestOp) and not compile and not opcheck" \
    tests/ops/test_gaussian_mi.py tests/ops/test_moments.py "$@"
done
