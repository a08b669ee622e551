"""Builds the C++ library of stib_fast; everything else is in pyproject.toml.

STIB_FAST_SKIP_EXT=1     builds none: the package then runs on eager PyTorch.
STIB_FAST_REQUIRE_EXT=1  makes a library that can't be built an error (what `make` and CI want).
STIB_FAST_SANITIZE=1     compiles with the address and undefined-behaviour sanitizers.

Without torch or a working compiler the build goes on without the library, says so, and leaves the
reason in stib_fast/_build.json, where `stib doctor` finds it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
BUILD_INFO = ROOT / "stib_fast" / "_build.json"
TORCH_TARGET = "0x020a000000000000"  # the stable ABI of torch 2.10


def is_set(name):
    return os.environ.get(name, "") not in ("", "0")


def record(reason, **facts):
    BUILD_INFO.write_text(json.dumps({"cpp": reason, **facts}, indent=2) + "\n")


def compiler_version():
    from torch.utils.cpp_extension import get_cxx_compiler

    answer = subprocess.run([get_cxx_compiler(), "--version"], capture_output=True, text=True)
    return answer.stdout.partition("\n")[0]


def cpu_extension():
    from torch.utils.cpp_extension import CppExtension, include_paths

    # As system headers, torch's own warnings are not ours.
    include = [flag for path in include_paths() for flag in ("-isystem", path)]
    flags = [*include, "-O3", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
    link = []
    if is_set("STIB_FAST_SANITIZE"):
        sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        flags += ["-g", "-fno-omit-frame-pointer", *sanitize]
        link += sanitize
    return CppExtension(
        name="stib_fast._cpu",
        sources=["csrc/gaussian_mi/cpu.cpp"],
        include_dirs=[str(ROOT / "csrc")],
        depends=[str(path) for path in (ROOT / "csrc").rglob("*") if path.is_file()],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
        extra_compile_args=flags,
        extra_link_args=link,
        py_limited_api=True,
    )


def extension_build():
    """The extensions and the command that builds them, or none and the reason."""
    if is_set("STIB_FAST_SKIP_EXT"):
        return [], explaining("not built: STIB_FAST_SKIP_EXT was set")
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension
    except ImportError as error:
        return [], explaining(f"not built: torch could not be imported at build time ({error})")

    class BuildOrExplain(BuildExtension):
        def run(self):
            try:
                super().run()
                record("built", torch=torch.__version__, compiler=compiler_version())
            except Exception as error:
                if is_set("STIB_FAST_REQUIRE_EXT"):
                    raise
                reason = f"not built: {type(error).__name__}: {error}".splitlines()[0]
                record(reason)
                print(f"stib_fast: C++ library {reason}; eager PyTorch it is", file=sys.stderr)

    return [cpu_extension()], BuildOrExplain.with_options(no_python_abi_suffix=True)


def explaining(reason):
    """A build_ext that builds nothing and records why."""
    if is_set("STIB_FAST_REQUIRE_EXT"):
        sys.exit(f"stib_fast: C++ library {reason}, and STIB_FAST_REQUIRE_EXT is set")

    class Explain(build_ext):
        def run(self):
            record(reason)
            print(f"stib_fast: C++ library {reason}; eager PyTorch it is", file=sys.stderr)

    return Explain


class BuildPyAfterExtension(build_py):
    """The record of the extension's build is package data: write it first."""

    def run(self):
        self.run_command("build_ext")
        super().run()


extensions, build_ext_command = extension_build()
setup(
    ext_modules=extensions,
    cmdclass={"build_ext": build_ext_command, "build_py": BuildPyAfterExtension},
)
