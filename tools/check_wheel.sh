#!/usr/bin/env bash
# Builds the sdist, builds the wheel from the sdist, installs it in a clean environment beside the
# torch of $PYTHON, and imports and uses it there, away from the source tree.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$PYTHON" -m build --no-isolation --sdist --outdir "$work/sdist" . > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
tar -xzf "$work"/sdist/*.tar.gz -C "$work"
(cd "$work"/stib_fast-*/ && STIB_FAST_REQUIRE_EXT=1 "$PYTHON" -m build --no-isolation --wheel \
  --outdir "$work/wheel" . > "$work/log" 2>&1) || { cat "$work/log"; exit 1; }

"$PYTHON" -m venv "$work/clean"
# The dependencies are those of $PYTHON's environment; the package itself comes from the wheel alone.
site=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
"$work/clean/bin/python" -m pip --disable-pip-version-check -q install --no-deps "$work"/wheel/*.whl
cd "$work"
PYTHONPATH="$site" "$work/clean/bin/python" - <<'PYTHON_CODE'
import pathlib, sys
import torch
import stib_fast
from stib_fast import backends, functional

home = pathlib.Path(stib_fast.__file__)
assert "clean" in home.parts, f"imported from {home}, not from the wheel"
assert (home.parent / "py.typed").exists() and (home.parent / "configs").is_dir()
assert backends.cpp_unusable is None, backends.cpp_unusable
z, y = torch.randn(100, 2), torch.randn(100, 3)
with stib_fast.backend("cpp"):
    print("wheel works:", home.parent.name, stib_fast.__version__, float(functional.gaussian_mi(z, y)) > 0)
PYTHON_CODE
