"""``stib generate``: new molecules with wanted properties."""

from __future__ import annotations

import math
from pathlib import Path

import jsonargparse

from stib_fast.cli.parsers import Commands, command
from stib_fast.generation import load
from stib_fast.reports.generation import generation_text, write_generation


def add_to(commands: Commands) -> None:
    """Add the command."""
    generate = command("Generate molecules with the properties of another, or with target values.")
    generate.add_argument("run", type=str)
    generate.add_argument("--reference", type=str, metavar="SMILES", help="take its Z1")
    generate.add_argument(
        "--target",
        type=str,
        metavar="NAME=VALUE,…",
        help="in the units of the data; QM9: gap (eV), polarisability (bohr³)",
    )
    generate.add_argument("-n", type=int, default=500, help="strings to decode")
    generate.add_argument("--seed", type=int, default=0, help="of Z0")
    generate.add_argument(
        "--formula",
        type=str,
        default="auto",
        help="keep this one, such as C7H10O2; any; auto: that of the run's molecules, if one",
    )
    generate.add_argument("--out", type=str, required=True, help="folder to write into; empty")
    commands.add_subcommand("generate", generate)


def _generate(options: jsonargparse.Namespace) -> None:
    target = None if options.target is None else _values(options.target)
    folder = Path(options.out)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: name another folder with --out")
    generation = load(options.run).generate(
        options.reference,
        target,
        n=options.n,
        seed=options.seed,
        formula=None if options.formula == "any" else options.formula,
    )
    run = Path(options.run).resolve().name
    print(generation_text(generation), end="")
    written = write_generation(generation, folder, run=run)
    print("written: " + ", ".join(str(path) for path in written))


def _values(text: str) -> dict[str, float]:
    """Read ``gap=6.0,polarisability=76``."""
    values: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if not (name and equals):
            raise ValueError(f"--target {text!r}: {part!r} is not NAME=VALUE")
        if name in values:
            raise ValueError(f"--target names {name!r} twice")
        try:
            values[name] = float(number)
        except ValueError:
            raise ValueError(f"--target {name}: {number!r} is not a number") from None
        if not math.isfinite(values[name]):
            raise ValueError(f"--target {name}: {number!r} is not a finite number")
    return values


HANDLERS = {"generate": _generate}
