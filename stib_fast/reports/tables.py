"""The paper's results, and tables that set ours beside them.

The figures are Table 1 of Wieser, Parbhoo, Wieczorek, Roth: Inverse Learning of Symmetries
(NeurIPS 2020, arXiv:2002.02782), and for ZINC Table 2 of its first version, keyed by the names our
metrics have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

ARTIFICIAL_PAPER: dict[str, dict[str, float]] = {
    "VAE": {"mae_x": 0.21, "mae_y": 0.49, "mi_bits": 3.89},
    "STIB w/o adv.": {"mae_x": 0.01, "mae_y": 0.65, "mi_bits": 3.19},
    "CVAE": {"mae_x": 0.33, "mi_bits": 2.57},
    "CVIB": {"mae_x": 0.67, "mi_bits": 2.45},
    "STIB": {"mae_x": 0.04, "mae_y": 0.47, "mi_bits": 0.25},
}
"""Table 1, artificial experiment; MI is Kraskov's estimate between Z0 and Y, of VAE, CVAE and CVIB
between all of Z and Y."""

ARTIFICIAL_PAPER_OTHER_MI = {"STIB w/o adv.": 3.85, "CVIB": 2.44, "STIB": 0.30}
"""MI in bits where the paper's text (section 5.1) and earlier version differ from Table 1."""

ARTIFICIAL_AUTHORS_CODE: dict[str, dict[str, float]] = {
    "authors' code, checkpoint at 80,400": {"mae_x": 0.034, "mae_y": 0.463, "mi_bits": 0.266},
    "authors' code, last iteration": {"mae_x": 0.055, "mae_y": 0.481, "mi_bits": 0.348},
}
"""The authors' code (TensorFlow 1.15) run anew for 150,000 iterations with one seed, measured on
their 10,000 test points: the checkpoint that its rule selects, on those points, and the last."""

QM9_PAPER: dict[str, dict[str, float]] = {
    "VAE": {
        "token_accuracy": 0.98,
        "mae_gap_ev": 0.28,
        "mae_polarisability": 0.75,
        "mi_bits": 1.54,
    },
    "STIB w/o adv.": {
        "token_accuracy": 0.98,
        "mae_gap_ev": 0.28,
        "mae_polarisability": 0.70,
        "mi_bits": 0.66,
    },
    "CVAE": {"token_accuracy": 0.91, "mi_bits": 0.56},
    "CVIB": {"token_accuracy": 0.76, "mi_bits": 0.03},
    "STIB": {
        "token_accuracy": 0.98,
        "mae_gap_ev": 0.27,
        "mae_polarisability": 0.77,
        "mi_bits": 0.09,
    },
}
"""Table 1, QM9: C7H10O2 isomers, 6,095 molecules."""

ZINC_PAPER: dict[str, dict[str, float]] = {
    "VAE": {"token_accuracy": 0.98, "mae_qed": 0.05, "mi_bits": 0.80},
    "STIB w/o adv.": {"token_accuracy": 0.98, "mae_qed": 0.05, "mi_bits": 0.24},
    "CVAE": {"token_accuracy": 0.98, "mi_bits": 0.28},
    "CVIB": {"token_accuracy": 0.94, "mi_bits": 0.29},
    "STIB": {"token_accuracy": 0.98, "mae_qed": 0.05, "mi_bits": 0.07},
}
"""First version (arXiv:2002.02782v1), Table 2, ZINC: 250,000 molecules and their QED. It calls the
unit of MI nats, the later version calls the same figures of QM9 bits."""

_ON_Z0 = {
    "mi_bits": "MI",
    "mi_bits_sampled": "MI smpl",
    "mi_bits_whitened_active": "MI act.",
    "probe_r2_sampled": "R² smpl",
    "probe_r2_active": "R² act.",
}
_ARTIFICIAL_COLUMNS = {"mae_x": "MAE(X)", "mae_y": "MAE(Y)", **_ON_Z0}
_ON_STRINGS = {"token_accuracy": "SMILES", "string_accuracy": "whole"}
_MOLECULES_ON_Z0 = {n: title for n, title in _ON_Z0.items() if n != "mi_bits_whitened_active"}
_QM9_COLUMNS = {
    **_ON_STRINGS,
    "mae_gap_ev": "gap eV",
    "mae_polarisability": "pol bohr³",
    **_MOLECULES_ON_Z0,
}
_INVARIANCE_COLUMNS = {
    "mi_bits": "MI",
    "mi_bits_sampled": "smpl",
    "mi_bits_whitened": "whit.",
    "mi_bits_whitened_active": "act.",
    "active_units": "active units",
    "probe_r2_sampled": "R² smpl",
    "probe_r2_active": "R² act.",
}
ARTIFICIAL_LIMIT = {"mae_x": 0.0, "mae_y": 0.432, **dict.fromkeys(_ON_Z0, 0.0)}
"""The best that is possible: a Z0 independent of Y exists, and MAE(Y) is that of the noise-free
spiral at 2 x₀ + x₁ (measured on 10,000 samples; 0.002 from one set of samples to another)."""

