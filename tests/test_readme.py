"""The README's Python runs, and its commands exist."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from torch.distributed.run import get_args_parser as torchrun_parser

from stib_fast.cli import _parser
from stib_fast.cli.train import spelled_out
from stib_fast.functional import knn_mi

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = README + (ROOT / "docs" / "scaling.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGES, flags=re.S)


def commands(program):
    lines = (
        line.partition("#")[0].strip() for block in blocks("bash") for line in block.splitlines()
    )
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{program} ")]


@pytest.mark.parametrize("code", [code for code in blocks("python") if "Critic(" not in code])
def test_python_examples_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_the_invariance_example_is_short_and_removes_what_it_should():
    (example,) = [code for code in blocks("python") if "InvarianceCritic(" in code]
    assert len(example.strip().splitlines()) <= 20
    nats = {}
    for weight in ("1.0", "0.0"):
        space: dict = {}
        exec(example.replace("weight=1.0", f"weight={weight}"), space)
        x = torch.randn(5000, 2)
        with torch.no_grad():
            z = space["encoder"](x) + 0.1 * torch.randn(5000, 2)
            nats[weight] = float(knn_mi(z, x[:, :1]))
    # Independence reads 0 to about 0.02 at this size.
    assert nats["1.0"] < 0.1 < nats["0.0"]


def test_nothing_is_left_to_fill_in():
    assert "<!--" not in PAGES
    assert not re.search(r"@\w+@", PAGES)


@pytest.mark.parametrize("target", commands("make"))
def test_make_targets_exist(target):
    assert re.search(rf"^{target[0]}:", (ROOT / "Makefile").read_text(), flags=re.M)


@pytest.mark.parametrize("arguments", commands("torchrun"), ids=" ".join)
def test_torchrun_commands_parse(arguments):
    options = torchrun_parser().parse_args(arguments)
    assert options.module
    assert options.training_script == "stib_fast"
    _parser().parse_args(arguments[arguments.index("--") + 1 :])


@pytest.mark.parametrize("arguments", commands("stib"), ids=" ".join)
def test_stib_commands_parse(arguments):
    _parser().parse_args(spelled_out(arguments))


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
