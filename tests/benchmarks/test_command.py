"""`python -m benchmarks`: what it asks for, refuses and writes."""

from __future__ import annotations

import csv
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are not installed
from benchmarks import __main__ as command
from benchmarks import gaussian_mi, harness, molecules

ROOT = Path(__file__).parents[2]
QUICK = ["gaussian_mi", "--quick", "--threads", "1", "--shapes", "60x2+2"]
QUICK += ["--providers", "ours fast,eager"]
GPU_OPS = ("gaussian_mi", "training_step", "smiles", "one_hot", "one_hot_conv1d", "knn_mi")


@pytest.fixture
def tested(monkeypatch):
    """The files that would have been tested, which pass."""
    files = []
    monkeypatch.setattr(command, "tests_pass", lambda paths, device: not files.extend(paths))
    return files


def test_ops_are_listed_with_their_files(capsys):
    assert command.main([]) == 0
    out = capsys.readouterr().out
    for op in command.OPS:
        assert (ROOT / "benchmarks" / f"{op}.py").exists()
        assert f"  {op} " in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "no benchmark 'nothing'; there are gaussian_mi, "),
        (["gaussian_mi", "--providers", "ours,other"], "no provider 'other'; there are ours; "),
        (["gaussian_mi", "--shapes", "zinc,60x2"], r"ROWSxN\+M.*got '60x2'; sets .*: paper, zinc"),
        (["one_hot", "--shapes", "int7-BLV"], "DTYPE-LAYOUT"),
        (["one_hot_conv1d", "--shapes", "9"], "BxF"),
        (["training_step", "--shapes", "x"], "a number of rows"),
        (["smiles", "--shapes", "x"], "a task"),
        (["smiles", "--strings", "nowhere"], "no file nowhere"),
        (["gaussian_mi", "--threads", "0"], "numbers from 1 to"),
        (["gaussian_mi", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["token_cache", "--device", "cuda"], "no benchmark on cuda"),
        (["gaussian_mi", "--unknown"], "unrecognized arguments: --unknown"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments_are_answered_in_a_line(arguments, says, capsys):
    with pytest.raises(SystemExit) as error:
        command.main(arguments)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmarks: ")
    assert re.search(says, line)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("op", GPU_OPS)
def test_a_gpu_that_is_not_there(op, capsys):
    with pytest.raises(SystemExit) as error:
        command.main([op, "--device", "cuda"])
    assert error.value.code == 2
    assert "no GPU is usable here" in capsys.readouterr().err


def test_words_choose_providers_and_sets_choose_shapes():
    on = gaussian_mi.BENCHMARK.on["cpu"]
    chosen = command.chosen_providers(on, ["ours", "careful", "naive", "compile"])
    assert chosen == list(gaussian_mi.PROVIDERS)
    assert command.chosen_providers(on, ["compile"]) == [n for n in chosen if "compiled" in n]
    shapes = command.chosen_shapes(gaussian_mi.BENCHMARK, on, ["paper", "60x2+2", "7x1+1"])
    assert [str(shape) for shape in shapes] == ["60x2+2", "7x1+1"]


@pytest.mark.parametrize("op", command.OPS)
def test_what_an_op_names_is_there(op):
    benchmark = importlib.import_module(f"benchmarks.{op}").BENCHMARK
    for on in benchmark.on.values():
        assert all((ROOT / path).exists() for path in on.tests)
        texts = [*on.quick, *(text for group in on.shapes.values() for text in group)]
        assert [str(benchmark.parse(text)) for text in texts] == texts
    for name in benchmark.on["cpu"].kernels:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"stib_fast::{name}", "CPU")


def test_an_op_whose_tests_fail_is_not_reported(monkeypatch, tmp_path, capsys):
    bad = tmp_path / "test_bad.py"
    bad.write_text("def test_sum():\n    assert 1 + 1 == 3\n")
    on = gaussian_mi.BENCHMARK.on["cpu"]
    monkeypatch.setitem(
        gaussian_mi.BENCHMARK.on, "cpu", harness.On(**{**vars(on), "tests": [str(bad)]})
    )
    assert command.main([*QUICK, "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.out
    assert "test_bad.py::test_sum" in captured.out
    assert "gaussian_mi is not reported: its tests fail" in captured.err
    assert not (tmp_path / "out").exists()


def test_tests_that_pass_or_are_not_there(tmp_path):
    good = tmp_path / "test_good.py"
    good.write_text(
        "import os\ndef test_setting():\n    assert os.environ['TRITON_INTERPRET'] == '0'\n"
    )
    assert command.tests_pass([str(good)], "cuda")
    good.write_text("")
    assert not command.tests_pass([str(good)], "cuda")


def test_a_fallback_is_not_reported(monkeypatch, tested, tmp_path, capsys):
    monkeypatch.setattr(harness, "backend_for", lambda device, offered: "eager")
    assert command.main([*QUICK, "--out", str(tmp_path / "out")]) == 1
    assert "'cpp' was asked for but 'eager' would run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("library")
def test_a_quick_run(monkeypatch, tested, tmp_path, capsys):
    monkeypatch.setattr(harness, "rotation_size", lambda size, device: 4)
    monkeypatch.setattr(harness, "COPY_BYTES", {"cpu": 2**22})
    monkeypatch.setattr(harness, "PRODUCT_SIZE", {"cpu": 64})
    assert command.main([*QUICK, "--out", str(tmp_path)]) == 0
    assert tested == list(gaussian_mi.TESTS)
    out = capsys.readouterr().out
    assert "60x2+2, 1 thread" in out
    assert "Faster than ours:" in out
    with (tmp_path / "gaussian_mi.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("device", "shape", "threads", "pass", "provider", "ms", "ms_20", "ms_80"),
        *("over_careful_float32", "over_careful_float64", "share_of_floor", "share_of_limit"),
        *("gradient_error", "peak_extra_mb", "launches"),
        *("stib_fast", "torch", "triton", "commit"),
    ]
    providers = ["ours fast", "ours, eager backend", "careful float64 eager"]
    providers += ["careful float32 eager", "naive eager"]
    for pass_ in ("forward", "backward", "both"):
        found = [row for row in rows if row["pass"] == pass_]
        names = [row["provider"] for row in found if row["provider"][0] != "("]
        assert names == providers
        careful = next(row for row in found if row["provider"] == "careful float32 eager")
        for row in found:
            assert float(row["ms_20"]) <= float(row["ms"]) <= float(row["ms_80"])
            ratio = float(careful["ms"]) / float(row["ms"])
            assert float(row["over_careful_float32"]) == pytest.approx(ratio)
    both = [row["provider"] for row in rows if row["pass"] == "both"]
    assert both[-2:] == list(gaussian_mi.BOUNDARY)
    record = json.loads((tmp_path / "gaussian_mi.json").read_text())
    assert {"device", "torch", "python", "library", "commit", "machine"} <= set(record)
    assert record["tested"] is True
    assert (tmp_path / "gaussian_mi.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("library")
def test_stages_alone():
    shape = gaussian_mi.Shape(200, 3, 2)
    (inputs,) = gaussian_mi.input_sets(shape, 1, torch.device("cpu"))
    stages = gaussian_mi.stages(*inputs[:2])
    count, _, scatter = stages["moments"](*inputs)
    assert count.item() == 200
    centred = torch.cat(inputs[:2], 1).detach().double()
    centred -= centred.mean(0)
    torch.testing.assert_close(scatter, centred.mT @ centred)
    assert [rows.shape for rows in stages["apply"](*inputs)] == [(200, 3), (200, 2)]


def test_a_gpu_benchmark_needs_no_package_for_molecules():
    code = """
import sys
for name in ("rdkit", "jsonargparse", "pyarrow", "matplotlib", "scipy", "sklearn", "tokenizers"):
    sys.modules[name] = None
import importlib
for op in sys.argv[1:]:
    importlib.import_module(f"benchmarks.{op}")
"""
    command = [sys.executable, "-c", code, *GPU_OPS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_strings_without_a_path_are_skipped_visibly_on_a_gpu(capsys):
    from benchmarks import smiles

    machine = harness.Machine(1, 1, {})
    setting = harness.Setting(torch.device("cuda"), "auto", machine)
    assert list(smiles.measure("encode", (), setting)) == []
    assert "SKIPPED: bytes to ids on a GPU needs --strings PATH" in capsys.readouterr().out


def test_strings_are_read_from_text_and_csv(monkeypatch, tmp_path):
    monkeypatch.delenv("STIB_FAST_DATA", raising=False)
    text, table = tmp_path / "a.smi", tmp_path / "a.csv"
    text.write_text("CCO ethanol\n\nC\n")
    table.write_text("smiles,qed\nCCO,0.5\nC ,\n")
    assert molecules.load(text) == molecules.Molecules("a.smi", ["CCO", "C"], [0.03, 0.01])
    assert molecules.load(table) == molecules.Molecules("a.csv", ["CCO", "C"], [0.5, 0.01])
    assert molecules.load(text, 1).strings == ["CCO"]
    made_up = molecules.load(None, 3)
    assert len(made_up.strings) == 3
    assert made_up.source == "made up of ZINC's tokens"
