from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are not installed
from benchmarks import gaussian_mi, harness

needs_library = pytest.mark.usefixtures("library")
SHAPE = gaussian_mi.Shape(200, 3, 2)
MACHINE = harness.Machine(bandwidth=1e9, multiply_adds={torch.float32: 4e9, torch.float64: 2e9})
SMALL = ("ours", "ours fast", "careful float64 eager", "careful float32 eager", "naive eager")


def test_relative_error_is_that_of_the_worst_tensor():
    reference = [torch.tensor([3.0, 4.0]), torch.tensor([1.0])]
    found = [torch.tensor([3.0, 4.5]), torch.tensor([0.8])]
    assert harness.relative_error(found, reference) == pytest.approx(0.2)


@pytest.mark.parametrize("error", [2e-5, math.nan, math.inf])
def test_wrong_results_are_refused(error):
    with pytest.raises(harness.Disagreement, match="ours: relative error"):
        harness.require_agreement("ours", error, 1e-5)


def test_a_fallback_is_an_error(monkeypatch):
    monkeypatch.setattr(harness, "backend_for", lambda device: "eager")
    with (
        pytest.raises(RuntimeError, match="'cpp' was asked for but 'eager' would run"),
        harness.exactly_backend("cpp"),
    ):
        pass


def test_summary_gives_median_and_quantiles():
    assert harness.summary([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == harness.Timing(3.5, 2.0, 5.0)
    assert harness.summary([2.0]) == harness.Timing(2.0, 2.0, 2.0)


def test_inputs_rotate_and_providers_take_turns(monkeypatch):
    monkeypatch.setattr(harness, "BURST_SECONDS", 0.0)  # bursts of one call
    seen = []
    providers = {name: lambda x, name=name: seen.append((name, x)) for name in "ab"}
    timings = harness.interleaved(providers, [(0,), (1,), (2,)], repetitions=4)
    assert set(timings) == {"a", "b"}
    assert [x for _, x in seen] == [i % 3 for i in range(len(seen))]
    # A turn is a call that does not count and one that does.
    assert [name for name, _ in seen[-16:]] == ["a", "a", "b", "b"] * 4


def test_rotation_exceeds_the_last_level_cache():
    for size in (1000, 10**7, 10**9):
        assert harness.rotation_size(size) * size >= 2 * harness.last_level_cache()
        assert harness.rotation_size(size) >= 2


def test_floor_and_roofline():
    shape = gaussian_mi.Shape.parse("1000x16+2")
    assert shape.floor_bytes == 3 * 1000 * 18 * 4
    exact = shape.multiply_adds(torch.float64)
    assert exact == {torch.float64: 1000 * 171, torch.float32: 1000 * 324}
    assert shape.multiply_adds(torch.float32) == {torch.float32: 1000 * (171 + 324)}
    # 216 us of traffic; 85.5 + 81 us of arithmetic
    assert MACHINE.seconds(shape.floor_bytes, exact) == pytest.approx(216e-6)
    slow = replace(MACHINE, bandwidth=1e12)
    assert slow.seconds(shape.floor_bytes, exact) == pytest.approx(166.5e-6)


def test_shapes_are_read_and_refused():
    assert str(gaussian_mi.Shape.parse("60x2+2")) == "60x2+2"
    with pytest.raises(ValueError, match="ROWSxN"):
        gaussian_mi.Shape.parse("60x2")


@needs_library
@pytest.mark.parametrize("name", [n for n, p in gaussian_mi.PROVIDERS.items() if not p.compiled])
def test_every_provider_agrees_with_the_reference(name):
    (inputs,) = gaussian_mi.input_sets(SHAPE, 1)
    gaussian_mi.gradient_error(name, gaussian_mi.PROVIDERS[name].step(), inputs)


def test_reference_is_the_gaussian_value():
    # One column a side: I = -1/2 log(1 - r^2).
    z, y = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).T
    y = (y + z)[:, None]
    r = torch.corrcoef(torch.stack([z, y[:, 0]]))[0, 1]
    value, _ = gaussian_mi.reference(z[:, None], y, 0.0)
    assert value.item() == pytest.approx(-0.5 * math.log(1 - r.item() ** 2), rel=1e-12)


@needs_library
def test_a_wrong_provider_ends_the_benchmark(monkeypatch):
    wrong = gaussian_mi.exact(lambda z, y: 1.001 * gaussian_mi.F.gaussian_mi(z, y), eps=1e-9)
    monkeypatch.setattr(gaussian_mi, "PROVIDERS", {"wrong": wrong})
    with pytest.raises(harness.Disagreement, match="wrong"):
        list(gaussian_mi.measure(SHAPE, MACHINE, {}, repetitions=1))


@needs_library
def test_rows_have_the_columns_and_reach_the_files(monkeypatch, tmp_path):
    providers = {name: gaussian_mi.PROVIDERS[name] for name in SMALL}
    monkeypatch.setattr(gaussian_mi, "PROVIDERS", providers)
    monkeypatch.setattr(harness, "rotation_size", lambda size: 4)
    rows = list(gaussian_mi.measure(SHAPE, MACHINE, {"ours": 1.5}, repetitions=2))
    assert [row["provider"] for row in rows] == [*SMALL, *gaussian_mi.BOUNDARY]
    assert set(gaussian_mi.TABLE) <= set(rows[0])
    ours = rows[0]
    assert ours["peak_extra_mb"] == 1.5
    assert ours["ms_20"] <= ours["ms"] <= ours["ms_80"]
    floor_ms = 3 * 200 * 5 * 4 / 1e9 * 1e3
    assert ours["times_floor"] == pytest.approx(ours["ms"] / floor_ms)
    careful = next(row for row in rows if row["provider"] == "careful float32 eager")
    assert ours["over_careful_float32"] == pytest.approx(careful["ms"] / ours["ms"])

    figure = gaussian_mi.figure_of(rows, {rows[0]["threads"]: MACHINE})
    harness.write(tmp_path / "new", "gaussian_mi", rows, harness.environment(), figure)
    with (tmp_path / "new" / "gaussian_mi.csv").open() as file:
        assert [row["provider"] for row in csv.DictReader(file)] == [r["provider"] for r in rows]
    record = json.loads((tmp_path / "new" / "gaussian_mi.json").read_text())
    assert {"cpu", "torch", "python", "library", "commit"} <= set(record)
    assert (tmp_path / "new" / "gaussian_mi.png").read_bytes().startswith(b"\x89PNG")


def test_markdown_marks_what_was_not_measured():
    rows = [{"a": "x", "b": 1.25}, {"a": "long", "b": None}, {"a": "y", "b": math.nan}]
    assert harness.markdown(rows, {"a": str, "b": "{:.1f}".format}).splitlines() == [
        "| a    | b   |",
        "| ---- | --- |",
        "| x    | 1.2 |",
        "| long | –   |",
        "| y    | –   |",
    ]


def test_losses_are_named():
    times = {"s": {"ours": 2.0, "naive": 1.0, "(empty)": 0.1}, "t": {"ours": 1.0, "naive": 3.0}}
    rows = [
        {"shape": shape, "provider": name, "ms": ms}
        for shape, providers in times.items()
        for name, ms in providers.items()
    ]
    lost = harness.losses(rows, "ours", ["naive"], lambda row: row["shape"])
    assert lost == ["s: naive 1 ms, ours 2 ms"]


def touch_megabytes(index: int) -> object:
    return partial(torch.ones, (index + 1) * 10 * 2**18)  # 10 and 20 MiB


@pytest.mark.skipif(sys.platform != "linux", reason="needs VmHWM")
def test_peak_memory_is_what_a_call_touches():
    peaks = harness.peak_memory(touch_megabytes, 2, 1)
    # The kernel counts pages in batches: a few hundred KiB.
    assert peaks == pytest.approx([10 * 2**20, 20 * 2**20], abs=2**20)


def test_default_folder_names_the_device_in_plain_letters():
    assert set(harness.default_out().name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
