"""The device of a run and how its steps are executed: choice, record and refusal."""

import csv

import pytest
import torch
import yaml

from stib_fast.cli import main
from stib_fast.cli import train as cli_train
from stib_fast.training import Artificial, Execution, train
from stib_fast.training.checkpoint import load_checkpoint

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is usable here")
SMALL = ["--optimisation.steps", "6", "--optimisation.batch", "32", "--model.hidden", "[16]"]
SMALL += ["--optimisation.evaluations", "1"]


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    for usable, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda usable=usable: usable)
        assert Execution(amp=True).resolved() == Execution(device, amp=True)


@WITHOUT_GPU
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda"], "finds no GPU here"),
        (["--cuda-graph"], "needs a GPU, but the device is the CPU"),
        (["--cuda-graph", "--device", "cuda"], "finds no GPU here"),
        (["--cuda-graph", "--micro-batch", "8"], "drop --micro-batch"),
        (["--micro-batch", "0"], "micro_batch must be at least 1"),
    ],
)
def test_a_gpu_that_is_not_there_is_a_line_and_leaves_no_folder(tmp_path, capsys, options, message):
    assert main(["train", "artificial", "--run", str(tmp_path / "run"), *SMALL, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


class Unmeasured(Artificial):
    """The artificial experiment without its slow measurements."""

    def measure(self, model):
        return dict.fromkeys(self.figures, 0.5)


def test_the_run_folder_says_how_it_was_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_train, "Artificial", Unmeasured)
    monkeypatch.setattr(cli_train, "_train_and_report", lambda *given, resume: train(*given[:2]))
    folder = tmp_path / "run"
    options = ["--run", str(folder), *SMALL, "--device", "cpu", "--amp"]
    assert main(["train", "artificial", *options]) == 0
    recorded = yaml.safe_load((folder / "config.yaml").read_text())["execution"]
    assert recorded == vars(Execution("cpu", amp=True))
    assert load_checkpoint(folder / "checkpoint.pt")["device"] == "cpu"
    again = tmp_path / "again"  # the folder's own configuration starts the same run
    config = ["--config", str(folder / "config.yaml")]
    assert main(["train", "artificial", *config, "--run", str(again)]) == 0
    texts = [(run / "metrics.csv").read_text() for run in (folder, again)]
    assert texts[0] == texts[1]
    assert len(list(csv.DictReader(texts[0].splitlines()))) == 6
