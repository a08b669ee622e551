"""Figures of a run: the latent space (the paper's Figure 4) and the course of training."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from stib_fast.reports.tables import ARTIFICIAL_LIMIT, ARTIFICIAL_PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 10
PANELS = {
    "mae_x": "MAE(X)",
    "mae_y": "MAE(Y)",
    "token_accuracy": "SMILES accuracy",
    "mae_gap_ev": "MAE(gap), eV",
    "mae_polarisability": "MAE(polarisability), bohr³",
    "mi_bits": "MI, bits",
    "mi_bits_sampled": "MI sampled, bits",
    "mi_bits_whitened": "MI whitened, bits",
    "mi_bits_whitened_active": "MI whitened active, bits",
    "active_units": "active units",
    "probe_r2_sampled": "R² of Y from Z0 sampled",
    "probe_r2_active": "R² of Y from Z0 active",
}
"""Column of the metrics -> title of its panel, in the order of the panels."""


class LatentSpace(NamedTuple):
    """A panel of `latent_figure`.

    Parameters
    ----------
    title : str
    z0 : Tensor
        ``[n, d]`` or ``[n]``, the invariant part (x-axis: its first column).
    z1 : Tensor
        ``[n, d]`` or ``[n]``, the predictive part (y-axis: its first column).
    labels : tuple of str
        Of the axes.
    """

    title: str
    z0: Tensor
    z1: Tensor
    labels: tuple[str, str] = ("Z0 (invariant), most active dimension", "Z1 (predictive)")


def latent_figure(panels: Sequence[LatentSpace], t: Tensor, path: Path | str) -> None:
    """Draw the first dimension of Z0 against the first of Z1, coloured by ten bins of t.

    The paper's Figure 4: horizontal stripes of one colour mean that moving along Z0 leaves the
    target as it is.

    Parameters
    ----------
    panels : sequence of LatentSpace
        Latent spaces of the same points, one or more, side by side.
    t : Tensor
        ``[n]``, the target's coordinate, e.g. the angle of the spiral; the bins have equal widths.
    path : Path or str
        The PNG file to write.

    Raises
    ------
    ValueError
        If the numbers of rows differ, there are none, or an entry is NaN or infinite.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile, torch
    >>> t = torch.linspace(-12, 12, 50)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     panel = LatentSpace("STIB", torch.sin(40 * t), t / 7)
    ...     latent_figure([panel], t, Path(folder) / "latent.png")
    ...     [file.name for file in Path(folder).iterdir()]
    ['latent.png']
    """
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm
    from matplotlib.figure import Figure

    colour = _first_column("t", t)
    edges = np.histogram_bin_edges(colour, BINS)
    size = (6.4, 5.2) if len(panels) == 1 else (4.2 * len(panels) + 0.8, 4.4)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(grid, panels, strict=True):
        across, along = _first_column("z0", panel.z0), _first_column("z1", panel.z1)
        if not len(across) == len(along) == len(colour):
            raise ValueError(
                "z0, z1 and t must have the same number of rows, "
                f"got {len(across)}, {len(along)} and {len(colour)}"
            )
        points = axes.scatter(
            across,
            along,
            c=colour,
            s=float(np.clip(40_000 / len(colour), 2, 20)),
            cmap=colormaps["turbo"].resampled(BINS),
            norm=BoundaryNorm(edges, BINS),
            linewidths=0,
        )
        axes.set_xlabel(panel.labels[0])
        axes.set_ylabel(panel.labels[1])
        axes.set_title(panel.title)
    bar = figure.colorbar(points, ax=list(grid), label="t (bins of equal width)")
    digits = max(0, 1 - math.floor(math.log10(edges[1] - edges[0])))
    # Adding 0 turns −0 into 0.
    bar.set_ticks(edges.tolist(), labels=[f"{edge + 0:.{digits}f}" for edge in edges.round(digits)])
    save_png(figure, path)


def training_figure(
    metrics_csv: Path | str,
    path: Path | str,
    *,
    model: str = "STIB",
    paper: Mapping[str, float] = ARTIFICIAL_PAPER["STIB"],
    limit: Mapping[str, float] = ARTIFICIAL_LIMIT,
    panels: Mapping[str, str] = PANELS,
) -> None:
    r"""Draw how the figures of merit move along training, one panel for each.

    Parameters
    ----------
    metrics_csv : Path or str
        A CSV file with a header, a column ``step`` and any of the columns of `panels`; other
        columns, empty and non-finite cells are passed over.
    path : Path or str
        The PNG file to write.
    model : str
        Whose values in the paper they are.
    paper : Mapping
        Column -> the paper's value, drawn as a dashed line.
    limit : Mapping
        Column -> the best possible value, drawn as a dotted line.
    panels : Mapping
        Column -> title of its panel, in the order of the panels.

    Raises
    ------
    ValueError
        If the file has no column ``step``, none of the known columns holds a number, or a cell is
        not a number (the message names line and column).
    OSError
        If a file cannot be read or written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "metrics.csv"
    ...     _ = file.write_text("step,mae_x\n0,4.0\n100,0.3\n")
    ...     training_figure(file, Path(folder) / "training.png")
    ...     (Path(folder) / "training.png").exists()
    True
    """
    from matplotlib.figure import Figure

    curves = _curves(Path(metrics_csv), panels)
    columns = 2 if len(curves) in (2, 4) else min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.6 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axes, (name, (steps, values)) in zip(grid, curves.items(), strict=False):
        _panel(axes, name, panels[name], steps, values, model, paper.get(name), limit.get(name))
    for axes in grid[len(curves) :]:
        axes.remove()
    handles = {
        label: line
        for axes in grid
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=2, frameon=False
        )
    save_png(figure, path)


def save_png(figure: Figure, path: Path | str) -> None:
    """Write a figure with 96 colours: a third of the size, and no difference to be seen."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    image = Image.open(buffer).convert("RGB").quantize(96, dither=Image.Dither.NONE)
    image.save(path, format="PNG", optimize=True)


