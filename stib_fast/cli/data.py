"""``stib data``: the official files of the data sets."""

from __future__ import annotations

import jsonargparse

from stib_fast.cli.parsers import Commands, command
from stib_fast.data.fetch import DATA_SETS, fetch


def add_to(commands: Commands) -> None:
    """Add the commands."""
    data = command("Get the official files of the data sets.")
    commands.add_subcommand("data", data)
    actions = data.add_subcommands(required=True, dest="action")
    fetching = command("Download a data set, check it, and print where its files are.")
    fetching.add_argument("name", choices=list(DATA_SETS))
    fetching.add_argument("--to", type=str, help="folder; default: the user's cache folder")
    actions.add_subcommand("fetch", fetching)


def _data(options: jsonargparse.Namespace) -> None:
    chosen = options[options.action]
    for path in fetch(chosen.name, chosen.to):
        print(path)


HANDLERS = {"data": _data}
