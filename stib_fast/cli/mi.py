"""``stib mi``: the mutual information between columns of a file."""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

import jsonargparse
import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from stib_fast import functional
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
        "Estimate the mutual information I(x; y), or I(x; y | given), between columns of a file."
    )
    mi.add_argument("file", type=str, help=".csv (also .gz), .parquet, or .npz with its arrays")
    mi.add_argument("--x", type=str, nargs="+", required=True, metavar="COLUMN")
    mi.add_argument("--y", type=str, nargs="+", required=True, metavar="COLUMN")
    mi.add_argument("--given", type=str, nargs="+", default=[], metavar="COLUMN")
    mi.add_argument(
        "--estimator",
        choices=["knn", "gaussian", "copula"],
        default="knn",
        help="nearest neighbours (Kraskov et al. 2004; the scale of each column counts), or "
        "Gaussian, of the columns or of their ranks, less its bias (Ince et al. 2017)",
    )
    mi.add_argument("--k", type=_count, help=f"neighbours; knn only; default: {K}")
    mi.add_argument(
        "--variant", type=_count, choices=[1, 2], help=f"Kraskov's algorithm; default: {VARIANT}"
    )
    mi.add_argument(
        "--subsample",
        type=_count,
        metavar="ROWS",
        help=f"average over up to {REPETITIONS} disjoint random subsamples of so many rows, with "
        "the standard error; knn only; default: all rows at once",
    )
    mi.add_argument("--unit", choices=list(NATS_PER_UNIT), default="bits")
    mi.add_argument(
        "--nan",
        choices=["drop", "error"],
        default="error",
        help="rows with a missing or infinite value",
    )
    mi.add_argument("--json", action="store_true", help="for programs")
    commands.add_subcommand("mi", mi)


def _count(value: str | int) -> int:
    if not str(value).isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1; got {value}")
    return int(value)


def _mi(options: jsonargparse.Namespace) -> None:
    _check(options)
    columns = read_columns(options.file, [*options.x, *options.y, *options.given])
    columns, dropped = _complete_rows(options.file, columns, options.nan)
    rows = len(next(iter(columns.values())))
    settings = _settings(options, rows)
    _check_rows(options, settings, columns, rows)
    warnings = _warnings(columns, options.estimator)
    for warning in warnings:
        print(f"stib: warning: {warning}", file=sys.stderr)
    if options.estimator == "gaussian":
        # It is the same for columns of any size, but sums squares.
        columns = {name: _scaled(column)[0] for name, column in columns.items()}
    parts = [_side(columns, names) for names in (options.x, options.y, options.given) if names]
    nats, standard_error = _estimate(options.estimator, parts, settings)
    used = rows
    if "subsample" in settings:
        used = settings["repetitions"] * settings["subsample"]
        dropped["left over by subsampling"] = rows - used
    size = NATS_PER_UNIT[options.unit]
    facts = {
        "mi": nats / size,
        **({} if standard_error is None else {"standard_error": standard_error / size}),
        "unit": options.unit,
        "estimator": options.estimator,
        **settings,
        "x": options.x,
        "y": options.y,
        "given": options.given,
        "rows_used": used,
        "rows_dropped": dropped,
        "warnings": warnings,
    }
    print(json.dumps(facts, indent=2) if options.json else _text(facts))


def _check(options: jsonargparse.Namespace) -> None:
    sides = {name: options[name] for name in ("x", "y", "given")}
    asked = [column for names in sides.values() for column in names]
    for column in asked:
        if asked.count(column) > 1:
            where = ", ".join(f"--{side}" for side, names in sides.items() if column in names)
            raise ValueError(f"column {column!r} is asked for more than once ({where})")
    if options.estimator == "knn":
        if options.given:
            raise ValueError(
                "--given: there is no conditional k-NN estimator; use --estimator copula or "
                "gaussian"
            )
        return
    for name in KNN_OPTIONS:
        if options[name] is not None:
            raise ValueError(f"--{name} is for --estimator knn, not {options.estimator}")


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
        raise ValueError(
            f"{file}: column {name!r}, row {row + 1}: a missing or infinite value; there are "
            f"{int(bad.sum())} such rows; --nan drop leaves them out"
        )
    if bad.all():
        raise ValueError(f"{file}: no row has a finite number in every column")
    dropped = {
        "missing value": int(missing.sum()),
        "infinite value": int((infinite & ~missing).sum()),
    }
    return {name: column[~bad] for name, column in columns.items()}, dropped


def _rows_where(test: Any, column: NDArray[numpy.float64]) -> NDArray[numpy.bool_]:
    return test(column).reshape(len(column), -1).any(axis=1)


def _warnings(columns: Columns, estimator: str) -> list[str]:
    found, varying = [], []
    for name, column in columns.items():
        names = [name] if column.ndim == 1 else [f"{name}[{i}]" for i in range(column.shape[1])]
        constant = numpy.all(column == column[:1], axis=0).reshape(-1)
        found += [
            f"column {names[i]} is constant: it carries nothing" for i in constant.nonzero()[0]
        ]
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
    if options.estimator != "knn":
        return {}
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
            f"{options.file} has {rows}: take at most {rows // 2}"
        )
    return settings | {"subsample": size, "repetitions": min(REPETITIONS, rows // size)}


def _check_rows(
    options: jsonargparse.Namespace, settings: dict[str, Any], columns: Columns, rows: int
) -> None:
    if options.estimator == "knn":
        least, why = settings["k"] + 1, f"--k {settings['k']}"
    else:
        total = sum(1 if column.ndim == 1 else column.shape[1] for column in columns.values())
        least, why = total + 1, f"--estimator {options.estimator} with {total} columns"
    if rows < least:
        raise ValueError(
            f"{options.file}: rows with a number in every column: {rows}; {why} needs {least} at "
            "least"
        )


def _estimate(
    estimator: str, parts: list[Tensor], settings: dict[str, Any]
) -> tuple[float, float | None]:
    """Nats, and their standard error where it is known."""
    nats: float
    error: float | None
    if "subsample" in settings:
        nats, error = functional.knn_mi_subsampled(parts[0], parts[1], **settings)
    else:
        nats, error = _of_all_rows(estimator, parts, settings), None
    if not math.isfinite(nats + (error or 0)):
        raise ValueError(
            f"--estimator {estimator} finds no finite value; leave out columns that others "
            "determine, or take another estimator"
        )
    return nats, error


def _of_all_rows(estimator: str, parts: list[Tensor], settings: dict[str, Any]) -> float:
    x, y, *given = parts
    if estimator == "knn":
        value = functional.knn_mi(x, y, **settings)
    elif estimator == "copula" and given:
        value = functional.gaussian_copula_cmi(x, y, *given)
    elif estimator == "copula":
        value = functional.gaussian_copula_mi(x, y)
    elif given:
        value = functional.gaussian_cmi(x, y, *given, bias_correction=True)
    else:
        value = functional.gaussian_mi(x, y, bias_correction=True)
    return value.item()


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
