"""`stib generate`, as a user meets it."""

import csv
import json
import random
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch
from rdkit import RDLogger

import stib_fast
from stib_fast.cli import main
from stib_fast.models import SmilesDecoder
from stib_fast.reports.generation import generation_page, write_generation

RDLogger.DisableLog("rdApp.*")
SIZES = ["--model.channels", "4", "--model.encoder_hidden", "8", "--model.decoder_hidden", "8"]
STEPS = ["--optimisation.steps", "150", "--optimisation.batch", "32"]
STEPS += ["--optimisation.learning_rate", "1e-2", "--optimisation.warmup", "10"]
STEPS += ["--optimisation.invariance_weight", "0"]


@pytest.fixture(autouse=True)
def _babble(monkeypatch):
    """A decoder that writes a token for each of Z0's first dimensions, so that there is variety."""

    def forward(self, z):
        tokens = self.embedding.num_embeddings - 4
        ids = 4 + (torch.special.ndtr(z[:, :7]) * tokens).long().clamp(0, tokens - 1)
        rows = torch.full((len(z), self.max_length), self.pad_id)
        rows[:, :7] = ids
        rows[:, 7] = self.eos_id
        return rows

    monkeypatch.setattr(SmilesDecoder, "forward", forward)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    draw = random.Random(0)
    strings = sorted({"".join(draw.choices("CCNO", k=draw.randint(4, 9))) for _ in range(160)})
    rows = [f"{s},{60 + len(s)},{0.2 + 0.01 * s.count('O')}" for s in strings]
    folder = tmp_path_factory.mktemp("generate")
    (folder / "molecules.csv").write_text("\n".join(["smiles,alpha,gap", *rows]) + "\n")
    command = ["train", "qm9", "--data", str(folder / "molecules.csv"), *SIZES, *STEPS]
    options = ["--molecules.test_fraction", "0.2", "--optimisation.evaluations", "1"]
    assert main([*command, *options, "--run", str(folder / "run")]) == 0
    return folder / "run"


class Page(HTMLParser):
    """Collects the tags, and checks that each is closed in turn."""

    VOID = ("meta", "path", "rect", "ellipse", "use", "line", "circle", "polygon")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words += data