_NO_FIGURE = "–"
MOLECULES_LEGEND = (
    "SMILES: share of tokens reconstructed; whole: of whole strings. The paper's \"correctly\n"
    'reconstructed SMILES strings" may be either.\n'
    "Test molecules, but for the columns on Z0: the whole data set, and above 10,000\n"
    "molecules at most 5,000 test molecules.\n"
)
_TARGETS_LEGEND = "MAE: in the target's unit; expl.: share of its variance that is predicted.\n"
ON_Z0_LEGEND = (
    "MI: Kraskov's estimate (k = 20) of I(Z0; Y) in bits, at the posterior means. R²: that of Y\n"
    "predicted from Z0, cross-validated. smpl: Z0 drawn from the posterior. act.: the means'\n"
    "active units, whitened. Of all of these, 0 is best. VAE, CVAE, CVIB: all of Z in place of\n"
    "Z0.\n"
)

INVARIANCE_LEGEND = (
    "Kraskov's estimate (k = 20) of I(Z0; Y) in bits. MI: at the posterior means in their own\n"
    "scale, the paper's figure; smpl: Z0 drawn from the posterior; whit.: the means whitened;\n"
    "act.: the means of the active units (KL divergence above 0.01 nats) whitened. R²: that of Y\n"
    "predicted from Z0, cross-validated, by the better of nearest neighbours and boosted trees.\n"
    "VAE, CVAE, CVIB: all of Z in place of Z0.\n"
)


def artificial_table(
    results: Mapping[str, Mapping[str, float | None]],
    beside: Mapping[str, Mapping[str, float | None]] | None = None,
) -> str:
    """Render the artificial experiment: the paper's rows, ours, and the limit.

    Parameters
    ----------
    results : Mapping
        Row name -> metric name -> value. Shown are ``mae_x``, ``mae_y``, ``mi_bits``,
        ``mi_bits_sampled``, ``mi_bits_whitened_active``, ``probe_r2_sampled`` and
        ``probe_r2_active``; other metrics are passed over, missing or None ones are shown as "–".
    beside : Mapping, optional
        Rows that are neither of the paper nor of our models.

    Returns
    -------
    str
        A Markdown table, aligned for reading as plain text, and its legend.

    Raises
    ------
    ValueError
        If a row has none of the metrics shown.

    Examples
    --------
    >>> table = artificial_table({"STIB": {"mae_x": 0.03, "mae_y": 0.46, "mi_bits": 0.01}})
    >>> print(table.splitlines()[7][:42])
    | ours: STIB           |  0.030 |  0.460 |
    """
    paper = {name: _formatted(row, digits=2) for name, row in ARTIFICIAL_PAPER.items()}
    for name, bits in ARTIFICIAL_PAPER_OTHER_MI.items():
        paper[name]["mi_bits"] += f" ({bits:.2f})"
    others = {**(beside or {}), "limit": ARTIFICIAL_LIMIT}
    table = _beside_paper(_ARTIFICIAL_COLUMNS, paper, results, others)
    return (
        f"{table}\n{ON_Z0_LEGEND}"
        "Brackets: the paper's text and its earlier version. Limit: the best possible.\n"
    )


def qm9_table(
    results: Mapping[str, Mapping[str, float | None]],
    beside: Mapping[str, Mapping[str, float | None]] | None = None,
) -> str:
    """Render the QM9 experiment: the paper's rows and ours.

    Parameters
    ----------
    results : Mapping
        Row name -> metric name -> value. Shown are ``token_accuracy`` and ``string_accuracy``
        (0 to 1), ``mae_gap_ev``,
        ``mae_polarisability`` and the figures on Z0 of :func:`artificial_table`.
    beside : Mapping, optional
        Rows that are neither of the paper nor of our models.

    Returns
    -------
    str
        A Markdown table, aligned for reading as plain text, and its legend.

    Raises
    ------
    ValueError
        If a row has none of the metrics shown.

    Examples
    --------
    >>> table = qm9_table({"STIB": {"token_accuracy": 0.981, "string_accuracy": 0.92}})
    >>> print(table.splitlines()[7][:41])
    | ours: STIB           |  0.981 | 0.920 |
    """
    paper = {name: _formatted(row, digits=2) for name, row in QM9_PAPER.items()}
    table = _beside_paper(_QM9_COLUMNS, paper, results, beside or {})
    return f"{table}\n{MOLECULES_LEGEND}{ON_Z0_LEGEND}"


