"""The command ``stib``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import jsonargparse

from stib_fast import doctor
from stib_fast.cli import data, encode, generate, mi, moments, reproduce, results, train
from stib_fast.cli.parsers import Commands, command
from stib_fast.training import Interrupted

__all__ = ["main"]

MODULES = (train, results, generate, reproduce, encode, data, mi, moments)
USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--"]:  # some versions of Python leave it from torchrun's command line
        del arguments[0]
    try:
        return _dispatch(_parsed(arguments))
    except Interrupted as stop:
        if not _process():
            print(f"stib: {stop}", file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print("stib: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`stib table … | head`): nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (jsonargparse.ArgumentError, ValueError, OSError, RuntimeError) as error:
        print(f"stib: {_process()}{_one_line(error)}", file=sys.stderr)
        return USER_ERROR


def _process() -> str:
    """Which process speaks, of those that torchrun started beside the first."""
    rank, size = (os.environ.get(name) or "1" for name in ("RANK", "WORLD_SIZE"))
    return "" if size == "1" or rank == "0" else f"process {rank}: "


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _parsed(arguments: list[str]) -> jsonargparse.Namespace:
    parser = _parser()
    return parser.instantiate(parser.parse_args(train.spelled_out(arguments)))


def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        prog="stib",
        description="Train and examine STIB, and see what works on this machine.",
        exit_on_error=False,
    )
    commands = parser.add_subcommands(required=True)
    for module in MODULES:
        module.add_to(commands)
    _add_doctor(commands)
    return parser


def _add_doctor(commands: Commands) -> None:
    examine = command("Tell which backends work here, and why the others do not.")
    examine.add_argument("--json", action="store_true", help="for programs")
    commands.add_subcommand("doctor", examine)


def _dispatch(options: jsonargparse.Namespace) -> int:
    chosen = options.subcommand
    handlers = {"doctor": _doctor}
    for module in MODULES:
        handlers |= module.HANDLERS
    handlers[chosen](options[chosen])
    return 0


def _doctor(options: jsonargparse.Namespace) -> None:
    facts = doctor.report()
    print(json.dumps(facts, indent=2) if options.json else doctor.text(facts))
