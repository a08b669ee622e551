from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

import stib_fast

# The same examples in every run: a failure seen once is seen again.
hypothesis.settings.register_profile("reproducible", deadline=None, derandomize=True)
hypothesis.settings.load_profile("reproducible")

# Only who asks for no library tests without it: one that is missing fails the tests.
WITHOUT_LIBRARY = os.environ.get("STIB_FAST_SKIP_EXT", "") not in ("", "0")
BACKENDS = ["eager"] if WITHOUT_LIBRARY else ["cpp", "eager"]


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """One seed; one thread, so that tests do not compete for cores: tests of threads set more."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test runs once on each backend."""
    with stib_fast.backend(request.param):
        yield request.param


@pytest.fixture(scope="session")
def library() -> None:
    """The compiled library, for tests that are about nothing else."""
    if WITHOUT_LIBRARY:
        pytest.skip("STIB_FAST_SKIP_EXT asks for no library")
    assert stib_fast.backends.cpp_unusable is None, stib_fast.backends.cpp_unusable


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the molecule files."""
    if "STIB_FAST_DATA" not in os.environ:
        pytest.skip("STIB_FAST_DATA is not set: it points to the folder of the molecule files")
    return Path(os.environ["STIB_FAST_DATA"])