def molecule_table(
    results: Mapping[str, Mapping[str, float | None]],
    targets: Sequence[str],
    paper: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Render an experiment on molecules with any targets.

    Parameters
    ----------
    results : Mapping
        Row name -> metric name -> value. Shown are ``token_accuracy`` and ``string_accuracy``
        (0 to 1), ``mae_…`` and ``r2_…`` of each target and the figures on Z0 of
        :func:`artificial_table`.
    targets : sequence of str
        Names of the targets.
    paper : Mapping, optional
        Row name -> metric name -> the paper's value.

    Returns
    -------
    str
        A Markdown table, aligned for reading as plain text, and its legend.

    Raises
    ------
    ValueError
        If a row has none of the metrics shown.

    Examples
    --------
    >>> table = molecule_table({"STIB": {"token_accuracy": 0.981, "mae_logP": 0.25}}, ["logP"])
    >>> print(table.splitlines()[0][:44])
    | model      | SMILES | whole | MAE logP | e
    >>> print(table.splitlines()[2][:44])
    | ours: STIB |  0.981 |     – |    0.250 |
    """
    columns = dict(_ON_STRINGS)
    for target in targets:
        columns |= {f"mae_{target}": f"MAE {target}", f"r2_{target}": "expl."}
    columns |= _MOLECULES_ON_Z0
    rows = {name: _formatted(row, digits=2) for name, row in (paper or {}).items()}
    table = _beside_paper(columns, rows, results, {})
    return f"{table}\n{MOLECULES_LEGEND}{_TARGETS_LEGEND}{ON_Z0_LEGEND}"


def _formatted(row: Mapping[str, float | None], digits: int) -> dict[str, str]:
    return {
        name: "NaN" if math.isnan(value) else _rounded(value, digits)
        for name, value in row.items()
        if value is not None
    }


def _beside_paper(
    columns: Mapping[str, str],
    paper: Mapping[str, Mapping[str, str]],
    results: Mapping[str, Mapping[str, float | None]],
    others: Mapping[str, Mapping[str, float | None]],
) -> str:
    for name, row in results.items():
        if not set(columns) & set(row):
            raise ValueError(
                f"results[{name!r}] has none of the metrics of this table: {', '.join(columns)}"
            )
    cells = {f"paper: {name}": row for name, row in paper.items()}
    cells |= {f"ours: {name}": _formatted(row, digits=3) for name, row in results.items()}
    cells |= {name: _formatted(row, digits=3) for name, row in others.items()}
    header = ["model", *columns.values()]
    body = [
        [name, *(row.get(column, _NO_FIGURE) for column in columns)] for name, row in cells.items()
    ]
    return markdown_table(header, body)


def invariance_table(results: Mapping[str, Mapping[str, float | None]]) -> str:
    """Render all that is measured of what Z0 still knows of Y.

    Parameters
    ----------
    results : Mapping
        Row name -> metric name -> value, as `stib_fast.metrics.invariance` returns them; missing
        or None ones are shown as "–".

    Returns
    -------
    str
        A Markdown table, aligned for reading as plain text, and its legend.

    Examples
    --------
    >>> print(invariance_table({"STIB": {"mi_bits": 0.05, "active_units": 2}}).splitlines()[2])
    | STIB  | 0.050 |    – |     – |    – |            2 |       – |       – |
    """
    body = [
        [name, *(_cell(row.get(column), column) for column in _INVARIANCE_COLUMNS)]
        for name, row in results.items()
    ]
    table = markdown_table(["model", *_INVARIANCE_COLUMNS.values()], body)
    return f"{table}\n{INVARIANCE_LEGEND}"


def _cell(value: float | None, column: str) -> str:
    if value is None:
        return _NO_FIGURE
    return f"{value:g}" if column == "active_units" else _rounded(value, digits=3)


def _rounded(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # -0.0 + 0.0 is 0.0


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Render a Markdown table, the first column aligned to the left and the others to the right.

    Examples
    --------
    >>> print(markdown_table(["model", "MI"], [["STIB", "0.05"]]), end="")
    | model |   MI |
    | ----- | ---: |
    | STIB  | 0.05 |
    """
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        for row in (header, rule, *body)
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
