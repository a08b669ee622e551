from __future__ import annotations

import math

import pytest

from stib_fast.reports.tables import ZINC_PAPER, artificial_table, molecule_table, qm9_table

OURS = {
    "mae_x": 0.0841,
    "mae_y": 0.5069,
    "mi_bits": 0.0151,
    "mi_bits_sampled": -0.0049,
    "mi_bits_whitened": 0.6,
    "mi_bits_whitened_active": None,
    "active_units": 0,
    "probe_r2_sampled": -0.012,
}


def rows(table: str) -> dict[str, list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_artificial_rows() -> None:
    table = rows(artificial_table({"STIB": OURS}))
    assert list(table)[2:] == [
        "paper: VAE",
        "paper: STIB w/o adv.",
        "paper: CVAE",
        "paper: CVIB",
        "paper: STIB",
        "ours: STIB",
        "limit",
    ]
    assert table["model"][:3] == ["MAE(X)", "MAE(Y)", "MI"]
    assert table["paper: VAE"][:3] == ["0.21", "0.49", "3.89"]
    assert table["paper: CVAE"][:3] == ["0.33", "–", "2.57"]
    assert table["paper: STIB"][:3] == ["0.04", "0.47", "0.25 (0.30)"]
    assert table["paper: STIB w/o adv."][:3] == ["0.01", "0.65", "3.19 (3.85)"]
    assert table["paper: CVIB"] == ["0.67", "–", "2.45 (2.44)", "–", "–", "–", "–"]
    assert table["ours: STIB"] == ["0.084", "0.507", "0.015", "-0.005", "–", "-0.012", "–"]
    assert table["limit"][:3] == ["0.000", "0.432", "0.000"]


def test_qm9_rows() -> None:
    table = rows(qm9_table({"run 1": {"token_accuracy": 0.9876, "mae_gap_ev": math.nan}}))
    assert table["paper: VAE"][:5] == ["0.98", "–", "0.28", "0.75", "1.54"]
    assert table["paper: STIB w/o adv."][:5] == ["0.98", "–", "0.28", "0.70", "0.66"]
    assert table["paper: CVIB"][:5] == ["0.76", "–", "–", "–", "0.03"]
    assert table["paper: STIB"][:5] == ["0.98", "–", "0.27", "0.77", "0.09"]
    assert table["paper: CVAE"][:5] == ["0.91", "–", "–", "–", "0.56"]
    assert table["ours: run 1"][:5] == ["0.988", "–", "NaN", "–", "–"]
    assert "limit" not in table


def test_any_targets_have_their_columns() -> None:
    ours = {"token_accuracy": 0.5, "mae_logP": 0.25, "r2_logP": 0.875, "mae_qed": 0.125}
    table = rows(molecule_table({"a": ours}, ["logP", "qed"]))
    header = ["SMILES", "whole", "MAE logP", "expl.", "MAE qed", "expl.", "MI"]
    assert table["model"][:7] == header
    assert table["ours: a"][:7] == ["0.500", "–", "0.250", "0.875", "0.125", "–", "–"]
    assert list(table)[2:] == ["ours: a"]


def test_zinc_rows_of_the_paper() -> None:
    table = rows(molecule_table({"a": {"mae_qed": 0.1}}, ["qed"], ZINC_PAPER))
    assert table["paper: STIB"][:5] == ["0.98", "–", "0.05", "–", "0.07"]
    assert table["paper: CVIB"][:5] == ["0.94", "–", "–", "–", "0.29"]


@pytest.mark.parametrize(
    "table",
    [
        artificial_table({"x" * 14: OURS}),
        qm9_table({"STIB": OURS}),
        molecule_table({"STIB": OURS}, ["qed"], ZINC_PAPER),
    ],
)
def test_reads_well_in_a_terminal_of_100_columns_and_in_markdown(table: str) -> None:
    lines = table.splitlines()
    assert max(map(len, lines)) <= 100
    grid = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in grid}) == 1
    assert len({line.count("|") for line in grid}) == 1
    assert set(grid[1]) == set("| -:")
    assert lines[len(grid)] == "", "Markdown needs an empty line after a table"


def test_nothing_is_negative_zero() -> None:
    table = artificial_table({"STIB": {"mae_x": 0.01, "mi_bits": -0.0004}})
    assert table.count(" 0.000 |") > 1
    assert "-0.000" not in table


def test_row_without_any_metric_is_named() -> None:
    with pytest.raises(ValueError, match=r"results\['STIB'\] has none of .*mae_x, mae_y, mi_bits"):
        artificial_table({"STIB": {"MAE(X)": 0.1}})
    with pytest.raises(ValueError, match=r"results\['a'\] has none"):
        qm9_table({"a": {"mae_x": 0.1}})
