"""What the modules of the command line share."""

from __future__ import annotations

from typing import Any

import jsonargparse

# What `ArgumentParser.add_subcommands` returns; jsonargparse names the type nowhere.
Commands = Any


def command(description: str) -> jsonargparse.ArgumentParser:
    """Make the parser of a command: its errors are raised, not printed."""
    return jsonargparse.ArgumentParser(description=description, exit_on_error=False)
