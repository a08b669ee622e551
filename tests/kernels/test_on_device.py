"""Runs the files of `on_device/`: Triton kernels against float64, interpreted and on a GPU.

Kernels are interpreted or compiled as TRITON_INTERPRET says when triton is imported, so each file
runs in processes of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is usable here")


FILES = sorted(
    path.stem
    for path in Path(__file__).with_name("on_device").glob("*.py")
    if path.stem != "conftest"
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("interpret", ["1", pytest.param("0", marks=needs_gpu, id="gpu")])
def test_kernels(interpret: str, name: str, tmp_path: Path) -> None:
    tests = Path(__file__).with_name("on_device") / f"{name}.py"
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"--junit-xml={report}", str(tests)],
        cwd=tests.parents[3],
        env=os.environ | {"TRITON_INTERPRET": interpret, "STIB_FAST_BACKEND": "auto"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    suite = ElementTree.parse(report).getroot()[0]
    assert int(suite.attrib["tests"]) > 20
    assert int(suite.attrib["skipped"]) == 0, done.stdout
