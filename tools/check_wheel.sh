#!/usr/bin/env bash
# Builds the sdist, builds the wheel from the sdist, installs the wheel with its dependencies in a
# clean environment, and uses it there, away from the source tree.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
quietly() { "$@" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }; }

quietly "$PYTHON" -m build --no-isolation --sdist --outdir "$work/sdist" .
tar -xzf "$work"/sdist/*.tar.gz -C "$work"
cd "$work"/stib_fast-*/
STIB_FAST_REQUIRE_EXT=1 quietly "$PYTHON" -m build --no-isolation --wheel --outdir "$work/wheel" .

cd "$work"
"$PYTHON" -m venv clean
quietly clean/bin/python -m pip install "$TORCH" wheel/*.whl
clean/bin/stib doctor > doctor
for part in "cpp" "cpp (smiles)"; do
  grep -q "^$part  *usable" doctor || { cat doctor; exit 1; }
done
quietly clean/bin/stib train artificial --help
clean/bin/python - <<'PYTHON_CODE'
import pathlib

import torch

import stib_fast.chem

home = pathlib.Path(stib_fast.__file__).parent
assert "clean" in home.parts, f"imported from {home}, not from the wheel"
for name in (
    *("py.typed", "_build.json", "_smiles.pyi", "configs/artificial_paper.yaml"),
    *("kernels/one_hot_conv1d.py", "chem/presets/zinc250k.json"),
):
    assert (home / name).exists(), f"{name} is not in the wheel"
assert not list(home.parent.glob("tests")), "tests are in the wheel"
with stib_fast.backend("cpp"):
    value = stib_fast.functional.gaussian_mi(torch.randn(100, 2), torch.randn(100, 3))
assert value > 0
tokenizer = stib_fast.chem.SmilesTokenizer(stib_fast.chem.Vocabulary.preset("zinc250k"), 9)
with stib_fast.backend("cpp"):
    assert tokenizer.decode(tokenizer.encode(["CCl", "c1ccccc1"]).ids) == ["CCl", "c1ccccc1"]
print("the wheel built from the sdist works:", stib_fast.__version__)
PYTHON_CODE
