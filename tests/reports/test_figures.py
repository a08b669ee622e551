from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from stib_fast.data.spiral import sample
from stib_fast.reports.figures import LatentSpace, latent_figure, training_figure


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, to look at what they hold."""
    figures: list[Figure] = []
    savefig = Figure.savefig

    def saved(self: Figure, *args: object, **kwargs: object) -> None:
        figures.append(self)
        savefig(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", saved)
    return figures


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_latent_figure_shows_first_dimensions_in_ten_bins(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    x, _, t = sample(500, generator=torch.Generator().manual_seed(0))
    expected_edges = np.linspace(float(t.min()), float(t.max()), 11)
    latent_figure([LatentSpace("STIB", x, t[:, None] / 7)], t, tmp_path / "latent.png")
    axes, bar = drawn[0].axes
    points = axes.collections[0]
    np.testing.assert_allclose(points.get_offsets()[:, 0], x[:, 0], rtol=1e-6)
    np.testing.assert_allclose(points.get_offsets()[:, 1], t / 7, rtol=1e-6)
    np.testing.assert_allclose(points.norm.boundaries, expected_edges, rtol=1e-5)
    assert len({tuple(colour) for colour in points.to_rgba(t.numpy())}) == 10
    assert axes.get_title() == "STIB"
    assert "Z0" in axes.get_xlabel()
    assert "Z1" in axes.get_ylabel()
    assert "t" in bar.get_ylabel()
    assert len(bar.get_yticks()) == 11


def test_latent_figure_writes_a_png_without_global_state(tmp_path: Path) -> None:
    pyplot_was_there = "matplotlib.pyplot" in sys.modules
    t = torch.linspace(-12, 12, 200)
    latent_figure([LatentSpace("STIB", t.sin(), t)], t, tmp_path / "figure.png")
    image = imread(tmp_path / "figure.png")
    assert image.shape[0] > 500
    assert image[..., :3].std() > 0.05, "the picture is blank"
    assert ("matplotlib.pyplot" in sys.modules) == pyplot_was_there


def test_latent_spaces_stand_side_by_side(tmp_path: Path, drawn: list[Figure]) -> None:
    t = torch.linspace(-12, 12, 200)
    panels = [LatentSpace(title, i * t, t.cos(), ("a", "b")) for i, title in enumerate("XYZ")]
    latent_figure(panels, t, tmp_path / "figure.png")
    *spaces, bar = drawn[0].axes
    assert [axes.get_title() for axes in spaces] == ["X", "Y", "Z"]
    for i, axes in enumerate(spaces):
        points = axes.collections[0].get_offsets()
        np.testing.assert_allclose(points[:, 0], i * t, rtol=1e-6)
        assert axes.get_xlabel() == "a"
    assert len(bar.get_yticks()) == 11


def test_latent_figure_with_constant_t(tmp_path: Path) -> None:
    panel = LatentSpace("STIB", torch.rand(5), torch.rand(5))
    latent_figure([panel], torch.ones(5), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").exists()


def test_latent_figure_names_bad_arguments(tmp_path: Path) -> None:
    good = torch.rand(5)
    panel = LatentSpace("STIB", good, good)
    for broken, t, message in (
        (panel._replace(z1=good[:4]), good, r"z0, z1 and t .* got 5, 4 and 5"),
        (panel._replace(z1=good / 0 * 0), good, "z1 holds NaN"),
        (panel, good[:0], "t must be a non-empty"),
    ):
        with pytest.raises(ValueError, match=message):
            latent_figure([panel, broken], t, tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


def test_training_figure_draws_the_columns_that_exist(tmp_path: Path, drawn: list[Figure]) -> None:
    metrics = write(
        tmp_path / "metrics.csv",
        "step,loss,mae_x,mi_bits,mi_bits_whitened_active,probe_r2_sampled\n"
        "0,5,4.0,2.5,,0.9\n50,4,,,,\n100,3,0.3,-0.01,,nan\n",
    )
    training_figure(metrics, tmp_path / "training.png")
    mae, mi, probe = drawn[0].axes
    assert mae.get_title().startswith("MAE(X)")
    assert mi.get_title() == "MI, bits   (last -0.01)"
    curve, paper, limit = mi.get_lines()
    assert list(curve.get_xdata()) == [0, 100]
    assert list(curve.get_ydata()) == [2.5, -0.01]
    assert set(paper.get_ydata()) == {0.25}
    assert set(limit.get_ydata()) == {0.0}
    assert set(mae.get_lines()[1].get_ydata()) == {0.04}
    assert list(probe.get_lines()[0].get_ydata()) == [0.9]
    for axes in (mae, mi, probe):
        low, high = axes.get_ylim()
        values = np.concatenate([line.get_ydata() for line in axes.get_lines()])
        assert low < values.min()
        assert values.max() < high
    assert imread(tmp_path / "training.png")[..., :3].std() > 0.05, "the picture is blank"


def test_training_figure_takes_other_lines(tmp_path: Path, drawn: list[Figure]) -> None:
    metrics = write(tmp_path / "metrics.csv", "step,mae_gap_ev,mi_bits\n0,1,1\n1,0.3,0.1\n")
    training_figure(metrics, tmp_path / "training.png", paper={"mae_gap_ev": 0.27}, limit={})
    gap, mi = drawn[0].axes
    assert [set(line.get_ydata()) for line in gap.get_lines()[1:]] == [{0.27}]
    assert len(mi.get_lines()) == 1
    training_figure(metrics, tmp_path / "far.png", paper={"mi_bits": 30.0}, limit={})
    assert drawn[1].axes[1].get_ylim()[1] > 30.0


def test_training_figure_of_any_targets(tmp_path: Path, drawn: list[Figure]) -> None:
    metrics = write(
        tmp_path / "metrics.csv",
        "step,mae_mass,r2_mass,token_accuracy\n0,400,-0.5,0.1\n1,100,0.9,0.5\n",
    )
    panels = {"token_accuracy": "SMILES", "mae_mass": "MAE(mass)", "r2_mass": "mass, predicted"}
    training_figure(metrics, tmp_path / "training.png", paper={}, limit={}, panels=panels)
    strings, mae, r2 = drawn[0].axes
    assert [axes.get_title().split("  ")[0] for axes in drawn[0].axes] == list(panels.values())
    assert strings.get_ylim() == (0, 1.02)
    low, high = mae.get_ylim()
    assert low == 0 < 400 < high < 1000
    assert r2.get_ylim() == (-0.5, 1.05)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mae_x\n1\n", "no column 'step', only mae_x"),
        ("", "no column 'step'"),
        ("step,loss\n0,1\n", "no value of any of mae_x"),
        ("step,mae_x\n0,\n", "no value of any of mae_x"),
        ("step,mae_x\n0,1\n1,one\n", "line 3, column mae_x: 'one' is not a number"),
        ("step,mae_x\n,1\n", "line 2, column step: '' is not a number"),
    ],
)
def test_training_figure_names_bad_cells(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_figure(write(tmp_path / "metrics.csv", text), tmp_path / "training.png")


def test_training_figure_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"metrics\.csv"):
        training_figure(tmp_path / "metrics.csv", tmp_path / "training.png")
