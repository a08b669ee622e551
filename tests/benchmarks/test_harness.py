from __future__ import annotations

import math
import sys
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are not installed
from benchmarks import gaussian_mi, harness, report

needs_library = pytest.mark.usefixtures("library")
SHAPE = gaussian_mi.Shape(200, 3, 2)
CPU = torch.device("cpu")
MACHINE = harness.Machine(1e9, 2e9, {torch.float32: 4e9, torch.float64: 2e9})
SETTING = harness.Setting(CPU, "cpp", MACHINE)


def test_relative_error_is_that_of_the_worst_tensor():
    reference = [torch.tensor([3.0, 4.0]), torch.tensor([1.0])]
    found = [torch.tensor([3.0, 4.5]), torch.tensor([0.8])]
    assert harness.relative_error(found, reference) == pytest.approx(0.2)


@pytest.mark.parametrize("error", [2e-5, math.nan, math.inf])
def test_wrong_results_are_refused(error):
    with pytest.raises(harness.Disagreement, match="ours: relative error"):
        harness.require_agreement("ours", error, 1e-5)


def test_a_fallback_is_an_error(monkeypatch):
    with (
        pytest.raises(harness.Fallback, match="'triton' is not usable"),
        harness.exactly_backend("triton", CPU),
    ):
        pass
    with (
        pytest.raises(harness.Fallback, match="gaussian_mi has no kernel for xpu"),
        harness.exactly_backend("auto", torch.device("xpu"), ["gaussian_mi"]),
    ):
        pass
    monkeypatch.setattr(harness, "backend_for", lambda device, offered: "eager")
    with (
        pytest.raises(harness.Fallback, match="'cpp' was asked for but 'eager' would run"),
        harness.exactly_backend("cpp", CPU),
    ):
        pass


