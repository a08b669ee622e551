"""What an experiment of the paper is: its units, and what is written from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stib_fast.reproduction.units import Unit, UnitStore
from stib_fast.training import Run


@dataclass(frozen=True)
class Picture:
    """A figure of an experiment.

    Parameters
    ----------
    file : str
        PNG in the experiment's folder.
    caption : str
    """

    file: str
    caption: str


@dataclass(frozen=True)
class Finished:
    """The units of an experiment, all done, and the folder that its products go to.

    Parameters
    ----------
    folder : Path
    units : tuple of Unit
    store : UnitStore
    """

    folder: Path
    units: tuple[Unit, ...]
    store: UnitStore

    @property
    def trainings(self) -> list[Run]:
        """The run folders of its trainings, in their order."""
        return [Run(self.store.of(unit)) for unit in self.units if unit.trains]

    @property
    def generations(self) -> list[Path]:
        """The folders of its generations, in their order."""
        return [self.store.of(unit) for unit in self.units if not unit.trains]


@dataclass(frozen=True)
class Products:
    """What an experiment has to show.

    Parameters
    ----------
    text : str
        Tables, as Markdown.
    pictures : tuple of Picture
    """

    text: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper.

    Parameters
    ----------
    name : str
        On the command line.
    title : str
        With the paper's name of its table or figure.
    data : str or None
        Of which data set it needs the file, as `stib data fetch` calls it.
    units : tuple of Unit
    write : callable
        Draws its figures and returns its products, from the folders of its units alone.
    shows : str
        What is to be seen, in a few sentences.
    differs : tuple of str
        What differs from the paper, and why.
    """

    name: str
    title: str
    data: str | None
    units: tuple[Unit, ...]
    write: Callable[[Finished], Products]
    shows: str
    differs: tuple[str, ...]
