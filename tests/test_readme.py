"""The README's Python runs, and its commands exist."""

import re
import shlex
from pathlib import Path

import pytest

from stib_fast.cli import _parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def commands(program):
    lines = (
        line.partition("#")[0].strip() for block in blocks("bash") for line in block.splitlines()
    )
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{program} ")]


@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_the_invariance_example_stays_short():
    (example,) = [code for code in blocks("python") if "InvarianceCritic(" in code]
    assert len(example.strip().splitlines()) <= 20


@pytest.mark.parametrize("target", commands("make"))
def test_make_targets_exist(target):
    assert re.search(rf"^{target[0]}:", (ROOT / "Makefile").read_text(), flags=re.M)


@pytest.mark.parametrize("arguments", commands("stib"), ids=" ".join)
def test_stib_commands_parse(arguments):
    _parser().parse_args(arguments)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
