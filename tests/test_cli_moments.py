"""`stib moments`, and `stib mi` of what it wrote and of several files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from stib_fast import functional as F
from stib_fast.cli import main
from stib_fast.data import TableMoments

ROWS, CUT = 400, 150
SIDES = ["--x", "a", "--y", "b"]


@pytest.fixture
def rows(tmp_path, monkeypatch) -> np.ndarray:
    """Columns a, b and c; in the files whole.csv, 0.csv and 1.parquet, the last with a gap."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    a, c = rng.standard_normal((2, ROWS))
    rows = np.stack([a, a + rng.standard_normal(ROWS) + c, c], axis=1)
    for name, part in (("whole.csv", rows), ("0.csv", rows[:CUT])):
        lines = [",".join(map(repr, row)) for row in part.tolist()]
        Path(name).write_text("\n".join(["a,b,c", *lines]) + "\n")
    gap = [[np.nan, 1, 1], [1, np.inf, 1]]
    rest = pa.table(dict(zip("abc", np.concatenate([rows[CUT:], gap]).T, strict=True)))
    parquet.write_table(rest, "1.parquet")
    return rows


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    return out


def mi(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    return json.loads(run(capsys, "mi", *arguments, "--json"))


@pytest.mark.parametrize("given", [[], ["--given", "c"]])
def test_parts_counted_apart_add_up(given, rows, capsys):
    gaussian = ["--estimator", "gaussian", "--nan", "drop"]
    together = mi(capsys, "0.csv", "1.parquet", *SIDES, *given, *gaussian)
    assert (together["rows_used"], together["x"], together["y"]) == (ROWS, ["a"], ["b"])
    assert together["rows_dropped"] == {"missing value": 1, "infinite value": 1}
    run(capsys, "moments", "0.csv", *SIDES, *given, "-o", "0.moments")
    options = [*SIDES, *given, "--nan", "drop", "--workers", "2", "--output", "1.moments"]
    assert run(capsys, "moments", "1.parquet", *options) == (
        f"1.moments: 250 rows of a, b{', c' if given else ''}; dropped: missing value 1, infinite "
        "value 1\n"
    )
    # The sum that one pass makes of the files, from the files that hold them.
    assert mi(capsys, "0.moments", "1.moments") == together
    run(capsys, "moments", "0.moments", "1.moments", "-o", "all.moments")
    assert mi(capsys, "all.moments", "--estimator", "gaussian") == together
    # Of one file with all rows: the same but for rounding, which n + m = 2 columns of unit size
    # with a correlation of 0.6 do not raise above 1e-13.
    whole = mi(capsys, "whole.csv", *SIDES, *given, "--estimator", "gaussian")
    assert together["mi"] == pytest.approx(whole["mi"], rel=1e-12)
    x, y, c = torch.from_numpy(rows).split(1, dim=1)
    options = {"bias_correction": True}
    nats = F.gaussian_cmi(x, y, c, **options) if given else F.gaussian_mi(x, y, **options)
    assert whole["mi"] * np.log(2) == pytest.approx(nats.item(), rel=1e-12)


@pytest.mark.parametrize("estimator", ["knn", "copula"])
def test_several_files_of_other_estimators(estimator, rows, capsys):
    whole = mi(capsys, "whole.csv", *SIDES, "--estimator", estimator)
    options = [*SIDES, "--estimator", estimator, "--nan", "drop"]
    parts = mi(capsys, "0.csv", "1.parquet", *options)
    assert parts["mi"] == whole["mi"]
    assert parts["rows_dropped"] == {"missing value": 1, "infinite value": 1}


def test_a_file_without_rows_may_be_one_of_many(rows, capsys):
    Path("none.csv").write_text("b,a\n")
    assert "none.moments: 0 rows of a, b;" in run(
        capsys, "moments", "none.csv", *SIDES, "-o", "none.moments"
    )
    gaussian = ["--estimator", "gaussian"]
    alone = mi(capsys, "0.csv", *SIDES, *gaussian)
    assert mi(capsys, "none.csv", "0.csv", *SIDES, *gaussian) == alone
    run(capsys, "moments", "0.csv", *SIDES, "-o", "0.moments")
    assert mi(capsys, "none.moments", "0.moments") == alone


def test_text_and_warnings(rows, capsys):
    Path("constant.csv").write_text("a,b\n1,2\n1,3\n1,4\n1,9\n")
    run(capsys, "moments", "constant.csv", *SIDES, "-o", "c.moments")
    assert main(["mi", "c.moments"]) == 0
    out, error = capsys.readouterr()
    assert error == "stib: warning: column a is constant: it carries nothing\n"
    assert "x                        a\n" in out
    assert "estimator                gaussian\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "mi 0.moments other.moments",
            "other.moments: holds columns (('a',), ('c',)), not (('a',), ('b',))",
        ),
        ("mi 0.moments 0.csv --x a --y b", "some files end in .moments and some do not"),
        ("mi 0.csv 0.csv --x a --y b", "0.csv is given more than once: its rows would count"),
        ("mi 0.moments --x a", "--x, --y and --given were chosen when 0.moments was made"),
        ("mi 0.moments --estimator knn", "0.moments: moments are enough for --estimator gaussian"),
        ("mi 0.csv --x a --y b --workers 2", "--workers is for --estimator gaussian, not knn"),
        ("mi 0.csv --x a", "--y: the columns of y are needed"),
        ("mi bad.moments", "bad.moments: "),
        ("mi no.moments", "No such file or directory: 'no.moments'"),
        ("mi none.moments", "none.moments: the file holds no rows"),
        ("moments 0.csv --x a --y b -o sum.npz", "--output must end in .moments"),
        ("moments 0.csv --x a --y a -o a.moments", "'a' is asked for more than once (--x, --y)"),
        ("moments 1.parquet --x a --y b -o a.moments", "1.parquet: column 'a', row 251: a missing"),
        ("moments 0.csv --x a --y q -o a.moments", "'q' is missing; there are ['a', 'b', 'c']"),
        ("moments 0.csv --x a --y b -o no/a.moments", "No such file or directory"),
        ("moments 0.csv --x a --y b", "output"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(rows, capsys, arguments, message):
    run(capsys, "moments", "0.csv", *SIDES, "-o", "0.moments")
    run(capsys, "moments", "0.csv", "--x", "a", "--y", "c", "-o", "other.moments")
    Path("none.csv").write_text("a,b\n")
    run(capsys, "moments", "none.csv", *SIDES, "-o", "none.moments")
    Path("bad.moments").write_bytes(Path("0.moments").read_bytes()[:500])
    assert main(arguments.split()) == 2
    out, error = capsys.readouterr()
    assert message in error
    assert out == ""
    assert error.startswith("stib: ")
    assert error.count("\n") == 1
    assert not Path("a.moments").exists()


def test_saved_moments_are_those_of_python(rows, capsys):
    run(capsys, "moments", "0.csv", *SIDES, "-o", "0.moments")
    loaded = TableMoments.load("0.moments")
    assert loaded.parts == (("a",), ("b",))
    exact = F.moments(*torch.from_numpy(rows[:CUT, :2]).split(1, dim=1))
    assert torch.equal(loaded.moments.scatter, exact.scatter)
