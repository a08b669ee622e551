"""The stream's exact moments, the providers against them, and a quick run."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are not installed
from benchmarks import __main__ as command
from benchmarks import harness, moments

ROWS = 1000


@pytest.fixture
def stream(monkeypatch) -> moments.Stream:
    """Several buffers, each of several batches; the last of both is short."""
    monkeypatch.setattr(moments, "BUFFER", 300)
    monkeypatch.setattr(moments, "BATCH", 128)
    return moments.Stream(ROWS)


def rows_of(stream: moments.Stream) -> np.ndarray:
    return np.concatenate([torch.cat(batch, 1).numpy() for batch in stream]).astype(np.longdouble)


def test_passes_give_the_same_rows(stream):
    rows = rows_of(stream)
    assert rows.shape == (ROWS, 18)
    np.testing.assert_array_equal(rows_of(stream), rows)
    assert stream.seconds > 0
    assert len({tuple(row) for row in rows.tolist()}) == ROWS  # no buffer comes again
    np.testing.assert_array_equal(rows * moments.GRID, np.round(rows * moments.GRID))
    # Standard normal but for the offset; y has the variance of two: 6 standard errors.
    error = 6 * ROWS**-0.5
    np.testing.assert_allclose(rows.mean(0) - [moments.OFFSET, *[0] * 17], 0, atol=2 * error)
    np.testing.assert_allclose(rows.var(0), [1] * 16 + [2] * 2, rtol=error * 2**0.5)


def test_exact_moments(stream):
    rows = rows_of(stream)
    exact = moments.exact_moments(stream)
    centred = rows - rows.mean(0)
    scatter = (centred.T @ centred).astype(float)
    # Sums of a thousand in 80 bits, about means with 13 digits before the point left over.
    np.testing.assert_allclose(exact.scatter.numpy(), scatter, rtol=1e-14, atol=1e-12)
    np.testing.assert_allclose(exact.mean.numpy(), rows.mean(0).astype(float), rtol=1e-15)
    assert exact.count.item() == ROWS


def test_providers(stream):
    exact = moments.exact_moments(stream)
    errors = {
        name: moments.errors(provider(iter(stream)), exact)
        for name, provider in moments.STREAMS.items()
    }
    assert errors["ours"]["variance_error"] < 1e-14
    assert errors["Chan's merge, float64"]["variance_error"] < 1e-10
    assert errors["StandardScaler"]["variance_error"] < 1e-10
    # The squares of the offset, 1e8, in the last bits of float64 and float32, over a variance of 1.
    assert 1e-9 < errors["sums, float64"]["variance_error"] < 1e-2
    assert errors["sums, float32"]["variance_error"] > 0.1
    assert errors["ours"]["error_nats"] < 1e-13
    assert np.isnan(errors["StandardScaler"]["error_nats"])


@pytest.mark.usefixtures("library")
def test_a_quick_run(stream, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "tests_pass", lambda paths, device: True)
    monkeypatch.setattr(harness, "COPY_BYTES", {"cpu": 2**22})
    monkeypatch.setattr(harness, "PRODUCT_SIZE", {"cpu": 64})
    options = ["--quick", "--threads", "1", "--shapes", str(ROWS), "--out", str(tmp_path)]
    assert command.main(["moments", *options]) == 0
    assert "Faster than ours:" in capsys.readouterr().out
    with (tmp_path / "moments.csv").open() as file:
        rows = {row["provider"]: row for row in csv.DictReader(file)}
    assert list(rows) == [*moments.STREAMS, *moments.FILES]
    for name, row in rows.items():
        assert float(row["rows_per_second"]) == pytest.approx(ROWS / float(row["ms"]) * 1e3)
        if name in moments.OURS:
            assert float(row["variance_error"]) < 1e-13
    assert (tmp_path / "moments.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("library")
def test_wrong_moments_are_not_reported(stream, monkeypatch, tmp_path):
    wrong = moments.STREAMS["sums, float64"]
    monkeypatch.setitem(moments.STREAMS, "ours", wrong)
    machine = harness.Machine(1, 1, {torch.float64: 1})
    setting = harness.Setting(torch.device("cpu"), "cpp", machine, quick=True)
    with pytest.raises(harness.Disagreement, match="ours: relative error"):
        list(moments.measure(ROWS, ["ours"], setting))


def test_providers_too_slow_for_a_length_are_left_out(stream, monkeypatch):
    monkeypatch.setattr(moments, "MOST_ROWS", {"IncrementalPCA": 999, "parquet": 999, "csv": 999})
    machine = harness.Machine(1, 1, {torch.float64: 1})
    setting = harness.Setting(torch.device("cpu"), "cpp", machine, quick=True)
    names = ["ours", "IncrementalPCA", *moments.FILES]
    assert [row["provider"] for row in moments.measure(ROWS, names, setting)] == ["ours"]
