"""Runs `on_device.py` where the kernels are interpreted, and where they are compiled."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is usable here")


@pytest.mark.parametrize("interpret", ["1", pytest.param("0", marks=needs_gpu, id="gpu")])
def test_kernels(interpret: str, tmp_path: Path) -> None:
    tests, report = Path(__file__).with_name("on_device.py"), tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, f"--junit-xml={report}", str(tests)],
        cwd=tests.parents[2],
        env=os.environ | {"TRITON_INTERPRET": interpret, "STIB_FAST_BACKEND": "auto"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    suite = ElementTree.parse(report).getroot()[0]
    assert int(suite.attrib["tests"]) > 100
    assert int(suite.attrib["skipped"]) == 0, done.stdout
