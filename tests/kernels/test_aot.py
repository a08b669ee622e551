"""The kernels compile for the GPUs of three generations, without one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2]))  # tools are not installed
from tools import aot

# The rest runs in `make aot`: these hold every branch of the kernels and the most registers.
TESTED = [
    *("one_hot float32 BLV V=64", "one_hot float32 BVL V=64", "one_hot uint8 BLV V=63"),
    *("one_hot uint8 BVL L=37", "conv1d float32 F=128", "conv1d bfloat16 F=9"),
    *("conv1d float64 F=128", "conv1d gradient float32 F=9", "conv1d gradient float32 F=128"),
    *("conv1d gradient bfloat16 F=128", "conv1d gradient float64 F=128"),
    *("conv1d gradient float32 far", "conv1d gradient float32 ones"),
    *("knn_radii float32 k=20 variant 2", "knn_radii float64 k=255", "knn_counts float32 d=16"),
    *("moments float32 d=18", "moments bfloat16 d=18 weighted", "moments float64 d=64 weighted"),
    *("moments float32 d=32 fast", "moments float64 d=128 weighted fast", "apply float32 d=18"),
    *("apply float32 d=128", "apply float64 d=128 weighted shifted"),
]


@pytest.mark.parametrize("architecture", aot.ARCHITECTURES)
@pytest.mark.parametrize("name", TESTED)
def test_compiles_without_spilling(name: str, architecture: int) -> None:
    launches = aot.launches_of(name)
    assert launches
    for launch in launches:
        made = aot.compile_launch(launch, architecture)
        assert made.stack == 0  # where spilled registers go
        assert made.registers <= 255
        assert made.shared <= aot.ARCHITECTURES[architecture]


def test_recorded_launches_are_as_triton_specialises_them() -> None:
    (launch,) = aot.launches_of("one_hot float32 BVL L=16")
    names = launch.kernel.arg_names
    assert launch.signature["ids"] == "*u8"
    assert launch.signature["out"] == "*i32"
    assert launch.signature["classes"] == "i32"
    assert launch.attributes[(names.index("classes"),)] == [["tt.divisibility", 16]]
    assert launch.constants[(names.index("steps"),)] == 1  # of length / 16
    assert launch.signature["steps"] == "constexpr"
