"""Figures of experiments on molecules: sections of Z0, latent dimensions, generated molecules."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stib_fast.reports.figures import BINS, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

SECTIONS = 10  # of equal counts along Z0 …
SHOWN = (0, 3, 6, 9)  # … of which these are drawn


def principal_components(values: Array, count: int) -> Array:
    """Project rows [n, d] on their first principal components: [n, count].

    Examples
    --------
    >>> line = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    >>> abs(principal_components(line, 1)[:, 0]).round(6).tolist()
    [5.0, 0.0, 5.0]
    """
    centred = values - values.mean(axis=0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:count]
    # The sign of a direction is nobody's choice: its largest entry is positive.
    largest = np.abs(directions).argmax(axis=1)
    directions *= np.sign(np.take_along_axis(directions, largest[:, None], axis=1))
    return np.asarray(centred @ directions.T)


def sections_figure(z0: Array, z1: Array, properties: Mapping[str, Array], path: Path) -> None:
    """Draw Z1 in four of ten sections of Z0, coloured by ten bins of each property.

    The later version's Figure 5. Sections hold equal numbers of molecules along the first principal
    component of Z0. Of a Z1 of more than two dimensions the first
    two principal components are drawn.

    Parameters
    ----------
    z0, z1 : ndarray
        [n, d0] and [n, d1], d1 at least 2.
    properties : mapping of str to ndarray
        Label with unit -> [n].
    path : Path
        The PNG file to write.

    Raises
    ------
    ValueError
        Z1 has one dimension only.

    Examples
    --------
    >>> import tempfile
    >>> draw = np.random.default_rng(0).normal(size=(200, 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "sections.png"
    ...     sections_figure(draw[:, :1], draw[:, 1:], {"gap, eV": draw[:, 2]}, path)
    ...     path.exists()
    True
    """
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm
    from matplotlib.figure import Figure

    if z1.shape[1] < 2:
        raise ValueError("Z1 has one dimension: a figure of its first two needs two")
    plane = z1 if z1.shape[1] == 2 else principal_components(z1, 2)
    what = "dimension" if z1.shape[1] == 2 else "principal component"
    along = principal_components(z0, 1)[:, 0]
    parts = np.array_split(along.argsort(kind="stable"), SECTIONS)
    figure = Figure(figsize=(11, 2.9 * len(properties) + 0.3), layout="constrained")
    grid = figure.subplots(len(properties), len(SHOWN), squeeze=False, sharex=True, sharey=True)
    for line, (label, values) in zip(grid, properties.items(), strict=True):
        edges = np.histogram_bin_edges(values, BINS)
        for axes, section in zip(line, SHOWN, strict=True):
            rows = parts[section]
            points = axes.scatter(
                *plane[rows].T,
                c=values[rows],
                s=float(np.clip(6_000 / len(rows), 4, 20)),
                cmap=colormaps["turbo"].resampled(BINS),
                norm=BoundaryNorm(edges, BINS),
                linewidths=0,
            )
        figure.colorbar(points, ax=list(line), label=label, ticks=edges, format="%.3g")
        line[0].set_ylabel(f"Z1, second {what}", fontsize=9)
    for axes, section in zip(grid[0], SHOWN, strict=True):
        axes.set_title(f"section {section + 1} of {SECTIONS} along Z0", fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel(f"Z1, first {what}", fontsize=9)
    # A few molecules far out would leave all others a corner of the panel.
    low, high = np.quantile(plane, [0.002, 0.998], axis=0)
    margin = 0.08 * (high - low)
    grid[0, 0].set_xlim(low[0] - margin[0], high[0] + margin[0])
    grid[0, 0].set_ylim(low[1] - margin[1], high[1] + margin[1])
    save_png(figure, path)


def dimensions_figure(
    dimensions: Sequence[int], figures: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Draw reconstruction and mutual information against the dimensions of Z.

    The earlier version's Figure 5.

    Parameters
    ----------
    dimensions : sequence of int
        Of Z, one for each run.
    figures : sequence of mapping
        Evaluations of the runs.
    path : Path
        The PNG file to write.

    Examples
    --------
    >>> import tempfile
    >>> run = {"token_accuracy": 0.9, "string_accuracy": 0.5, "mi_bits": 0.1, "mi_bits_sampled": 0}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dimensions_figure([4, 8], [run, run], Path(folder) / "dimensions.png")
    ...     (Path(folder) / "dimensions.png").exists()
    True
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    panels = (
        ("SMILES accuracy", {"token_accuracy": "tokens", "string_accuracy": "whole strings"}),
        (
            "I(Z0; Y), bits",
            {"mi_bits": "at the means", "mi_bits_sampled": "with the latent noise"},
        ),
    )
    for axes, (title, curves) in zip(figure.subplots(1, 2), panels, strict=True):
        for name, label in curves.items():
            axes.plot(dimensions, [row[name] for row in figures], marker="o", label=label)
        axes.set_xticks(dimensions)
        axes.set_xlabel("dimensions of Z")
        axes.set_title(title, fontsize=10)
        axes.set_ylim(bottom=min(0.0, *axes.get_ylim()))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    save_png(figure, path)


class Consistency(NamedTuple):
    """Differences of one property: a panel of `consistency_panels`.

    Parameters
    ----------
    label : str
        Property and unit.
    test : ndarray
        Prediction minus data of test molecules: the model's error.
    generated : mapping of str to ndarray
        Point in Z1 -> prediction minus what was wanted of the molecules generated there.
    """

    label: str
    test: Array
    generated: Mapping[str, Array]


def consistency_panels(panels: Sequence[Consistency], path: Path) -> None:
    """Draw box plots of the self-consistency check of several points beside the model's error.

    The paper's Figure 6c (the earlier version's 7b): boxes are quartiles, whiskers reach to the
    last molecule within 1.5 times the box's width, dots are those beyond; shaded is the model's
    mean absolute error.

    Examples
    --------
    >>> import tempfile
    >>> draw = np.random.default_rng(0).normal(size=50)
    >>> panel = Consistency("gap, eV", draw, {"6.0 eV": draw / 2, "8.0 eV": draw[:0]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     consistency_panels([panel], Path(folder) / "consistency.png")
    ...     (Path(folder) / "consistency.png").exists()
    True
    """
    from matplotlib.figure import Figure

    points = list(panels[0].generated)
    height = 0.55 * (len(points) + 1) + 1.0
    figure = Figure(figsize=(4.4 * len(panels) + 1.4, height), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, panel in zip(grid, panels, strict=True):
        _boxes(axes, panel)
    grid[0].set_yticks(
        range(1, len(points) + 2),
        [
            "test molecules:\npredicted − data",
            *(f"{point}:\npredicted − wanted" for point in points),
        ],
    )
    grid[0].invert_yaxis()  # of all panels, which share it
    save_png(figure, path)


def _boxes(axes: Axes, panel: Consistency) -> None:
    error = float(np.abs(panel.test).mean())
    axes.axvspan(-error, error, color="#cfe3f5", linewidth=0)
    axes.set_title(f"shaded: the model's mean absolute error, ±{error:.2g}", fontsize=9)
    axes.axvline(0, color="#55595f", linewidth=0.8)
    samples = [panel.test, *panel.generated.values()]
    boxes = axes.boxplot(
        samples,
        orientation="horizontal",
        widths=0.55,
        patch_artist=True,
        medianprops={"color": "#1c1e21", "linewidth": 1.4},
        flierprops={"marker": "o", "markersize": 2.5, "markeredgecolor": "#55595f"},
    )
    for row, box in enumerate(boxes["boxes"]):
        box.set_facecolor("#3b7dbd" if row else "#c9ccd1")
    axes.set_xlabel(panel.label)
    axes.spines[["top", "right"]].set_visible(False)


def molecules_figure(rows: Sequence[Sequence[tuple[str, str]]], path: Path) -> None:
    """Draw rows of molecules, each (SMILES, what stands above it), as a PNG.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     molecules_figure([[("CCO", "ethanol"), ("CO", "methanol")]], Path(folder) / "m.png")
    ...     (Path(folder) / "m.png").exists()
    True
    """
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    figure = Figure(figsize=(3.4 * columns, 2.6 * len(rows)))
    figure.set_layout_engine("constrained", h_pad=0.1)  # titles of two lines reach the edge
    for line, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for axes in line:
            axes.axis("off")
        for axes, (smiles, title) in zip(line, row, strict=False):
            axes.imshow(_drawn(smiles))
            axes.set_title(title, fontsize=10)
    save_png(figure, path)


def _drawn(smiles: str) -> Array:
    """A molecule's structure as an image."""
    from matplotlib.image import imread
    from rdkit import Chem
    from rdkit.Chem.Draw import rdMolDraw2D

    drawer = rdMolDraw2D.MolDraw2DCairo(480, 300)
    options: Any = drawer.drawOptions()
    options.fixedBondLength = 65  # of all molecules alike, unless one is too large
    options.bondLineWidth = 3
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, Chem.MolFromSmiles(smiles))
    drawer.FinishDrawing()
    return np.asarray(imread(io.BytesIO(drawer.GetDrawingText())))
