"""`stib mi` as a user meets it."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from stib_fast import functional as F
from stib_fast.cli import main

ROWS = 300


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    a, c = rng.standard_normal((2, ROWS))
    return {"a": a, "b": a + rng.standard_normal(ROWS) + c, "c": c}


@pytest.fixture
def folder(columns, tmp_path, monkeypatch) -> Path:
    """Works in a folder that holds the same columns in a file of each kind."""
    monkeypatch.chdir(tmp_path)
    rows = np.stack(list(columns.values()), axis=1).tolist()
    text = "a,b,c,name\n" + "".join(f"{a},{b}, {c} ,n\n" for a, b, c in rows)
    Path("t.csv").write_text(text)
    Path("t.csv.gz").write_bytes(gzip.compress(text.encode()))
    parquet.write_table(pa.table(columns), "t.parquet")
    np.savez("t.npz", both=np.stack([columns["a"], columns["c"]], 1), **columns)
    return tmp_path


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["mi", *arguments, "--json"]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    return json.loads(out)


def tensors(columns, *names: str) -> torch.Tensor:
    return torch.from_numpy(np.stack([columns[name] for name in names], axis=1))


@pytest.mark.parametrize("file", ["t.csv", "t.csv.gz", "t.parquet", "t.npz"])
def test_every_kind_of_file_and_estimator(file, folder, columns, capsys):
    x, y, c = (tensors(columns, name) for name in "abc")
    expected = {
        "knn": F.knn_mi(x, y),
        "gaussian": F.gaussian_mi_of(F.moments(x, y), bias_correction=True),
        "copula": F.gaussian_copula_mi(x, y),
    }
    for estimator, nats in expected.items():
        options = [file, "--x", "a", "--y", "b", "--estimator", estimator, "--unit", "nats"]
        assert json_of(capsys, *options)["mi"] == nats.item()
    for estimator, function in (("gaussian", F.gaussian_cmi), ("copula", F.gaussian_copula_cmi)):
        options = [file, "--x", "a", "--y", "b", "--given", "c", "--estimator", estimator]
        bits = json_of(capsys, *options)["mi"]
        assert bits == function(x, y, c, bias_correction=True).item() / math.log(2)


def test_options_reach_the_estimator(folder, columns, capsys):
    facts = json_of(capsys, "t.csv", "--x", "a", "c", "--y", "b", "--k", "3", "--variant", "2")
    nats = F.knn_mi(tensors(columns, "a", "c"), tensors(columns, "b"), 3, variant=2)
    assert facts == {
        "mi": nats.item() / math.log(2),
        "unit": "bits",
        "estimator": "knn",
        "k": 3,
        "variant": 2,
        "x": ["a", "c"],
        "y": ["b"],
        "given": [],
        "rows_used": ROWS,
        "rows_dropped": {"missing value": 0, "infinite value": 0},
        "warnings": [],
    }
    # An array of two columns is both of them.
    whole = json_of(capsys, "t.npz", "--x", "both", "--y", "b", "--k", "3", "--variant", "2")
    assert whole["mi"] == facts["mi"]


def test_text(folder, columns, capsys):
    options = ["--x", "a", "--y", "b", "--given", "c", "--estimator", "copula", "--unit", "nats"]
    assert main(["mi", "t.csv", *options]) == 0
    nats = F.gaussian_copula_cmi(*(tensors(columns, name) for name in "abc"))
    assert capsys.readouterr().out == (
        f"mutual information       {nats:.4f} nats\n"
        "x                        a\n"
        "y                        b\n"
        "given                    c\n"
        "estimator                copula\n"
        "rows used                300\n"
        "dropped: missing value   0\n"
        "dropped: infinite value  0\n"
    )
    assert main(["mi", "t.csv", "--x", "a", "--y", "b"]) == 0
    assert "estimator                knn, k 20, variant 1\n" in capsys.readouterr().out


def test_subsamples(folder, columns, capsys):
    x, y = tensors(columns, "a"), tensors(columns, "b")
    expected = F.knn_mi_subsampled(x, y, 4, subsample=50, repetitions=6)  # as many as there are
    options = ["t.csv", "--x", "a", "--y", "b", "--k", "4", "--subsample", "50", "--unit", "nats"]
    facts = json_of(capsys, *options)
    assert (facts["mi"], facts["standard_error"]) == expected
    assert (facts["subsample"], facts["repetitions"], facts["rows_used"]) == (50, 6, ROWS)
    assert facts["rows_dropped"]["left over by subsampling"] == 0
    assert json_of(capsys, *options[:-3], "20")["repetitions"] == 10
    assert main(["mi", *options]) == 0
    out = capsys.readouterr().out
    assert f"{expected.value:.4f} ± {expected.standard_error:.4f} nats\n" in out
    assert "knn, k 4, variant 1, subsample 50, repetitions 6\n" in out


def test_rows_left_over_by_subsampling(folder, capsys):
    options = ["t.csv", "--x", "a", "--y", "b", "--subsample", "70"]
    facts = json_of(capsys, *options)
    assert (facts["repetitions"], facts["rows_used"]) == (4, 280)
    assert facts["rows_dropped"]["left over by subsampling"] == 20
    assert main(["mi", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split("  ") == ["dropped: left over by subsampling", "20"]


@pytest.mark.parametrize("size", [2.0**665, 2.0**-665, 1e200, 1e-200, 2e307])
@pytest.mark.parametrize("estimator", ["gaussian", "copula"])
def test_columns_of_any_size(estimator, size, folder, columns, capsys):
    np.savez("sizes.npz", big=columns["a"] * size, **columns)
    options = ["--y", "b", "--given", "c", "--estimator", estimator]
    facts = json_of(capsys, "sizes.npz", "--x", "big", *options)
    expected = json_of(capsys, "sizes.npz", "--x", "a", *options)["mi"]
    # A power of two changes no bit; other factors round each value once, by 2^-53.
    tolerance = 0 if math.frexp(size)[0] == 0.5 else 1e-12
    assert facts["mi"] == pytest.approx(expected, rel=tolerance, abs=0)
    assert facts["warnings"] == []


def test_knn_of_columns_of_any_size(folder, columns, capsys):
    for size in (2.0**665, 2.0**-665):
        np.savez("sizes.npz", **{name: column * size for name, column in columns.items()})
        facts = json_of(capsys, "sizes.npz", "--x", "a", "--y", "b")
        assert facts["mi"] == json_of(capsys, "t.npz", "--x", "a", "--y", "b")["mi"]


@pytest.mark.parametrize("estimator", ["gaussian", "knn"])
def test_no_estimate_is_nan(estimator, folder, capsys, monkeypatch):
    nan = torch.tensor(math.nan)
    name = {"gaussian": "gaussian_mi_of", "knn": "knn_mi"}[estimator]
    monkeypatch.setattr(F, name, lambda *sides, **settings: nan)
    assert main(["mi", "t.csv", "--x", "a", "--y", "b", "--estimator", estimator, "--json"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error == (
        f"stib: --estimator {estimator} finds no finite value; leave out columns that others "
        "determine, or take another estimator\n"
    )


def test_rows_without_a_number(folder, capsys):
    rows = ["1,2", ",3", "NA,4", "inf,nan", "5,-inf", "2,2.5", "3,3", "4,9", "7,7.5"]
    Path("gaps.csv").write_text("a,b\n" + "\n".join(rows) + "\n")
    gaps = pa.table({"a": [1.0, None, 2, 3, 4, 7], "b": pa.array([2, 3, 2, None, 9, 7])})
    parquet.write_table(gaps, "gaps.parquet")
    options = ["--x", "a", "--y", "b", "--estimator", "gaussian"]
    facts = json_of(capsys, "gaps.csv", *options, "--nan", "drop")
    assert facts["rows_used"] == 5
    assert facts["rows_dropped"] == {"missing value": 3, "infinite value": 1}
    a, b = torch.tensor([1, 2, 3, 4, 7.0]).double(), torch.tensor([2, 2.5, 3, 9, 7.5]).double()
    nats = F.gaussian_mi_of(F.moments(a[:, None], b[:, None]), bias_correction=True).item()
    assert facts["mi"] == nats / math.log(2)
    facts = json_of(capsys, "gaps.parquet", *options, "--nan", "drop")
    assert facts["rows_dropped"] == {"missing value": 2, "infinite value": 0}
    assert main(["mi", "gaps.csv", *options]) == 2
    assert capsys.readouterr().err == (
        "stib: gaps.csv: column 'a', row 2: a missing or infinite value; there are 4 such rows; "
        "--nan drop leaves them out\n"
    )


def test_warnings(folder, columns, capsys):
    constant = np.stack([columns["c"], np.full(ROWS, 2)], axis=1)
    wide = 100 * columns["b"]
    np.savez("odd.npz", a=columns["a"], k=constant, one=np.ones(ROWS, int), wide=wide)
    options = ["odd.npz", "--x", "a", "one", "--y", "wide", "k", "--json"]
    assert main(["mi", *options, "--estimator", "copula"]) == 0
    out, error = capsys.readouterr()
    expected = [f"column {name} is constant: it carries nothing" for name in ("one", "k[1]")]
    assert json.loads(out)["warnings"] == expected
    assert error == "".join(f"stib: warning: {line}\n" for line in expected)
    assert main(["mi", *options]) == 0
    out, error = capsys.readouterr()
    *first, last = json.loads(out)["warnings"]
    assert first == expected
    spread = f"a ({columns['a'].std():.3g}) and wide ({wide.std():.3g}) differ much"
    assert spread in last or f"k[0] ({columns['c'].std():.3g}) and wide" in last
    assert error.count("\n") == 3


def test_spreads_are_compared_with_the_least(folder, columns, capsys):
    sizes = {"narrow": 1, "middle": 5, "wide": 20}
    np.savez("odd.npz", **{name: size * columns["a"] for name, size in sizes.items()})
    assert main(["mi", "odd.npz", "--x", "wide", "narrow", "--y", "middle"]) == 0
    spread = columns["a"].std()
    assert capsys.readouterr().err.startswith(
        f"stib: warning: the standard deviations of columns narrow ({spread:.3g}) and wide "
        f"({20 * spread:.3g}) differ much"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("no.csv --x a --y b", "No such file or directory: 'no.csv'"),
        ("no.npz --x a --y b", "No such file or directory: 'no.npz'"),
        ("t.smi --x a --y b", "ends in one of .csv, .csv.gz, .parquet, .npz"),
        ("bad.npz --x a --y b", "bad.npz: not a readable npz file"),
        ("empty.csv --x a --y b", "empty.csv: the file holds no rows"),
        ("nan.csv --x a --y b --nan drop", "nan.csv: no row has a finite number in every column"),
        ("t.csv --x a --y q", "'q' is missing; there are ['a', 'b', 'c', 'name']"),
        ("t.npz --x a --y q", "array 'q' is missing; there are ['both', 'a', 'b', 'c']"),
        ("t.csv --x a --y name", "t.csv: column 'name', row 1: 'n' is not a number"),
        ("odd.npz --x a --y name", "array 'name' is <U1 (3,), not numbers [n] or [n, columns]"),
        ("odd.npz --x a --y cube", "array 'cube' is float64 (3, 1, 1), not numbers"),
        ("odd.npz --x a --y short", "arrays differ in length: {'a': 3, 'short': 2}"),
        ("date.parquet --x a --y day", "column 'day' holds timestamp["),
        ("t.csv --x a a --y b", "column 'a' is asked for more than once (--x)"),
        ("t.csv --x a --y b a", "column 'a' is asked for more than once (--x, --y)"),
        (
            "t.csv --x a --y b --k 300",
            "t.csv: rows with a number in every column: 300; --k 300 needs 301",
        ),
        ("t.csv --x a --y b --k 0", "--k: must be an integer of at least 1; got 0"),
        ("t.csv --x a --y b --k 2.5", "--k: must be an integer of at least 1; got 2.5"),
        ("t.csv --x a --y b --variant 3", "--variant: invalid choice: 3 (choose from 1, 2)"),
        ("t.csv --x a --y b --given c", "--given: there is no conditional k-NN estimator; use"),
        ("t.csv --x a --y b --estimator copula --k 5", "--k is for --estimator knn, not copula"),
        ("t.csv --x a --y b --estimator gaussian --variant 1", "--variant is for --estimator knn"),
        (
            "t.csv --x a --y b --subsample 200",
            "--subsample 200: two disjoint subsamples of 200 need 400 rows; t.csv has 300: take at "
            "most 150",
        ),
        ("t.csv --x a --y b --subsample 20", "--subsample must be more than --k, 20; got 20"),
        ("t.csv --x a --y b --subsample 1.5", "--subsample: must be an integer of at least 1"),
        ("t.csv --x a --y b --estimator tree", "invalid choice"),
        ("t.csv --x a", "y"),
        (
            "odd.npz --x a --y b --estimator copula --given d",
            "odd.npz: rows with a number in every column: 3; --estimator copula with 3 columns "
            "needs 4 at least",
        ),
        (
            "one.csv --x a --y b --estimator gaussian",
            "one.csv: rows with a number in every column: 1; --estimator gaussian with 2 columns",
        ),
        ("one.csv --x a --y b", "one.csv: rows with a number in every column: 1; --k 20 needs 21"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(folder, capsys, arguments, message):
    three = np.arange(3.0)
    np.savez(
        "odd.npz", a=three, b=three, d=three, name=["x"] * 3, cube=np.ones((3, 1, 1)),
        short=three[:2],
    )  # fmt: skip
    Path("bad.npz").write_bytes(b"PK\x03\x04 nothing")
    Path("one.csv").write_text("a,b\n1,2\n")
    Path("empty.csv").write_text("a,b\n")
    Path("nan.csv").write_text("a,b\n1,\n,2\n")
    day = pa.array([1, 2], pa.timestamp("s"))
    parquet.write_table(pa.table({"a": [1, 2], "day": day}), "date.parquet")
    assert main(["mi", *arguments.split()]) == 2
    out, error = capsys.readouterr()
    assert message in error
    assert out == ""
    assert error.startswith("stib: ")
    assert error.count("\n") == 1
