"""Builds the compiled parts of stib_fast; everything else is in pyproject.toml.

STIB_FAST_SKIP_EXT=1     builds none: the package then runs on eager PyTorch and plain Python.
STIB_FAST_REQUIRE_EXT=1  makes a CPU part that can't be built an error (what `make` and CI want).
STIB_FAST_SANITIZE=1     compiles with the address and undefined-behaviour sanitizers.

A part that can't be built is left out, and the reason is kept in stib_fast/_build.json, where
`stib doctor` finds it: without torch there are no tensor ops, without the CUDA build of torch and
the CUDA toolkit no GPU library.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

try:
    import torch
    from torch.utils import cpp_extension

    NO_TORCH = None
except ImportError as error:
    torch = None
    NO_TORCH = f"not built: torch could not be imported at build time ({error})"

ROOT = Path(__file__).parent
BUILD_INFO = ROOT / "stib_fast" / "_build.json"
TORCH_TARGET = "0x020a000000000000"  # the stable ABI of torch 2.10
SOURCES = {
    "cpp": [
        "csrc/gaussian_mi/cpu.cpp",
        "csrc/knn_mi/cpu.cpp",
        "csrc/one_hot/cpu.cpp",
        "csrc/one_hot_conv1d/cpu.cpp",
    ],
    "smiles": ["csrc/smiles/module.cpp"],
    "cuda": ["csrc/gaussian_mi/cuda.cu", "csrc/smiles/cuda.cu"],
}
HEADERS = [str(path) for path in (ROOT / "csrc").rglob("*") if path.is_file()]
# The extensions of the host; a GPU library may be missing where these are required.
HOST = ("cpp", "smiles")
INSTEAD = {"cpp": "eager PyTorch", "smiles": "plain Python", "cuda": "the CPU"}


def is_set(name):
    return os.environ.get(name, "") not in ("", "0")


SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
SANITIZE_FLAGS = (
    ["-g", "-fno-omit-frame-pointer", *SANITIZE] if is_set("STIB_FAST_SANITIZE") else []
)
LINK_FLAGS = SANITIZE if is_set("STIB_FAST_SANITIZE") else []
CXX_FLAGS = ["-O3", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]


def as_system(paths):
    """Include paths whose warnings are not ours."""
    return [flag for path in paths for flag in ("-isystem", path)]


def cpu_extension():
    """The tensor ops on LibTorch's stable ABI: one library for every Python."""
    if torch is None:
        return NO_TORCH
    return cpp_extension.CppExtension(
        name="stib_fast._cpu",
        sources=SOURCES["cpp"],
        include_dirs=[str(ROOT / "csrc")],
        depends=HEADERS,
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
        extra_compile_args=as_system(cpp_extension.include_paths()) + CXX_FLAGS + SANITIZE_FLAGS,
        extra_link_args=LINK_FLAGS,
        py_limited_api=True,
    )


def smiles_extension():
    """The tokeniser as a pybind11 module: it knows Python strings, so it is of one Python."""
    try:
        import pybind11
    except ImportError as error:
        return f"not built: pybind11 could not be imported at build time ({error})"
    return Extension(
        name="stib_fast._smiles",
        sources=SOURCES["smiles"],
        include_dirs=[str(ROOT / "csrc")],
        depends=HEADERS,
        extra_compile_args=as_system([pybind11.get_include()]) + CXX_FLAGS + SANITIZE_FLAGS,
        extra_link_args=LINK_FLAGS,
        language="c++",
    )


def cuda_extension():
    """The tensor ops on a GPU."""
    if torch is None:
        return NO_TORCH
    if torch.version.cuda is None:
        return f"not built: torch {torch.__version__} is built without CUDA"
    if cpp_extension.CUDA_HOME is None:
        return "not built: no CUDA toolkit was found (set CUDA_HOME)"
    return cpp_extension.CUDAExtension(
        name="stib_fast._cuda",
        sources=SOURCES["cuda"],
        include_dirs=[str(ROOT / "csrc")],
        depends=HEADERS,
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET), ("USE_CUDA", None)],
        extra_compile_args={
            "cxx": CXX_FLAGS,
            "nvcc": ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-Xptxas", "-v"],
        },
        py_limited_api=True,
    )


def compiler_version():
    compiler = os.environ.get("CXX", "c++").split()[0]
    try:
        answer = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    except OSError:
        return compiler
    return answer.stdout.partition("\n")[0]


class BuildOrExplain(build_ext if torch is None else cpp_extension.BuildExtension):
    """Builds what can be built and records why the rest is not."""

    def run(self):
        results = dict(outcomes)
        every, compiler, built = self.extensions, self.compiler, []
        # One by one: torch checks compilers before it builds, for all that it is given.
        for extension in every:
            name = NAMES[extension.name]
            self.extensions, self.compiler = [extension], compiler
            try:
                super().run()
                results[name] = "built"
                built.append(extension)
            except Exception as error:
                if name in HOST and is_set("STIB_FAST_REQUIRE_EXT"):
                    raise
                results[name] = f"not built: {type(error).__name__}: {error}".splitlines()[0]
        self.extensions = built
        for name, result in results.items():
            if result != "built":
                print(f"stib_fast: {name} library {result}; {INSTEAD[name]} it is", file=sys.stderr)
        facts = {"torch": torch.__version__ if torch else None, "compiler": compiler_version()}
        BUILD_INFO.write_text(json.dumps({**results, **facts}, indent=2) + "\n")

    def get_ext_filename(self, name):
        # setuptools asks with and without the package before the name.
        if name.endswith("_smiles"):
            return build_ext.get_ext_filename(self, name)
        return super().get_ext_filename(name)


class BuildPyAfterExtensions(build_py):
    """The record of the extensions' build is package data: write it first."""

    def run(self):
        self.run_command("build_ext")
        super().run()


NAMES = {"stib_fast._cpu": "cpp", "stib_fast._smiles": "smiles", "stib_fast._cuda": "cuda"}
if is_set("STIB_FAST_SKIP_EXT"):
    outcomes = dict.fromkeys(SOURCES, "not built: STIB_FAST_SKIP_EXT was set")
else:
    outcomes = {"cpp": cpu_extension(), "smiles": smiles_extension(), "cuda": cuda_extension()}
missing = [f"{name} library {outcomes[name]}" for name in HOST if isinstance(outcomes[name], str)]
if missing and is_set("STIB_FAST_REQUIRE_EXT"):
    sys.exit(f"stib_fast: {'; '.join(missing)}, and STIB_FAST_REQUIRE_EXT is set")
extensions = [outcome for outcome in outcomes.values() if not isinstance(outcome, str)]
options = {} if torch is None else {"no_python_abi_suffix": True}
command = BuildOrExplain.with_options(**options) if options else BuildOrExplain
setup(
    ext_modules=extensions,
    cmdclass={"build_ext": command, "build_py": BuildPyAfterExtensions},
)
