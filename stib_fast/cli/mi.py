"""``stib mi``: the mutual information between columns of tables."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import jsonargparse
import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from stib_fast import functional
from stib_fast.cli.moments import (
    SIDES,
    add_table_arguments,
    are_moments,
    check_columns,
    dropped,
    place,
    positive,
    read_moments,
    refuse_bad,
    refuse_no_rows,
)
from stib_fast.cli.parsers import Commands, command
from stib_fast.data.columns import read_columns

NATS_PER_UNIT = {"bits": math.log(2), "nats": 1.0}
K, VARIANT, REPETITIONS = 20, 1, 10
UNEQUAL_SPREADS = 10  # times, from which a warning tells that the estimate is not to be trusted
KNN_OPTIONS = ("k", "variant", "subsample")

Columns = dict[str, NDArray[numpy.float64]]


def add_to(commands: Commands) -> None:
    """Add the command."""
    mi = command(
        "Estimate the mutual information I(x; y), or I(x; y | given), between columns of tables."
    )
    add_table_arguments(mi)
    mi.add_argument(
        "--estimator",
        choices=["knn", "gaussian", "copula"],
        help="nearest neighbours (Kraskov et al. 2004; the scale of each column counts), or "
        "Gaussian, of the columns or of their ranks, less its bias (Ince et al. 2017); gaussian "
        "reads files of any length in one pass and little memory; default: knn, and gaussian of "
        "what `stib moments` wrote",
    )
    mi.add_argument("--k", type=positive, help=f"neighbours; knn only; default: {K}")
    mi.add_argument(
        "--variant", type=positive, choices=[1, 2], help=f"Kraskov's algorithm; default: {VARIANT}"
    )
    mi.add_argument(
        "--subsample",
        type=positive,
        metavar="ROWS",
        help=f"average over up to {REPETITIONS} disjoint random subsamples of so many rows, with "
        "the standard error; knn only; default: all rows at once",
    )
    mi.add_argument("--unit", choices=list(NATS_PER_UNIT), default="bits")
    mi.add_argument("--json", action="store_true", help="for programs")
    commands.add_subcommand("mi", mi)


class _Found(NamedTuple):
    """What an estimator tells."""

    nats: float
    standard_error: float | None
    settings: dict[str, Any]
    sides: dict[str, list[str]]
    rows: int
    dropped: dict[str, int]
    warnings: list[str]


def _mi(options: jsonargparse.Namespace) -> None:
    options.estimator = options.estimator or ("gaussian" if are_moments(options) else "knn")
    _check(options)
    found = _of_moments(options) if options.estimator == "gaussian" else _of_rows(options)
    if not math.isfinite(found.nats + (found.standard_error or 0)):
        raise ValueError(
            f"--estimator {options.estimator} finds no finite value; leave out columns that others "
            "determine, or take another estimator"
        )
    size, error = NATS_PER_UNIT[options.unit], found.standard_error
    facts = {
        "mi": found.nats / size,
        **({} if error is None else {"standard_error": error / size}),
        "unit": options.unit,
        "estimator": options.estimator,
        **found.settings,
        **found.sides,
        "rows_used": found.rows,
        "rows_dropped": found.dropped,
        "warnings": found.warnings,
    }
    print(json.dumps(facts, indent=2) if options.json else _text(facts))


def _check(options: jsonargparse.Namespace) -> None:
    check_columns(options)
    estimator = options.estimator
    if estimator != "gaussian" and are_moments(options):
        raise ValueError(f"{options.files[0]}: moments are enough for --estimator gaussian alone")
    if estimator != "gaussian" and options.workers is not None:
        raise ValueError(f"--workers is for --estimator gaussian, not {estimator}")
    if estimator == "knn":
        if options.given:
            raise ValueError(
                "--given: there is no conditional k-NN estimator; use --estimator copula or "
                "gaussian"
            )
        return
    for name in KNN_OPTIONS:
        if options[name] is not None:
            raise ValueError(f"--{name} is for --estimator knn, not {estimator}")


def _check_rows(options: jsonargparse.Namespace, rows: int, least: int, why: str) -> None:
    if rows < least:
        raise ValueError(
            f"{place(options)}: rows with a number in every column: {rows}; {why} needs {least} at "
            "least"
        )


def _check_columns_left(options: jsonargparse.Namespace, rows: int, columns: int) -> None:
    """Refuse too few rows for a covariance matrix."""
    _check_rows(
        options, rows, columns + 1, f"--estimator {options.estimator} with {columns} columns"
    )


def _warn(warnings: list[str]) -> list[str]:
    for warning in warnings:
        print(f"stib: warning: {warning}", file=sys.stderr)
    return warnings


def _constant(names: Iterable[str]) -> list[str]:
    return [f"column {name} is constant: it carries nothing" for name in names]


# ---- of the moments of files of any length -------------------------------------------------------


def _of_moments(options: jsonargparse.Namespace) -> _Found:
    table = read_moments(options)
    refuse_no_rows(options, table.rows, table.missing + table.infinite)
    _check_columns_left(options, table.rows, len(table.columns))
    estimate = functional.gaussian_cmi_of if len(table.parts) == 3 else functional.gaussian_mi_of
    asked = [options[side] for side in SIDES] if options.x else map(list, (*table.parts, ()))
    return _Found(
        nats=estimate(table.scaled, bias_correction=True).item(),
        standard_error=None,
        settings={},
        sides=dict(zip(SIDES, asked, strict=False)),
        rows=table.rows,
        dropped=dropped(table),
        warnings=_warn(_constant(table.constant)),
    )


# ---- of the rows, all of them in memory ----------------------------------------------------------


def _of_rows(options: jsonargparse.Namespace) -> _Found:
    columns, lost = _columns(options)
    rows = len(next(iter(columns.values())))
    settings = _settings(options, rows) if options.estimator == "knn" else {}
    if options.estimator == "knn":
        _check_rows(options, rows, settings["k"] + 1, f"--k {settings['k']}")
    else:
        sizes = [1 if column.ndim == 1 else column.shape[1] for column in columns.values()]
        _check_columns_left(options, rows, sum(sizes))
    warnings = _warn(_warnings(columns, options.estimator))
    sides = {side: options[side] for side in SIDES}
    parts = [_side(columns, names) for names in sides.values() if names]
    nats, error = _estimate(options.estimator, parts, settings)
    if "subsample" in settings:
        used = settings["repetitions"] * settings["subsample"]
        lost["left over by subsampling"], rows = rows - used, used
    return _Found(nats, error, settings, sides, rows, lost, warnings)


def _columns(options: jsonargparse.Namespace) -> tuple[Columns, dict[str, int]]:
    """The rows of all files that have a number in every column, and how many have not."""
    names = [name for side in SIDES for name in options[side]]
    tables, lost = [], Counter[str]()
    for file in options.files:
        columns, counts = _complete_rows(file, read_columns(file, names), options.nan)
        tables.append(columns)
        lost.update(counts)
    whole = {name: numpy.concatenate([columns[name] for columns in tables]) for name in names}
    refuse_no_rows(options, len(whole[names[0]]), sum(lost.values()))
    return whole, dict(lost)


def _complete_rows(file: str, columns: Columns, nan: str) -> tuple[Columns, dict[str, int]]:
    """Leave out the rows that lack a number, and count them by reason."""
    missing, infinite = (
        numpy.any([_rows_where(test, column) for column in columns.values()], axis=0)
        for test in (numpy.isnan, numpy.isinf)
    )
    bad = missing | infinite
    if bad.any() and nan == "error":
        row = int(bad.argmax())
        name = next(n for n, c in columns.items() if not numpy.isfinite(c[row]).all())
        refuse_bad(f"{file}: column {name!r}, row {row + 1}", int(bad.sum()))
    lost = {
        "missing value": int(missing.sum()),
        "infinite value": int((infinite & ~missing).sum()),
    }
    return {name: column[~bad] for name, column in columns.items()}, lost


def _rows_where(test: Any, column: NDArray[numpy.float64]) -> NDArray[numpy.bool_]:
    return test(column).reshape(len(column), -1).any(axis=1)


def _warnings(columns: Columns, estimator: str) -> list[str]:
    found, varying = [], []
    for name, column in columns.items():
        names = [name] if column.ndim == 1 else [f"{name}[{i}]" for i in range(column.shape[1])]
        constant = numpy.all(column == column[:1], axis=0).reshape(-1)
        found += _constant(names[i] for i in constant.nonzero()[0])
        scaled, exponent = _scaled(column)
        spreads = numpy.ldexp(scaled.std(axis=0), exponent).reshape(-1).tolist()
        varying += [(spreads[i], names[i]) for i in (~constant).nonzero()[0]]
    varying.sort()
    if estimator == "knn" and varying and varying[-1][0] > UNEQUAL_SPREADS * varying[0][0]:
        (least, narrow), (most, wide) = varying[0], varying[-1]
        found.append(
            f"the standard deviations of columns {narrow} ({least:.3g}) and {wide} ({most:.3g}) "
            "differ much: neighbours in the maximum norm are those in the wide one; rescale them"
        )
    return found


def _scaled(
    column: NDArray[numpy.float64],
) -> tuple[NDArray[numpy.float64], NDArray[numpy.int32]]:
    """The column within -1 and 1, and the power of two it was divided by, which is exact."""
    exponent = numpy.frexp(numpy.abs(column).max(axis=0))[1]
    return numpy.ldexp(column, -exponent), exponent


def _side(columns: Columns, names: list[str]) -> Tensor:
    side = [columns[name].reshape(len(columns[name]), -1) for name in names]
    return torch.from_numpy(numpy.hstack(side))


def _settings(options: jsonargparse.Namespace, rows: int) -> dict[str, Any]:
    settings = {
        "k": K if options.k is None else options.k,
        "variant": VARIANT if options.variant is None else options.variant,
    }
    if options.subsample is None:
        return settings
    size, k = options.subsample, settings["k"]
    if size <= k:
        raise ValueError(f"--subsample must be more than --k, {k}; got {size}")
    if 2 * size > rows:
        raise ValueError(
            f"--subsample {size}: two disjoint subsamples of {size} need {2 * size} rows; "
            f"{place(options)} has {rows}: take at most {rows // 2}"
        )
    return settings | {"subsample": size, "repetitions": min(REPETITIONS, rows // size)}


def _estimate(
    estimator: str, parts: list[Tensor], settings: dict[str, Any]
) -> tuple[float, float | None]:
    """Nats, and their standard error where it is known."""
    x, y, *given = parts
    if "subsample" in settings:
        return functional.knn_mi_subsampled(x, y, **settings)
    if estimator == "knn":
        value = functional.knn_mi(x, y, **settings)
    elif given:
        value = functional.gaussian_copula_cmi(x, y, *given)
    else:
        value = functional.gaussian_copula_mi(x, y)
    return value.item(), None


def _text(facts: dict[str, Any]) -> str:
    names = (*KNN_OPTIONS, "repetitions")
    settings = "".join(f", {name} {facts[name]:,}" for name in names if name in facts)
    error = f" ± {facts['standard_error']:.4f}" if "standard_error" in facts else ""
    lines = {
        "mutual information": f"{facts['mi']:.4f}{error} {facts['unit']}",
        **{side: ", ".join(facts[side]) for side in ("x", "y", "given") if facts[side]},
        "estimator": facts["estimator"] + settings,
        "rows used": f"{facts['rows_used']:,}",
        **{f"dropped: {why}": f"{count:,}" for why, count in facts["rows_dropped"].items()},
    }
    width = max(len(name) for name in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


HANDLERS = {"mi": _mi}
