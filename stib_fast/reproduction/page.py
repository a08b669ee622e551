"""The page of all results, from the folders that `stib reproduce` wrote."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stib_fast.data.replacing import write_text
from stib_fast.data.token_cache import file_digest
from stib_fast.reports.tables import INVARIANCE_LEGEND, MOLECULES_LEGEND, ON_Z0_LEGEND
from stib_fast.reproduction import account
from stib_fast.reproduction.experiment import Experiment
from stib_fast.reproduction.experiments import EXPERIMENTS
from stib_fast.reproduction.reproduce import RECORD, RUNS, TABLE, shortened
from stib_fast.reproduction.units import Settings, UnitStore

_INTRODUCTION = """\
# Results

The experiments of Wieser, Parbhoo, Wieczorek, Roth: *Inverse Learning of Symmetries* (NeurIPS 2020,
arXiv:2002.02782) with this library, beside the paper's figures. This page is written by a command
from the folders of the runs; none of our figures is typed. What differs from the paper, and why, is
[at the end](#what-differs-from-the-paper-and-why).
"""

# Each experiment's own table has them; the page has them once.
_LEGENDS = (ON_Z0_LEGEND, MOLECULES_LEGEND, INVARIANCE_LEGEND, account.LEGEND)


def write_page(folder: Path, page: Path, *, settings: Settings) -> list[Path]:
    """Write the page of the experiments in a folder, its figures in a folder of its name beside it.

    Parameters
    ----------
    folder : Path
        The `out` of `reproduce`.
    page : Path
        Markdown file.
    settings : callable
        See `reproduce`.

    Returns
    -------
    list of Path
        The page and its figures.

    Raises
    ------
    ValueError
        There is no finished experiment in the folder, one is damaged, or of units that were made
        anew since or with other settings than today's; the page is no Markdown file, or its
        figures would come among the results.
    OSError
        A file is missing or cannot be written.
    """
    if page.suffix != ".md":
        raise ValueError(f"-o {page}: the page is Markdown: let its name end in .md")
    pictures = page.with_suffix("")
    if pictures.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"-o {page}: its figures would come into {pictures}, among the results: name another"
        )
    records = {
        name: _record(folder / name / RECORD)
        for name in EXPERIMENTS
        if (folder / name / RECORD).is_file()
    }
    if not records:
        raise ValueError(
            f"{folder} holds no finished experiment: `stib reproduce NAME --out {folder}` makes one"
        )
    store = UnitStore(folder / RUNS, settings=settings)
    for name, record in records.items():
        _check_source(folder, name, record, store)
    sections, written = [], [page]
    for name, record in records.items():
        copied = _copy(folder / name, record, pictures)
        sections.append(_section(EXPERIMENTS[name], folder / name, record, copied))
        written += copied
    missing = [experiment for name, experiment in EXPERIMENTS.items() if name not in records]
    text = "\n".join(
        [
            _INTRODUCTION,
            _how_to(records, page),
            _legends(sections),
            *map(_without_legends, sections),
            *([_not_run(missing)] if missing else []),
            _differences([EXPERIMENTS[name] for name in records]),
        ]
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, text)
    return written


def _record(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        record = {key: content[key] for key in ("steps", "data")}
        record["units"] = [unit["name"] for unit in content["units"]]
        pictures = [{key: p[key] for key in ("file", "caption")} for p in content["pictures"]]
        return record | {"pictures": pictures, "made_from": dict(content["made_from"])}
    except (ValueError, KeyError, TypeError):
        name, out = path.parent.name, path.parent.parent
        raise ValueError(f"{path} is damaged: `{_command(name, out)}` writes it again") from None


def _command(name: str, out: Path) -> str:
    """What makes an experiment anew."""
    data = " --data FILE" if EXPERIMENTS[name].data else ""
    return f"stib reproduce {name}{data} --out {shlex.quote(str(out))}"


def _check_source(folder: Path, name: str, record: dict[str, Any], store: UnitStore) -> None:
    """Refuse tables and figures of units that are no more, or are not today's."""
    steps = f" --steps {record['steps']}" if record["steps"] else ""
    units = shortened(EXPERIMENTS[name].units, record["steps"])
    for unit in units:
        store.check_settings(unit)
    if record["units"] != [unit.name for unit in units]:
        raise ValueError(
            f"{folder / name} is of other units than today's: run "
            f"`{_command(name, folder)}{steps}` again"
        )
    for file, sha256 in record["made_from"].items():
        path = folder / file
        if not (path.is_file() and file_digest(path) == sha256):
            raise ValueError(
                f"{folder / name} was not made from the {path} that is there: run "
                f"`{_command(name, folder)}{steps}` again"
            )


def _copy(folder: Path, record: dict[str, Any], pictures: Path) -> list[Path]:
    """Copy the figures of an experiment to the page's."""
    copied = []
    for picture in record["pictures"]:
        pictures.mkdir(parents=True, exist_ok=True)
        target = pictures / f"{folder.name}-{picture['file']}"
        shutil.copyfile(folder / picture["file"], target)
        copied.append(target)
    return copied


def _how_to(records: dict[str, dict[str, Any]], page: Path) -> str:
    lines = []
    for name, record in records.items():
        data = ["--data", record["data"]] if record["data"] else []
        steps = ["--steps", str(record["steps"])] if record["steps"] else []
        lines.append(shlex.join(["stib", "reproduce", name, *data, *steps]))
    shown = page.name if page.is_absolute() else str(page)
    lines.append(shlex.join(["stib", "results", "results", "-o", shown]))
    commands = "\n".join(lines)
    return (
        "Each experiment is one command, and the last writes this page:\n\n"
        f"```bash\n{commands}\n```\n"
    )


def _section(
    experiment: Experiment, folder: Path, record: dict[str, Any], pictures: list[Path]
) -> str:
    trial = f": a trial of {record['steps']:,} steps" if record["steps"] else ""
    parts = [f"## {experiment.title}{trial}\n", f"{experiment.shows}\n"]
    for picture, path in zip(record["pictures"], pictures, strict=True):
        caption = picture["caption"]
        parts.append(f"![{caption}]({quote(f'{path.parent.name}/{path.name}')})\n\n*{caption}*\n")
    parts.append((folder / TABLE).read_text())
    return "\n".join(parts)


def _legends(sections: list[str]) -> str:
    used = [legend for legend in _LEGENDS if any(legend in section for section in sections)]
    return "\n".join(["## How to read the tables\n", *used])


def _without_legends(section: str) -> str:
    for legend in _LEGENDS:
        section = section.replace(legend, "")
    return re.sub("\n{3,}", "\n\n", section)


def _not_run(missing: list[Experiment]) -> str:
    lines = "".join(f"- {experiment.title}: `{experiment.name}`\n" for experiment in missing)
    return f"## Not run\n\n{lines}"


def _differences(experiments: list[Experiment]) -> str:
    """What differs, once where it holds for several experiments."""
    holds_for: dict[str, list[str]] = {}
    for experiment in experiments:
        for difference in experiment.differs:
            holds_for.setdefault(difference, []).append(experiment.name)
    lines = "".join(
        f"- {difference} ({', '.join(f'`{name}`' for name in names)})\n"
        for difference, names in holds_for.items()
    )
    return f"## What differs from the paper, and why\n\n{lines}"
