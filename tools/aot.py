"""Compiles every Triton kernel for the GPUs named, on a machine without one.

    python -m tools.aot [--arch 80 90 100] [--only TEXT]

prints registers, stack (where spilled registers go), shared memory and seconds of each. A named
configuration is a call of a kernel's host function on tensors without storage: what it launches,
with its meta-parameters and the specialisation Triton would choose, is what is compiled.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stib_fast.kernels import gaussian_mi, knn_mi, one_hot, one_hot_conv1d
from tools.configurations import gaussian_mi as gaussian_mi_configurations
from tools.configurations import knn_mi as knn_mi_configurations
from tools.configurations import one_hot as one_hot_configurations

MODULES = (one_hot, one_hot_conv1d, knn_mi, gaussian_mi)
CONFIGURATIONS: dict[str, Callable[[], Any]] = {
    **one_hot_configurations.CONFIGURATIONS,
    **knn_mi_configurations.CONFIGURATIONS,
    **gaussian_mi_configurations.CONFIGURATIONS,
}
# Shared memory a program may have: CUDA programming guide, technical specifications.
ARCHITECTURES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
OPTIONS = ("num_warps", "num_ctas", "num_stages", "maxnreg", "enable_fp_fusion")
TYPES = {
    torch.bool: "i1",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}


class Launch(NamedTuple):
    """One kernel as its host function launches it."""

    kernel: Any
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], list[list[Any]]]
    options: dict[str, Any]


class Compiled(NamedTuple):
    """What the compiler made of a launch."""

    kernel: str
    registers: int
    stack: int
    shared: int
    seconds: float


def _launch_of(kernel: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Launch:
    """Types and specialisation of a call: 1 is a constant, multiples of 16 are known as such."""
    options = {name: keywords.pop(name) for name in OPTIONS if name in keywords}
    values = dict(zip(kernel.arg_names, arguments, strict=False)) | keywords
    launch = Launch(kernel, {}, {}, {}, options)
    for i, parameter in enumerate(kernel.params):
        launch.signature[parameter.name] = _specialise(
            values[parameter.name], parameter, (i,), launch
        )
    return launch


def _specialise(value: Any, parameter: Any, path: tuple[int, ...], launch: Launch) -> Any:
    """The type of an argument, or of each in a tuple; notes its constant or attributes."""
    if isinstance(value, tuple) and not parameter.is_constexpr:
        return tuple(_specialise(x, parameter, (*path, i), launch) for i, x in enumerate(value))
    if isinstance(value, torch.Tensor):
        launch.attributes[path] = [["tt.divisibility", 16]]
        return f"*{TYPES[value.dtype]}"
    if parameter.is_constexpr or (value == 1 and not parameter.do_not_specialize):
        launch.constants[path] = value
        return "constexpr"
    if value % 16 == 0 and not parameter.do_not_specialize:
        launch.attributes[path] = [["tt.divisibility", 16]]
    return "i32" if -(2**31) <= value < 2**31 else "i64"


class _Recorder:
    """Stands in for a kernel and notes its launches."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def note(*arguments: Any, **keywords: Any) -> None:
            self.launches.append(_launch_of(self.kernel, arguments, keywords))

        return note


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Let the kernels' host functions launch nothing: the list says what they would."""
    launches: list[Launch] = []
    kernels = [
        (module, name, value)
        for module in MODULES
        for name, value in vars(module).items()
        if isinstance(value, triton.runtime.JITFunction) and name.endswith("_kernel")
    ]
    for module, name, kernel in kernels:
        setattr(module, name, _Recorder(kernel, launches))
    try:
        yield launches
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)


def compile_launch(launch: Launch, architecture: int) -> Compiled:
    """Compile for sm_`architecture` and read what the binary needs."""
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    target = GPUTarget("cuda", architecture, 32)
    begin = time.perf_counter()
    compiled = triton.compile(source, target=target, options=launch.options)
    seconds = time.perf_counter() - begin
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))  # type: ignore[index]
    return Compiled(launch.kernel.__name__, registers, stack, compiled.metadata.shared, seconds)


def launches_of(name: str) -> list[Launch]:
    """The launches of a named configuration."""
    with recorded_launches() as launches:
        CONFIGURATIONS[name]()
    return launches


def main() -> None:
    """Print the table; exit with 1 where registers spill or shared memory does not suffice."""
    parser = argparse.ArgumentParser(description="Compile the Triton kernels without a GPU.")
    parser.add_argument(
        "--arch", type=int, nargs="+", choices=ARCHITECTURES, default=[*ARCHITECTURES]
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="configurations that hold TEXT")
    arguments = parser.parse_args()
    triton.knobs.compilation.always_compile = True
    print(f"triton {triton.__version__}")
    print(f"{'configuration':46}{'kernel':40}{'sm':>4}{'regs':>6}{'stack':>7}{'shared':>8}{'s':>6}")
    faults = 0
    for name in CONFIGURATIONS:
        if arguments.only not in name:
            continue
        for launch in launches_of(name):
            for architecture in arguments.arch:
                made = compile_launch(launch, architecture)
                bad = made.stack > 0 or made.shared > ARCHITECTURES[architecture]
                faults += bad
                print(
                    f"{name:46}{made.kernel:40}{architecture:4}{made.registers:6}{made.stack:7}"
                    f"{made.shared:8}{made.seconds:6.1f}{'  <-- too much' if bad else ''}"
                )
    if faults:
        sys.exit(f"{faults} kernels spill registers or ask for too much shared memory")


if __name__ == "__main__":
    main()
