"""`stib reproduce` and `stib results`: every experiment, small, from units to the page."""

import json
import random
import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread, imsave
from rdkit import RDLogger

import stib_fast.cli.reproduce
import stib_fast.cli.train
import stib_fast.training.artificial
from stib_fast.cli import main
from stib_fast.cli.train import settings_of
from stib_fast.generation import GenerativeModel
from stib_fast.models import SmilesDecoder
from stib_fast.reports.tables import INVARIANCE_LEGEND, MOLECULES_LEGEND, ON_Z0_LEGEND
from stib_fast.reproduction import EXPERIMENTS, account

RDLogger.DisableLog("rdApp.*")
STEPS = "3"
PICTURES = {
    "artificial-paper": {"training.png"},
    "qm9": {"training.png"},
    "zinc": {"training.png"},
    "artificial-latent": {"latent.png"},
    "qm9-dimensions": {"dimensions.png"},
    "qm9-sections": {"sections.png"},
    "qm9-generation": {"consistency.png", "molecules.png"},
    "zinc-generation": {"consistency.png", "molecules.png"},
}


def babble(self, z):
    """Write a token for each of Z0's first dimensions, so that there is variety."""
    tokens = self.embedding.num_embeddings - 4
    ids = 4 + (torch.special.ndtr(z[:, :4]) * tokens).long().clamp(0, tokens - 1)
    rows = torch.full((len(z), self.max_length), self.pad_id)
    rows[:, :4] = ids
    rows[:, 4] = self.eos_id
    return rows


def write_tables(folder):
    """QM9 and ZINC in small: 340 molecules whose properties follow from counts of atoms."""
    draw = random.Random(0)
    smiles = set()
    while len(smiles) < 340:
        smiles.add("".join(draw.choices("CCNO", k=draw.randint(5, 10))))
    rows = [(s, s.count("O") + 0.5 * s.count("N"), len(s)) for s in sorted(smiles)]
    lines = [f"{s},{75 + n - o},{(5.5 + o) / 27.2114}" for s, o, n in rows]
    (folder / "qm9.csv").write_text("\n".join(["smiles,alpha,gap", *lines]) + "\n")
    lines = [f"{s},{0.4 + 0.1 * o}" for s, o, _ in rows]
    (folder / "zinc.csv").write_text("\n".join(["smiles,qed", *lines]) + "\n")


FILES = {None: None, "qm9": "qm9.csv", "zinc250k": "zinc.csv"}


def command(name, folder, out="out"):
    file = FILES[EXPERIMENTS[name].data]
    options = ["--data", str(folder / file)] if file else []
    return ["reproduce", name, "--out", str(folder / out), *options]


def first_molecule(self, values):
    """Take the Z1 of any molecule: three steps do not teach where the wanted values are."""
    return "CCCCC", self.encode(["CCCCC"]).z1


def draw_course(run, trained):
    imsave(run.folder / "training.png", np.eye(50))
    return []


@pytest.fixture(scope="module", autouse=True)
def _small():
    """Units run in this process, on few points, without figures and probes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stib_fast.cli.reproduce, "in_own_process", lambda words, lock: main(words))
        patch.setattr(stib_fast.cli.train, "write_report", draw_course)
        patch.setattr(stib_fast.training.artificial, "EVALUATION_POINTS", 300)
        patch.setattr(
            sys.modules["stib_fast.metrics.invariance"], "probe_r2", lambda z, y, seed: 0.25
        )
        patch.setattr(SmilesDecoder, "forward", babble)
        patch.setattr(GenerativeModel, "_z1_for", first_molecule)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every experiment, reproduced."""
    folder = tmp_path_factory.mktemp("reproduce")
    write_tables(folder)
    for name in EXPERIMENTS:
        assert main([*command(name, folder), "--steps", STEPS]) == 0, name
    return folder


def read(path):
    return json.loads(path.read_text())