def test_summary_gives_median_and_quantiles():
    assert harness.summary([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == harness.Timing(3.5, 2.0, 5.0)
    assert harness.summary([2.0]) == harness.Timing(2.0, 2.0, 2.0)


def test_inputs_rotate_and_providers_take_turns(monkeypatch):
    monkeypatch.setattr(harness, "BURST_SECONDS", {"cpu": 0.0})  # bursts of one call
    seen = []
    providers = {name: lambda x, name=name: seen.append((name, x)) for name in "ab"}
    timings = harness.interleaved(providers, [(0,), (1,), (2,)], 4, CPU)
    assert set(timings) == {"a", "b"}
    assert [x for _, x in seen] == [i % 3 for i in range(len(seen))]
    # A turn is a call that does not count and one that does.
    assert [name for name, _ in seen[-16:]] == ["a", "a", "b", "b"] * 4


def test_a_burst_on_a_gpu_is_timed_by_events(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, end):
            return 6.0  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    sets = cycle([("x",), ("y",)])
    seconds = harness.timed_burst(log.append, sets, 3, torch.device("cuda"))
    assert seconds == pytest.approx(2e-3)
    assert log == ["x", "synchronize", "record", "y", "x", "y", "record", "wait"]


def test_rotation_exceeds_the_last_level_cache():
    for size in (1000, 10**7, 10**9):
        count = harness.rotation_size(size, CPU)
        assert count * size >= 2 * harness.last_level_cache(CPU)
        assert count >= 2


def test_passes_give_value_and_gradients():
    sets = [(torch.tensor([i, 2.0], requires_grad=True), torch.tensor(3.0)) for i in (1.0, 2.0)]
    sets[1] = (sets[1][0], torch.tensor(3.0))
    found = {
        name: (calls["f"], inputs)
        for name, calls, inputs in harness.passes({"f": lambda x: x.square().sum()}, sets)
    }
    assert list(found) == ["forward", "backward", "both"]
    for i, (x, _) in enumerate(sets):
        (call, inputs), gradient = found["backward"], 3 * 2 * x
        for _ in range(2):  # the graph is kept
            assert torch.equal(call(*inputs[i])[0], gradient)
        assert found["forward"][0](*sets[i]).item() == x.square().sum().item()
        value, both = found["both"][0](*sets[i])
        assert value.item() == x.square().sum().item()
        assert torch.equal(both, gradient)


@pytest.mark.parametrize(
    ("name", "pass_", "traffic", "doubles", "singles"),
    [
        ("ours", "forward", 1, 171, 0),
        ("ours", "moments", 1, 171, 0),
        ("ours", "backward", 2, 0, 324),
        ("ours", "apply", 2, 0, 324),
        ("ours", "both", 3, 171, 324),
        ("careful float32 eager", "both", 3, 0, 171 + 324),
    ],
)
@pytest.mark.parametrize("bandwidth", [1e9, 1e12])  # traffic is longer, arithmetic is
def test_shares_of_floor_and_limit(name, pass_, traffic, doubles, singles, bandwidth):
    shape = gaussian_mi.Shape.parse("1000x16+2")
    machine = replace(MACHINE, bandwidth=bandwidth)
    timing = harness.Timing(2e-3, 1e-3, 3e-3)
    row = gaussian_mi.row_of(shape, pass_, name, timing, {}, machine)
    floor = traffic * 1000 * 18 * 4 / bandwidth
    arithmetic = 1000 * doubles / 2e9 + 1000 * singles / 4e9
    assert row["share_of_floor"] == pytest.approx(floor / 2e-3)
    assert row["share_of_limit"] == pytest.approx(max(floor, arithmetic) / 2e-3)
    assert (row["ms"], row["ms_20"], row["ms_80"]) == (2, 1, 3)


def test_half_precision_moves_half_the_bytes():
    one, other = (gaussian_mi.Shape.parse(f"60x2+2{s}") for s in ("", ":bfloat16"))
    assert one.bytes == 2 * other.bytes == 60 * 4 * 4
    assert str(other) == "60x2+2:bfloat16"


def test_shapes_are_read_and_refused():
    assert str(gaussian_mi.Shape.parse("60x2+2")) == "60x2+2"
    with pytest.raises(ValueError, match="ROWSxN"):
        gaussian_mi.Shape.parse("60x2")


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_provider_agrees_with_the_reference(dtype):
    providers = gaussian_mi.PROVIDERS.items()
    values = {name: provider.make() for name, provider in providers if not provider.compiled}
    (inputs,) = gaussian_mi.input_sets(SHAPE._replace(dtype=dtype), 1, CPU)
    errors = gaussian_mi.gradient_errors(values, inputs, dtype == torch.bfloat16)
    assert list(errors) == list(values)


def test_reference_is_the_gaussian_value():
    # One column a side: I = -1/2 log(1 - r^2).
    z, y = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).T
    y = (y + z)[:, None]
    r = torch.corrcoef(torch.stack([z, y[:, 0]]))[0, 1]
    value, *_ = gaussian_mi.reference(z[:, None], y, 0.0)
    assert value.item() == pytest.approx(-0.5 * math.log(1 - r.item() ** 2), rel=1e-12)


@needs_library
def test_ours_when_wrong_ends_the_benchmark(monkeypatch):
    wrong = gaussian_mi.exact(lambda z, y: 1.001 * gaussian_mi.F.gaussian_mi(z, y), eps=1e-9)
    monkeypatch.setattr(gaussian_mi, "PROVIDERS", {"ours": wrong})
    with pytest.raises(harness.Disagreement, match="ours"):
        list(gaussian_mi.measure(SHAPE, ["ours"], SETTING))


@needs_library
def test_a_baseline_that_its_rounding_spoils_is_left_out_visibly(monkeypatch, capsys):
    wrong = gaussian_mi.exact(lambda z, y: 1.001 * gaussian_mi.F.gaussian_mi(z, y), eps=1e-9)
    monkeypatch.setitem(gaussian_mi.PROVIDERS, "naive eager", wrong)
    rows = list(gaussian_mi.measure(SHAPE, ["ours", "naive eager"], SETTING))
    assert "naive eager" not in {row["provider"] for row in rows}
    assert "LEFT OUT: naive eager: relative error 0.001" in capsys.readouterr().out


def test_markdown_marks_what_was_not_measured():
    rows = [{"a": "x", "b": 1.25}, {"a": "long", "b": None, "c": None}, {"a": "y", "b": math.nan}]
    columns = {"a": str, "b": "{:.1f}".format, "c": str, "d": str}
    assert report.markdown(rows, columns).splitlines() == [
        "| a    | b   |",
        "| ---- | --- |",
        "| x    | 1.2 |",
        "| long | –   |",
        "| y    | –   |",
    ]


def test_losses_are_named():
    times = {"s": {"ours": 2.0, "naive": 1.0, "(empty)": 0.1}, "t": {"ours": 1.0, "naive": 3.0}}
    rows = [
        {"shape": shape, "pass": "both", "threads": threads, "provider": name, "ms": ms}
        for threads, (shape, providers) in zip((2, None), times.items(), strict=True)
        for name, ms in providers.items()
    ]
    lost = report.losses(rows, "ours", ["naive"])
    assert lost == ["Faster than ours:", "- s, both, 2 threads: naive 1 ms, ours 2 ms"]
    assert report.losses(rows[3:], "ours", ["naive"]) == ["Faster than ours:", "- none"]


def test_without_matplotlib_there_is_no_plot(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report.write(tmp_path, "op", [{"a": 1}, {"b": 2}], {}, lambda figure, rows: None)
    assert "no plot: matplotlib is not installed" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["op.csv", "op.json"]
    assert (tmp_path / "op.csv").read_text().splitlines() == ["a,b", "1,", ",2"]


def touch_megabytes(name: str) -> object:
    return partial(torch.ones, int(name) * 2**18)


@pytest.mark.skipif(sys.platform != "linux", reason="needs VmHWM")
def test_peak_memory_is_what_a_call_touches():
    peaks = harness.peak_memory({"10": print, "20": print}, touch_megabytes, SETTING)
    # The kernel counts pages in batches: a few hundred KiB.
    megabytes = {name: int(name) * 2**20 / 1e6 for name in peaks}
    assert peaks == pytest.approx(megabytes, abs=1)
    assert harness.peak_memory({"10": print}, touch_megabytes, replace(SETTING, quick=True)) == {}


def test_default_folder_names_the_device_in_plain_letters():
    assert set(report.results_of(CPU).name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
