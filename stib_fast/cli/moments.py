"""``stib moments``: count, mean and scatter of columns of tables, to be added up elsewhere."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jsonargparse

from stib_fast.cli.parsers import Commands, command
from stib_fast.data.streaming import TableMoments, table_moments

SUFFIX = ".moments"
SIDES = ("x", "y", "given")


def add_to(commands: Commands) -> None:
    """Add the command."""
    moments = command(
        "Count, mean and scatter of columns of tables, in one pass: `stib mi` adds up such files "
        "of many tables or machines, and so does this command."
    )
    add_table_arguments(moments)
    moments.add_argument("-o", "--output", type=str, required=True, metavar=f"NAME{SUFFIX}")
    commands.add_subcommand("moments", moments)


def add_table_arguments(parser: jsonargparse.ArgumentParser) -> None:
    """Add the options that say what is read."""
    parser.add_argument(
        "files",
        type=str,
        nargs="+",
        metavar="FILE",
        help=".csv (also .gz), .parquet, .npz with its arrays; or what `stib moments` wrote, whose "
        "columns are chosen already",
    )
    for side in SIDES:
        parser.add_argument(f"--{side}", type=str, nargs="+", default=[], metavar="COLUMN")
    parser.add_argument(
        "--nan",
        choices=["drop", "error"],
        default="error",
        help="rows with a missing or infinite value",
    )
    parser.add_argument("--workers", type=positive, help="processes that read tables; default: 1")


def positive(value: str | int) -> int:
    """Read a number of things."""
    if not str(value).isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1; got {value}")
    return int(value)


def check_columns(options: jsonargparse.Namespace) -> None:
    """Refuse columns that are missing, asked for twice, or chosen already, and a file named twice.

    Raises
    ------
    ValueError
        Naming the option.
    """
    for file in options.files:
        if options.files.count(file) > 1:
            raise ValueError(f"{file} is given more than once: its rows would count twice")
    if are_moments(options):
        if any(options[side] for side in SIDES):
            raise ValueError(f"--x, --y and --given were chosen when {options.files[0]} was made")
        return
    for side in ("x", "y"):
        if not options[side]:
            raise ValueError(f"--{side}: the columns of {side} are needed")
    sides = {name: options[name] for name in SIDES}
    asked = [column for names in sides.values() for column in names]
    for column in asked:
        if asked.count(column) > 1:
            where = ", ".join(f"--{side}" for side, names in sides.items() if column in names)
            raise ValueError(f"column {column!r} is asked for more than once ({where})")


def are_moments(options: jsonargparse.Namespace) -> bool:
    """Whether the files are of `stib moments`.

    Raises
    ------
    ValueError
        Some are, some are not.
    """
    kinds = {file.endswith(SUFFIX) for file in options.files}
    if len(kinds) > 1:
        raise ValueError(f"some files end in {SUFFIX} and some do not: one kind at a time")
    return kinds.pop()


def read_moments(options: jsonargparse.Namespace) -> TableMoments:
    """Go through the files.

    Raises
    ------
    OSError, ValueError
        As `table_moments` and `TableMoments.load` raise them; a row without a number, if refused.
    """
    if are_moments(options):
        return _sum_of_saved(options.files)
    sides = [options[side] for side in SIDES if options[side]]
    table = table_moments(options.files, *sides, nan="drop", workers=options.workers or 1)
    if options.nan == "error":
        refuse_bad(table.first_bad, table.missing + table.infinite)
    return table


def _sum_of_saved(files: Sequence[str]) -> TableMoments:
    total = TableMoments.load(files[0])
    for file in files[1:]:
        table = TableMoments.load(file)
        if table.parts != total.parts:
            raise ValueError(f"{file}: holds columns {table.parts}, not {total.parts}")
        total += table
    return total


def refuse_bad(place: str, rows: int) -> None:
    """Raise a ValueError if there are rows without a number."""
    if rows:
        raise ValueError(
            f"{place}: a missing or infinite value; there are {rows} such rows; --nan drop leaves "
            "them out"
        )


def refuse_no_rows(options: jsonargparse.Namespace, rows: int, bad: int) -> None:
    """Raise a ValueError if no rows are left."""
    if not rows and bad:
        raise ValueError(f"{place(options)}: no row has a finite number in every column")
    if not rows:
        raise ValueError(f"{place(options)}: the file holds no rows")


def place(options: jsonargparse.Namespace) -> str:
    """Name the files in a message."""
    first, *others = options.files
    return f"{first} and {len(others)} more" if others else first


def dropped(table: TableMoments) -> dict[str, int]:
    """Count the rows that were left out by reason."""
    return {"missing value": table.missing, "infinite value": table.infinite}


def _moments(options: jsonargparse.Namespace) -> None:
    check_columns(options)
    if not options.output.endswith(SUFFIX):
        raise ValueError(f"--output must end in {SUFFIX}, by which `stib mi` knows it")
    table = read_moments(options)
    table.save(options.output)
    lost = ", ".join(f"{why} {count:,}" for why, count in dropped(table).items())
    columns = ", ".join(table.columns)
    print(f"{options.output}: {table.rows:,} rows of {columns}; dropped: {lost}")


HANDLERS = {"moments": _moments}
