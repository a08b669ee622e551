"""The build without a library: it works, says so, and leaves the reason for `stib doctor`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(folder, stubs=False, **environment):
    """Build a copy of the project; with stubs there is nothing to compile in its sources."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("csrc", "kernels", "stib_fast"):
        ignored = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    if stubs:
        for source in (folder / "csrc").glob("*/*.cpp"):
            source.write_text("static int nothing [[maybe_unused]];\n")
    cleared = {name: value for name, value in os.environ.items() if "STIB_FAST" not in name}
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(folder / "built")]
    return subprocess.run(
        command, cwd=folder, env=cleared | environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"STIB_FAST_SKIP_EXT": "1"}, "STIB_FAST_SKIP_EXT was set"),
        ({"CXX": "/bin/false"}, "Error"),
    ],
    ids=["skipped", "without-a-compiler"],
)
def test_builds_without_the_library_and_says_why(tmp_path, environment, reason):
    result = build(tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    assert "eager PyTorch" in result.stderr
    built = tmp_path / "built" / "stib_fast"
    assert reason in json.loads((built / "_build.json").read_text())["cpp"]
    assert not list(built.glob("*.so"))
    found = subprocess.run(
        [sys.executable, "-c", "import stib_fast.backends as b; print(b.cpp_unusable)"],
        cwd=tmp_path / "built",
        capture_output=True,
        text=True,
    )
    assert found.stdout.startswith("not built: "), found.stderr


def test_an_unfit_cuda_toolkit_costs_the_gpu_library_alone(tmp_path):
    # A torch that says it is built with CUDA, and a toolkit without a compiler.
    (tmp_path / "sitecustomize.py").write_text("import torch\ntorch.version.cuda = '13.0'\n")
    result = build(tmp_path, stubs=True, CUDA_HOME=str(tmp_path), PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "built" / "stib_fast" / "_build.json").read_text())
    assert record["cpp"] == record["smiles"] == "built"
    assert record["cuda"].startswith("not built: ")


def test_a_library_that_is_required_stops_the_build(tmp_path):
    result = build(tmp_path, STIB_FAST_SKIP_EXT="1", STIB_FAST_REQUIRE_EXT="1")
    assert result.returncode != 0
    assert "STIB_FAST_REQUIRE_EXT is set" in result.stderr
