"""What was generated, as a table, a summary and a page to look at (the paper's Figures 6 and 7)."""

from __future__ import annotations

import csv
import io
import json
from html import escape
from pathlib import Path

from stib_fast.data.replacing import write_text
from stib_fast.generation import Generation

UNITS = {"gap_ev": ("gap", "eV"), "polarisability": ("polarisability", "bohr³")}
"""Name of a property -> its name without unit, and the unit."""
DRAWN = 60  # molecules on the page beside the two nearest; the table holds all
DROPPED = {
    "unfinished": "without an end within the model's length",
    "invalid": "no molecule that RDKit reads",
    "other_formula": "of another formula",
    "repeated": "a molecule that was written before",
    "known": "the reference, a training or a validation molecule",
}
"""Stage of `generation.STAGES` -> what the strings are that it drops."""
_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: #fff;
  color: #1c1e21; font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .6rem; }
p { max-width: 44rem; margin: .5rem 0; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .9em;
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .8rem 0; }
caption { text-align: left; color: #55595f; padding-bottom: .4rem; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid #dfe1e5; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #8b9097; vertical-align: bottom; }
tbody th { font-weight: 400; }
tr.total th, tr.total td { font-weight: 600; border-bottom: 2px solid #8b9097; }
.molecules { display: grid; gap: 1rem; padding: 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }
.molecules li { border: 1px solid #dfe1e5; border-radius: 6px; padding: .6rem .8rem; }
.molecules h3 { font-size: .95rem; margin: 0; }
.molecules svg { display: block; width: 100%; height: auto; }
.molecules p { margin: .15rem 0; font-size: .9rem; font-variant-numeric: tabular-nums; }
.plot svg { width: 100%; height: auto; }
footer { margin-top: 3rem; color: #55595f; font-size: .9rem; }
"""


def write_generation(generation: Generation, folder: Path, *, run: str) -> list[Path]:
    """Write ``molecules.csv``, ``summary.json`` and ``index.html``.

    Parameters
    ----------
    generation : Generation
    folder : Path
        Made if it is not there.
    run : str
        What the run is called.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    OSError
        One cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        folder / "molecules.csv": _csv(generation),
        folder / "summary.json": json.dumps(
            {"run": run, **generation.summary()}, indent=2, ensure_ascii=False
        )
        + "\n",
        folder / "index.html": generation_page(generation, run=run),
    }
    for path, text in contents.items():
        write_text(path, text)
    return list(contents)


def generation_text(generation: Generation) -> str:
    """Tell in a few lines how many molecules were kept, and how well their predictions agree."""
    lines = [f"{generation.sampled:6,} strings decoded"]
    lines += [f"{-count:6,} {DROPPED[stage]}" for stage, count in generation.dropped.items()]
    lines.append(f"{len(generation):6,} new molecules, kept")
    for name, spread in generation.consistency.items():
        plain, unit = _plain(name)
        lines.append(
            f"{plain}: predicted minus wanted has a mean absolute value of {spread.mae:.3g}{unit} "
            f"(the model's error on held-out molecules: {generation.held_out[name].mae:.3g})"
        )
    return "\n".join(lines) + "\n"


def generation_page(generation: Generation, *, run: str) -> str:
    """Render a page of HTML that needs nothing else: counts, box plots, drawings."""
    what = ", ".join(
        f"{_plain(name)[0]} {value:#.4g}{_plain(name)[1]}"
        for name, value in zip(generation.names, generation.wanted.tolist(), strict=True)
    )
    plural = "molecule" if len(generation) == 1 else "molecules"
    sections = [
        f"<h1>{len(generation)} new {plural} at {escape(what)}</h1>",
        _introduction(generation, run),
        _nearest(generation),
        _account(generation),
        _consistency(generation),
        _gallery(generation),
        "<footer><p>Written by stib_fast after Wieser, Parbhoo, Wieczorek, Roth: <cite>Inverse "
        "Learning of Symmetries</cite>, NeurIPS 2020, Experiment 5.</p></footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Generated molecules – {escape(run)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(sections) + "\n</main>\n</body>\n</html>\n"
    )


def _introduction(generation: Generation, run: str) -> str:
    point = (
        "a point of Z1 at which the predictor gives the target values, found from a training "
        "molecule whose prediction is near them"
        if generation.target
        else "the Z1 of a reference molecule"
    )
    return (
        f"<p>From the run <code>{escape(run)}</code>: Z1, which the properties are predicted from, "
        f"is held fixed at {point}. Z0, which is to know nothing of them, is drawn from the prior "
        f"(seed {generation.seed}), and every string decoded greedily. All properties on this page "
        "are the model's own predictions.</p>"
    )


def _nearest(generation: Generation) -> str:
    label = "Starting molecule" if generation.target else "Reference"
    at = "" if generation.target else _properties(generation, generation.wanted.tolist())
    cards = [_card(label, generation.reference, at)]
    for row, title in enumerate(("Nearest", "Second nearest")[: len(generation)]):
        cards.append(_molecule(generation, row, title))
    return (
        "<h2>The two nearest molecules</h2>\n"
        "<p>By Euclidean distance in Z0, in standard deviations of its prior.</p>\n"
        f'<ul class="molecules">{"".join(cards)}</ul>'
    )


def _account(generation: Generation) -> str:
    rows = [("decoded", generation.sampled, "total")]
    rows += [(DROPPED[stage], -count, "") for stage, count in generation.dropped.items()]
    rows.append(("new molecules, kept", len(generation), "total"))
    body = "".join(
        f'<tr class="{kind}"><th scope="row">{escape(text)}</th>'
        f"<td>{_signed(f'{count:,}')}</td></tr>"
        for text, count, kind in rows
    )
    formula = f"Formula asked for: {generation.formula}." if generation.formula else "Any formula."
    return (
        "<h2>What was kept, and what was not</h2>\n"
        f"<table><caption>{escape(formula)}</caption>"
        '<thead><tr><th scope="col">strings</th><th scope="col">count</th></tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _consistency(generation: Generation) -> str:
    title = "<h2>Self-consistency</h2>\n"
    if not len(generation):
        return title + "<p>No molecule was kept, so there is nothing to compare.</p>"
    rows = []
    inside = []
    for name, spread in generation.consistency.items():
        plain, unit = _plain(name)
        held_out = generation.held_out[name]
        inside.append(
            f"The box of {plain} lies "
            + ("within" if _within(spread.q1, spread.q3, held_out.mae) else "partly outside")
            + " the model's error."
        )
        for which, one in (("generated", spread), ("held out", held_out)):
            cells = [f"{one.count:,}"]
            cells += [f"{v:.3f}" for v in (one.mae, one.mean, one.q1, one.median, one.q3)]
            rows.append(
                f'<tr><th scope="row">{escape(plain + unit)}, {which}</th>'
                + "".join(f"<td>{_signed(cell)}</td>" for cell in cells)
                + "</tr>"
            )
    columns = ("molecules", "MAE", "mean", "lower quartile", "median", "upper quartile")
    head = "".join(f'<th scope="col">{text}</th>' for text in ("property", *columns))
    return (
        title + "<p>The molecules kept were encoded again and their properties predicted. If Z0 "
        "tells nothing of the properties, predictions stay at what is wanted, up to the model's "
        "error on molecules that it was not trained on (shaded: ± its mean). "
        + escape(" ".join(inside))
        + f'</p>\n<div class="plot">{consistency_figure(generation)}</div>\n'
        '<div class="scroll"><table><caption>Generated: predicted minus wanted. Held out: '
        "predicted minus data. MAE: mean absolute value.</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _gallery(generation: Generation) -> str:
    rest = range(2, min(len(generation), DRAWN + 2))
    if not rest:
        return ""
    cards = "".join(_molecule(generation, row, f"{row + 1}") for row in rest)
    left = len(generation) - rest.stop
    more = f" {left} more are in <code>molecules.csv</code>." if left else ""
    return (
        f"<h2>The others</h2>\n<p>In the order of their distance.{more}</p>\n"
        f'<ul class="molecules">{cards}</ul>'
    )


def consistency_figure(generation: Generation) -> str:
    """Draw box plots of predicted minus wanted beside the model's held-out errors, as an SVG.

    The paper's Figures 6c and 7: boxes are quartiles, whiskers reach to the last molecule within
    1.5 times the box's width, dots are those beyond.

    Raises
    ------
    ValueError
        No molecule was generated.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if not len(generation):
        raise ValueError("no molecule was generated, so there is no box to draw")
    count = len(generation.names)
    # Glyphs as shapes and ids that are always the same: a page needs no font and is reproducible.
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "stib_fast", "font.size": 9}):
        figure = Figure(figsize=(8.4, 1.75 * count + 0.2), layout="constrained")
        panels = figure.subplots(count, 1, squeeze=False)[:, 0]
        for column, (axes, name) in enumerate(zip(panels, generation.names, strict=True)):
            plain, unit = _plain(name)
            error = generation.held_out[name].mae
            axes.axvspan(-error, error, color="#cfe3f5", linewidth=0)
            axes.axvline(0, color="#55595f", linewidth=0.8)
            boxes = axes.boxplot(
                [
                    generation.held_out_errors[:, column].numpy(),
                    generation.differences[:, column].numpy(),
                ],
                orientation="horizontal",
                widths=0.55,
                patch_artist=True,
                medianprops={"color": "#1c1e21", "linewidth": 1.4},
                flierprops={"marker": "o", "markersize": 2.5, "markeredgecolor": "#55595f"},
            )
            for box, colour in zip(boxes["boxes"], ("#c9ccd1", "#3b7dbd"), strict=True):
                box.set_facecolor(colour)
            axes.set_yticks(
                [1, 2], ["held out:\npredicted − data", "generated:\npredicted − wanted"]
            )
            axes.set_xlabel(f"{plain},{unit}" if unit else plain)
            axes.spines[["top", "right"]].set_visible(False)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    described = " ".join(
        f"{_plain(name)[0]}: generated {spread.q1:.3g} to {spread.q3:.3g}, median "
        f"{spread.median:.3g}; model error ±{generation.held_out[name].mae:.3g}{_plain(name)[1]}."
        for name, spread in generation.consistency.items()
    )
    return _inline(text.getvalue(), f"Box plots. {described}")


def _molecule(generation: Generation, row: int, title: str) -> str:
    at = _properties(generation, generation.predictions[row].tolist())
    distance = f"<p>distance {float(generation.distances[row]):.2f}</p>"
    return _card(title, generation.smiles[row], at + distance)


def _card(title: str, smiles: str, below: str) -> str:
    return (
        f"<li><h3>{escape(title)}</h3>{_drawing(smiles)}"
        f"<p><code>{escape(smiles)}</code></p>{below}</li>"
    )


def _properties(generation: Generation, values: list[float]) -> str:
    return "".join(
        f"<p>{escape(_plain(name)[0])} {value:#.4g}{escape(_plain(name)[1])}</p>"
        for name, value in zip(generation.names, values, strict=True)
    )


def _drawing(smiles: str) -> str:
    """A molecule's structure as an SVG."""
    from rdkit import Chem
    from rdkit.Chem.Draw import rdMolDraw2D

    drawer = rdMolDraw2D.MolDraw2DSVG(220, 150)
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, Chem.MolFromSmiles(smiles))
    drawer.FinishDrawing()
    return _inline(drawer.GetDrawingText(), f"Structure of {smiles}")


def _inline(svg: str, description: str) -> str:
    """An SVG document as a part of a page, with words for who does not see it."""
    _, start, rest = svg.partition("<svg")
    return f'{start} role="img" aria-label="{escape(description)}"{rest}'


def _csv(generation: Generation) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    names = generation.names
    writer.writerow(
        ["smiles", "canonical_smiles", "z0_distance", *names, *(f"{n}_minus_wanted" for n in names)]
    )
    columns = zip(
        generation.smiles,
        generation.canonical,
        generation.distances.tolist(),
        generation.predictions.tolist(),
        generation.differences.tolist(),
        strict=True,
    )
    for smiles, canonical, distance, predicted, off in columns:
        numbers = (f"{value:.7g}" for value in (distance, *predicted, *off))
        writer.writerow([smiles, canonical, *numbers])
    return text.getvalue()


def _plain(name: str) -> tuple[str, str]:
    """A property's name without unit, and the unit after a space, where it is known."""
    plain, unit = UNITS.get(name, (name, ""))
    return plain, f" {unit}" if unit else ""


def _signed(number: str) -> str:
    return number.replace("-", "−")


def _within(low: float, high: float, error: float) -> bool:
    return low >= -error and high <= error