def test_a_reference_gives_a_table_a_summary_and_a_page(run, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    command = ["generate", str(run), "--reference", "CCCOCN", "-n", "200", "--formula", "any"]
    assert main([*command, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    kept = summary["kept"]
    assert kept > 2
    assert summary["sampled"] == 200 == kept + sum(summary["dropped"].values())
    assert f"{kept:6,} new molecules, kept" in shown
    assert str(out / "index.html") in shown

    with (out / "molecules.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == kept
    assert list(rows[0]) == [
        "smiles", "canonical_smiles", "z0_distance", "gap_ev", "polarisability",
        "gap_ev_minus_wanted", "polarisability_minus_wanted",
    ]  # fmt: skip
    off = [abs(float(row["gap_ev"]) - summary["wanted"]["gap_ev"]) for row in rows]
    # The table holds seven digits.
    assert sum(off) / kept == pytest.approx(summary["consistency"]["gap_ev"]["mae"], abs=1e-5)
    assert sum(off) / kept > 1e-3

    page = Page((out / "index.html").read_text())
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(attributes["role"] == "img" for attributes in drawings)
    labels = [attributes["aria-label"] for attributes in drawings]
    assert labels[0] == "Structure of CCCOCN"
    assert labels[1:3] == [f"Structure of {row['smiles']}" for row in rows[:2]]
    assert sum(label.startswith("Box plots") for label in labels) == 1
    assert len(drawings) == 2 + min(kept, 62)
    # Nothing is fetched: an SVG refers to parts of itself alone.
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe")
        assert not {"src", "srcset"} & attributes.keys()
        assert attributes.get("href", attributes.get("xlink:href", "#")).startswith("#")
    assert f"{kept} new molecule" in page.words
    assert "polarisability" in page.words


@pytest.mark.parametrize("form", ["gap={:.3f},polarisability={:.3f}", " gap_ev = {:.3f} "])
def test_target_values_with_and_without_unit(form, run, tmp_path):
    near = stib_fast.load(run).predict(["CCCOCN"])[0].tolist()
    command = ["generate", str(run), "--target", form.format(*near), "-n", "20"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    expected = dict(zip(("gap_ev", "polarisability"), near, strict=True))
    assert (
        summary["target"]
        == {
            name: pytest.approx(expected[name], abs=5e-4)  # as rounded above
            for name in list(expected)[: form.count("=")]
        }
    )
    assert summary["wanted"]["gap_ev"] == pytest.approx(summary["target"]["gap_ev"])
    assert summary["formula"] is None  # these molecules differ in it
    assert "Starting molecule" in (tmp_path / "index.html").read_text()


def test_the_same_command_writes_the_same_files(run, tmp_path):
    for name in ("a", "b"):
        command = ["generate", str(run), "--reference", "CCOCN", "-n", "50", "--seed", "3"]
        assert main([*command, "--out", str(tmp_path / name)]) == 0
    for file in ("molecules.csv", "summary.json", "index.html"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_nothing_kept_is_a_page_too(run, tmp_path, capsys):
    command = ["generate", str(run), "--reference", "CCCN", "-n", "9", "--formula", "C99H1"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert "     0 new molecules, kept" in capsys.readouterr().out
    assert (tmp_path / "molecules.csv").read_text().count("\n") == 1
    page = Page((tmp_path / "index.html").read_text())
    assert "nothing to compare" in page.words
    assert "The others" not in page.words


def test_names_are_text_and_drawings_are_svg(run, tmp_path):
    generation = stib_fast.load(run).generate("CCCN", n=30, formula=None)
    page = generation_page(generation, run="<b>&run</b>")
    assert "&lt;b&gt;&amp;run&lt;/b&gt;" in page
    assert "<b>" not in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
    write_generation(generation, tmp_path / "out", run="<b>")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["run"] == "<b>"


@pytest.fixture(scope="module")
def artificial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artificial") / "run"
    options = ["--optimisation.steps", "2", "--optimisation.batch", "32", "--model.hidden", "[8]"]
    assert main(["train", "artificial", "--run", str(folder), *options]) == 0
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either a reference molecule or target values"),
        (["--reference", "CCN", "--target", "gap=6"], "either a reference molecule or target"),
        (["--target", "homo=6"], "target 'homo' is unknown; the run predicts gap_ev, polaris"),
        (["--target", "gap"], "'gap' is not NAME=VALUE"),
        (["--target", "gap=six"], "--target gap: 'six' is not a number"),
        (["--target", "gap=inf"], "--target gap: 'inf' is not a finite number"),
        (["--target", "gap=6,gap=7"], "--target names 'gap' twice"),
        (["--target", "gap=60"], "target gap_ev=60 is outside the values"),
        (["--reference", "C1CC"], "reference 'C1CC' is no molecule that RDKit reads"),
        (["--reference", "c1ccccc1"], "reference: token 'c' at column 1"),
        (["--reference", "CCN", "-n", "0"], "n must be at least 1, not 0"),
        (["--reference", "CCN", "-n", "many"], "many"),
        (["--reference", "CCN", "--formula", "7"], "'7' is no formula"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(options, message, run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["generate", str(run), "--out", str(out), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("stib: ")
    assert error.count("\n") == 1
    assert not out.exists()


def test_runs_and_folders_that_are_not_for_this(run, artificial, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old.csv").write_text("")
    for folder, out, message in (
        (run, "full", "is not empty: name another folder with --out"),
        (artificial, "new", "is a run of the artificial experiment"),
        (tmp_path / "nowhere", "new", "is not a run folder"),
    ):
        command = ["generate", str(folder), "--reference", "CCN", "--out", str(tmp_path / out)]
        assert main(command) == 2
        assert message in capsys.readouterr().err
    command = ["generate", str(artificial), "--target", "y0=1", "--out", str(tmp_path / "new")]
    assert main(command) == 2
    assert "artificial experiment" in capsys.readouterr().err
    with pytest.raises(ValueError, match="artificial experiment"):
        stib_fast.load(artificial).generate("CCN")
    assert stib_fast.load(artificial).predict(torch.zeros(3, 2)).shape == (3, 2)


def test_a_run_whose_molecules_are_gone(run, tmp_path, capsys):
    data = run.parent / "molecules.csv"
    content = data.read_text()
    command = ["generate", str(run), "--reference", "CCN", "--out", str(tmp_path / "out")]
    try:
        data.unlink()
        assert main(command) == 2
        assert "molecules.csv is gone: without the training" in capsys.readouterr().err
        data.write_text(content + "CCCCCCCCN,1,1\n")
        assert main(command) == 2
        assert "has changed since the run" in capsys.readouterr().err
    finally:
        data.write_text(content)