def _first_column(name: str, value: Tensor) -> np.ndarray:
    columns = value.detach().cpu().double().numpy()
    if columns.ndim not in (1, 2) or columns.size == 0:
        raise ValueError(f"{name} must be a non-empty [n, d] or [n] tensor, got {columns.shape}")
    if not np.isfinite(columns).all():
        raise ValueError(f"{name} holds NaN or infinity; the model may have diverged")
    return columns.reshape(len(columns), -1)[:, 0]


def _curves(
    metrics_csv: Path, panels: Mapping[str, str]
) -> dict[str, tuple[list[float], list[float]]]:
    with metrics_csv.open(newline="") as lines:
        reader = csv.DictReader(lines)
        names = reader.fieldnames or []
        if "step" not in names:
            raise ValueError(f"{metrics_csv} has no column 'step', only {', '.join(names)}")
        curves: dict[str, tuple[list[float], list[float]]] = {
            name: ([], []) for name in panels if name in names
        }
        for row in reader:
            step = _number(metrics_csv, reader.line_num, "step", row["step"])
            for name, (steps, values) in curves.items():
                if not row[name]:
                    continue
                value = _number(metrics_csv, reader.line_num, name, row[name])
                if math.isfinite(value):
                    steps.append(step)
                    values.append(value)
    curves = {name: curve for name, curve in curves.items() if curve[0]}
    if not curves:
        raise ValueError(f"{metrics_csv} holds no value of any of {', '.join(panels)}")
    return curves


def _number(metrics_csv: Path, line: int, name: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(
            f"{metrics_csv}, line {line}, column {name}: {cell!r} is not a number"
        ) from None


def _panel(
    axes: Axes,
    name: str,
    title: str,
    steps: list[float],
    values: list[float],
    model: str,
    paper: float | None,
    limit: float | None,
) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.plot(steps, values, color="C0", linewidth=1.4, marker=".", markersize=3)
    if paper is not None:
        axes.axhline(paper, color="C1", linestyle="--", linewidth=1.2, label=f"paper's {model}")
    if limit is not None:
        axes.axhline(limit, color="black", linestyle=":", linewidth=1.4, label="limit")
    _scale(axes, name, [*values, *(v for v in (paper, limit) if v is not None)])
    axes.set_title(f"{title}   (last {values[-1]:.3g})", fontsize=10)
    axes.set_xlabel("step", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(labelsize=8, labelbottom=True)
    axes.grid(alpha=0.3)


def _scale(axes: Axes, name: str, values: list[float]) -> None:
    """Give the panels of one kind of figure one kind of scale, so that they compare at a glance."""
    from matplotlib.ticker import MaxNLocator

    if name.startswith(("probe_r2", "r2_")):
        axes.set_ylim(min(-0.1, *values), 1.05)
    elif name.endswith("_accuracy"):
        axes.set_ylim(0, 1.02)
    elif name == "active_units":
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    elif name.startswith("mae_") and name not in PANELS:
        axes.set_ylim(0, 1.1 * max(values) or None)  # of a unit that nobody told
    elif name in PANELS:
        # Errors fall over two decades, to a limit of 0; estimates of MI can be negative.
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_yticks([0, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(min(-0.02, 1.3 * min(values)), max(0.6, 1.3 * max(values)))