def files(folder):
    return {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_leaves_tables_figures_and_a_record(name, folder):
    place = folder / "out" / name
    pictures = PICTURES.get(name, set())
    assert set(files(place)) == {"table.md", "experiment.json"} | pictures
    for picture in pictures:
        assert imread(place / picture)[..., :3].std() > 0.02, "the picture is blank"
        assert (place / picture).stat().st_size < 150_000
    record = read(place / "experiment.json")
    assert {picture["file"] for picture in record["pictures"]} == pictures
    assert record["steps"] == int(STEPS)
    table = (place / "table.md").read_text()
    assert table.startswith(f"**A trial of {STEPS} steps a training")
    assert "nan" not in table.lower()
    for unit in record["units"]:
        assert unit["command"] in table
        assert unit["seconds"] > 0
        assert unit["cpu_seconds"] > 0
        assert unit["processor"]
    for unit in record["units"]:
        if unit["command"].startswith("stib train"):
            assert unit["steps"] == int(STEPS)
            assert unit["peak_gb"] > 0.01
            assert unit["versions"]["torch"] == torch.__version__


def test_tables_hold_what_the_runs_measured(folder):
    def row(name, label):
        lines = (folder / "out" / name / "table.md").read_text().splitlines()
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
        (cells,) = [cells for first, *cells in rows if first == label]
        return cells

    runs = folder / "out" / "runs"
    seeds = [read(runs / f"artificial-stib-{seed}" / "evaluation.json") for seed in range(3)]
    assert (
        row("artificial", "ours: STIB, median")[0]
        == f"{np.median([s['mae_x'] for s in seeds]):.3f}"
    )
    for seed, figures in enumerate(seeds):
        assert row("artificial", f"ours: STIB, seed {seed}")[2] == f"{figures['mi_bits']:.3f}"
    assert row("artificial", "ours: CVAE")[1] == "–"
    assert row("artificial", "paper: STIB")[:2] == ["0.04", "0.47"]
    assert row("artificial-paper", "authors' code, last iteration")[:3] == [
        "0.055",
        "0.481",
        "0.348",
    ]

    selected = read(runs / "artificial-paper-0" / "selected.json")
    cells = row("artificial-paper", f"ours: selected, step {selected['step']}")
    assert cells[0] == f"{selected['mae_x']:.3f}"

    vae = read(runs / "qm9-vae" / "evaluation.json")
    assert row("qm9", "ours: VAE")[2] == f"{vae['mae_gap_ev']:.3f}"
    assert row("qm9", "ours: VAE, training part")[2] == f"{vae['train_mae_gap_ev']:.3f}"
    assert row("qm9", "VAE")[2] == f"{vae['mi_bits_whitened']:.3f}"
    # Properties are linear in counts of characters: ridge finds that, three steps do not.
    assert float(row("qm9", "ridge on n-grams")[2]) < 0.1 * float(row("qm9", "training mean")[2])
    assert row("zinc", "paper: STIB")[2] == "0.05"

    sizes = [(4, 2, 2), (8, 6, 2), (16, 12, 4)]
    for total, z0, z1 in sizes:
        assert len(row("qm9-dimensions", f"{total} ({z0} + {z1})")) == 6
    points = [read(runs / f"qm9-point-{i}" / "summary.json") for i in range(2)]
    assert row("qm9-generation", "new molecules, kept") == [str(p["kept"]) for p in points]
    assert points[0]["kept"] > 2
    assert points[0]["target"] == {"gap_ev": 6.0, "polarisability": 76.46}


def test_again_nothing_is_trained_and_tables_are_the_same(folder, capsys):
    before = {name: path.read_bytes() for name, path in files(folder / "out").items()}
    times = {name: path.stat().st_mtime_ns for name, path in files(folder / "out/runs").items()}
    for name in EXPERIMENTS:
        place = folder / "out" / name
        shutil.rmtree(place)
        assert main([*command(name, folder), "--steps", STEPS]) == 0
        assert f"written: {place}/table.md" in capsys.readouterr().out
    after = {name: path.read_bytes() for name, path in files(folder / "out").items()}
    assert after == before
    assert times == {n: p.stat().st_mtime_ns for n, p in files(folder / "out/runs").items()}


def test_an_unfinished_run_is_resumed_and_the_others_stay(folder, tmp_path, capsys):
    """As after Ctrl-C while the last step's model is measured: its checkpoint is there."""
    for name in ("qm9.csv", "zinc.csv"):
        shutil.copy(folder / name, tmp_path)
    shutil.copytree(folder / "out", tmp_path / "out")
    runs = tmp_path / "out" / "runs"
    (runs / "qm9-vae" / "evaluation.json").unlink()
    times = {name: path.stat().st_mtime_ns for name, path in files(runs).items()}
    assert main([*command("qm9", tmp_path), "--steps", STEPS]) == 0
    told = capsys.readouterr().err
    assert f"unit 3 of 5: qm9-vae (stib resume {runs}/qm9-vae)" in told
    assert told.count(" is done\n") == 4
    for file in ("runs/qm9-vae/evaluation.json", "qm9-sections/table.md"):
        assert (tmp_path / "out" / file).read_bytes() == (folder / "out" / file).read_bytes()
    changed = {
        name for name, path in files(runs).items() if path.stat().st_mtime_ns != times.get(name)
    }
    assert {name.partition("/")[0].removesuffix(".json") for name in changed} == {"qm9-vae"}


def test_the_page_holds_every_experiment_and_only_files_that_are_there(folder, tmp_path, capsys):
    page = tmp_path / "docs" / "results.md"
    assert main(["results", str(folder / "out"), "-o", str(page)]) == 0
    assert str(page) in capsys.readouterr().out
    text = page.read_text()
    for experiment in EXPERIMENTS.values():
        assert f"\n## {experiment.title}: a trial of {STEPS} steps\n" in text
        assert f"stib reproduce {experiment.name} " in text.replace("\n", " \n")
    assert "## Not run" not in text
    assert str(folder) not in text
    assert str(tmp_path) not in text
    shown = re.findall(r"!\[.+\]\((.+)\)", text)
    assert len(shown) == sum(map(len, PICTURES.values()))
    assert {str(path) for path in files(page.parent)} == {"results.md", *shown}
    # A line of text that follows a table without a gap would be a row of it.
    assert not re.search(r"\|\n[^|\n]", text)
    reading = text.partition("## How to read the tables\n")[2].partition("\n## ")[0]
    for legend in (ON_Z0_LEGEND, MOLECULES_LEGEND, INVARIANCE_LEGEND, account.LEGEND):
        assert legend in reading
        assert text.count(legend) == 1

    before = {name: path.read_bytes() for name, path in files(tmp_path).items()}
    assert main(["results", str(folder / "out"), "-o", str(page)]) == 0
    assert before == {name: path.read_bytes() for name, path in files(tmp_path).items()}


def test_what_was_not_run_is_listed(folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(folder / "out" / "qm9", out / "qm9")
    shutil.copytree(folder / "out" / "runs", out / "runs")
    assert main(["results", str(out), "-o", str(tmp_path / "page.md")]) == 0
    text = (tmp_path / "page.md").read_text()
    missing = text.partition("## Not run")[2].partition("\n## ")[0]
    assert re.findall(r"`(.+)`", missing) == [name for name in EXPERIMENTS if name != "qm9"]
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"qm9-training.png"}


def test_a_page_of_units_that_were_made_anew_is_refused(folder, tmp_path, capsys):
    out = tmp_path / "out"
    for name in ("qm9-sections", "runs"):
        shutil.copytree(folder / "out" / name, out / name)
    with (out / "runs" / "qm9-stib" / "checkpoint.pt").open("ab") as file:
        file.write(b"x")
    assert main(["results", str(out), "-o", str(tmp_path / "page.md")]) == 2
    message = capsys.readouterr().err
    assert "runs/qm9-stib/checkpoint.pt that is there: run `stib reproduce qm9-sections" in message


@pytest.mark.parametrize("page", ["out.md", "out/runs.md", "out/qm9-sections.md", "out/new.md"])
def test_a_page_whose_figures_would_come_among_the_results_is_refused(
    page, folder, tmp_path, capsys
):
    out = tmp_path / "out"
    for name in ("qm9-sections", "runs"):
        shutil.copytree(folder / "out" / name, out / name)
    before = files(out).keys()
    assert main(["results", str(out), "-o", str(tmp_path / page)]) == 2
    assert "its figures would come into" in capsys.readouterr().err
    assert files(out).keys() == before


def test_a_page_of_other_units_or_settings_than_todays_is_refused(
    folder, tmp_path, capsys, monkeypatch
):
    results = ["results", str(folder / "out"), "-o", str(tmp_path / "page.md")]
    sections = EXPERIMENTS["qm9-sections"]
    unit = sections.units[0]
    others = {
        "runs/qm9-stib was made by `stib": replace(unit, command=f"{unit.command} --batch 9"),
        "qm9-sections is of other units than today's": EXPERIMENTS["qm9"].units[2],
    }
    for message, other in others.items():
        with monkeypatch.context() as patch:
            patch.setitem(EXPERIMENTS, "qm9-sections", replace(sections, units=(other,)))
            assert main(results) == 2
        assert message in capsys.readouterr().err

    def of_another_day(arguments):
        settings = settings_of(arguments)
        return settings | {"optimisation": settings["optimisation"] | {"learning_rate": 0.5}}

    monkeypatch.setattr(stib_fast.cli.reproduce, "settings_of", of_another_day)
    assert main(results) == 2
    assert "was made with optimisation.learning_rate 0.002, which" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "qm7"], "choose from artificial-latent, artificial, artificial-paper, arti"),
        (["reproduce", "qm9"], "qm9 needs --data, the file of qm9; `stib data fetch qm9` gets it"),
        (["reproduce", "zinc", "--data", "no.csv"], "--data no.csv: there is no such file"),
        (["reproduce", "artificial", "--data", "x.csv"], "artificial draws its data: drop --data"),
        (["reproduce", "artificial", "--steps", "0"], "--steps must be at least 1, not 0"),
        (["results", ".", "-o", "page"], "-o page: the page is Markdown: let its name end in .md"),
        (["reproduce", "qm9", "--data", "."], "--data . is a folder, not a file or token cache"),
        (["results", "nowhere", "-o", "page.md"], "nowhere holds no finished experiment: `stib re"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error.replace("'", "")
    assert error.startswith("stib: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_whole_run_is_not_taken_for_a_trial(folder, capsys):
    assert main(command("artificial", folder)) == 2
    assert "was made by `stib train artificial --model stib" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"units": []}', '{"steps": 1, "data": null, "pictures": [{}], "units": []}'],
)
def test_damaged_and_missing_files_of_an_experiment(text, folder, tmp_path, capsys):
    place = tmp_path / "out" / "qm9-sections"
    shutil.copytree(folder / "out" / "runs", tmp_path / "out" / "runs")
    shutil.copytree(folder / "out" / "qm9-sections", place)
    (place / "sections.png").unlink()
    page = ["results", str(place.parent), "-o", str(tmp_path / "page.md")]
    assert main(page) == 2
    assert "sections.png" in capsys.readouterr().err
    (place / "experiment.json").write_text(text)
    assert main(page) == 2
    message = "experiment.json is damaged: `stib reproduce qm9-sections --data FILE --out "
    assert message in capsys.readouterr().err


def test_a_unit_that_fails_is_named_after_its_own_message(tmp_path, capsys):
    (tmp_path / "qm9.csv").write_text("smiles,alpha,gap\n" + "CO,1,2\n" * 30)
    assert main(command("qm9-sections", tmp_path)) == 2
    unit, failed = capsys.readouterr().err.splitlines()[-2:]
    assert unit.startswith("stib: ")
    assert "qm9.csv" in unit
    assert failed.startswith("stib: qm9-stib failed with exit code 2: `stib train qm9 --data")
