"""Tables of molecules with properties, read from CSV files and from QM9's archives."""

from __future__ import annotations

import csv
import gzip
import math
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import torch
from torch import Tensor

EV_PER_HARTREE = 27.211386

# Places in a QM9 record's property line: tag, index, A, B, C, mu, alpha, homo, lumo, gap, ...
# (Ramakrishnan et al. 2014, Sci. Data 1:140022, Table 3.)
_ALPHA, _GAP = 6, 9
_NAMED_PROBLEMS = 5


@dataclass(frozen=True)
class MoleculeTable:
    """Molecules with their properties, row by row.

    Parameters
    ----------
    smiles : list of str
        N strings.
    targets : Tensor
        float64, shape [N, T], finite.
    target_names : tuple of str
        T names.
    units : tuple of str
        T units; "" for a number without unit.

    Raises
    ------
    ValueError
        The shapes disagree.

    Examples
    --------
    >>> table = MoleculeTable(["C"], torch.tensor([[9.1]], dtype=torch.float64), ("gap",), ("eV",))
    >>> len(table)
    1
    """

    smiles: list[str]
    targets: Tensor
    target_names: tuple[str, ...]
    units: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = (len(self.smiles), len(self.target_names))
        if self.targets.shape != shape or len(self.units) != shape[1]:
            raise ValueError(
                f"{shape[0]} SMILES, {shape[1]} target names and {len(self.units)} units do not "
                f"fit targets of shape {list(self.targets.shape)}"
            )

    def __len__(self) -> int:
        return len(self.smiles)


def read_csv(
    path: str | Path, smiles: str = "smiles", *, targets: Mapping[str, str]
) -> MoleculeTable:
    r"""Read SMILES and properties from a CSV file with a header.

    Parameters
    ----------
    path : str or Path
        A ``.csv`` or ``.csv.gz`` file, UTF-8.
    smiles : str
        The column of the SMILES strings; blanks and newlines around them are taken off.
    targets : mapping of str to str
        Columns to read as numbers, with their units: ``{"logP": "", "qed": ""}``.

    Returns
    -------
    MoleculeTable
        Targets in the order of `targets`, in the file's own units.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        No rows, a column that is missing or appears twice, an empty SMILES, or a value that is not
        a finite number. The message counts the bad cells and names the first with row (from 1,
        after the header) and column.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "table.csv"
    ...     _ = path.write_text("smiles,logP\nCCO,-0.0014\n")
    ...     read_csv(path, targets={"logP": ""}).targets
    tensor([[-0.0014]], dtype=torch.float64)
    """
    path = Path(path)
    records = _csv_records(path, smiles, list(targets))
    return _table(path, records, tuple(targets), tuple(targets.values()))


def read_qm9(
    path: str | Path,
    gap: str = "gap",
    polarisability: str = "alpha",
    smiles: str = "smiles",
    gap_unit: Literal["hartree", "ev"] = "hartree",
) -> MoleculeTable:
    r"""Read band gap and polarisability of QM9 molecules.

    Parameters
    ----------
    path : str or Path
        A CSV file with the columns below (as DeepChem's ``qm9.csv``), or an official archive
        ``*.tar.bz2`` of xyz records, of which the first string of the SMILES line (GDB's) is taken.
    gap, polarisability, smiles : str
        Columns of a CSV file; an archive has none.
    gap_unit : {"hartree", "ev"}
        Unit of the gap in the file. Archives are in Hartree.

    Returns
    -------
    MoleculeTable
        Targets ``gap`` in eV (1 Hartree = 27.211386 eV) and ``polarisability`` in bohr^3.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        As `read_csv`; a damaged archive or record; an archive read with ``gap_unit="ev"``.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "qm9.csv"
    ...     _ = path.write_text("smiles,alpha,gap\nO,6.31,0.3615\n")
    ...     read_qm9(path).targets
    tensor([[9.8369, 6.3100]], dtype=torch.float64)
    """
    path = Path(path)
    if gap_unit not in ("hartree", "ev"):
        raise ValueError(f"gap_unit must be 'hartree' or 'ev', not {gap_unit!r}")
    if ".tar" in path.suffixes:
        if gap_unit != "hartree":
            raise ValueError(f"gap_unit: the records of {path} are in Hartree")
        records = _archive_records(path)
    else:
        records = _csv_records(path, smiles, [gap, polarisability])
    table = _table(path, records, ("gap", "polarisability"), ("eV", "bohr^3"))
    if gap_unit == "hartree":
        table.targets[:, 0] *= EV_PER_HARTREE
    return table


# A record: where it stands, its SMILES, and the text of its targets by column.
_Record = tuple[str, str, dict[str, str]]


def _table(
    path: Path, records: Iterable[_Record], names: tuple[str, ...], units: tuple[str, ...]
) -> MoleculeTable:
    strings: list[str] = []
    rows: list[list[float]] = []
    problems: list[str] = []
    for place, text, cells in records:
        strings.append(text.strip())
        if not strings[-1]:
            problems.append(f"{place}: the SMILES is empty")
        rows.append([_number(cell) for cell in cells.values()])
        problems += [
            f"{place}, column {column!r}: {cell!r} is not a finite number"
            for (column, cell), value in zip(cells.items(), rows[-1], strict=True)
            if not math.isfinite(value)
        ]
    if problems:
        named = "; ".join(problems[:_NAMED_PROBLEMS])
        more = "; ..." if len(problems) > _NAMED_PROBLEMS else ""
        raise ValueError(f"{path}: {len(problems)} unreadable cells: {named}{more}")
    if not rows:
        raise ValueError(f"{path}: the file holds no molecules")
    return MoleculeTable(strings, torch.tensor(rows, dtype=torch.float64), names, units)


def _number(cell: str) -> float:
    """NaN where the cell is no number. QM9 writes some exponents as ``1.5*^-5``."""
    try:
        return float(cell.replace("*^", "e"))
    except ValueError:
        return math.nan


def _csv_records(path: Path, smiles: str, columns: list[str]) -> Iterator[_Record]:
    try:
        with _open_text(path) as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            places = {name: _place(path, header, name) for name in (smiles, *columns)}
            for row, cells in enumerate((cells for cells in reader if cells), start=1):
                cells += [""] * (len(header) - len(cells))
                yield f"row {row}", cells[places[smiles]], {c: cells[places[c]] for c in columns}
    except (UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable CSV file: {error}") from error


def _open_text(path: Path) -> IO[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _place(path: Path, header: list[str], name: str) -> int:
    if header.count(name) != 1:
        found = "appears more than once" if name in header else f"is missing; there are {header}"
        raise ValueError(f"{path}: column {name!r} {found}")
    return header.index(name)


def _archive_records(path: Path) -> Iterator[_Record]:
    with path.open("rb") as source:
        try:
            with tarfile.open(fileobj=source) as archive:
                for member in archive:
                    file = archive.extractfile(member)
                    if file is not None and member.name.endswith(".xyz"):
                        yield _xyz_record(path, member.name, file.read().decode("ascii", "replace"))
        except (tarfile.ReadError, EOFError, OSError) as error:
            raise ValueError(f"{path}: not a readable tar archive: {error}") from error


def _xyz_record(path: Path, name: str, text: str) -> _Record:
    """Read one record: GDB's SMILES comes first on the line before the InChI line."""
    lines = text.splitlines()
    properties = lines[1].split() if len(lines) > 1 else []
    inchi = next((i for i, line in enumerate(lines) if line.startswith("InChI=")), 0)
    if len(properties) <= _GAP or inchi < 2:
        raise ValueError(f"{path}: record {name} has no property line or no SMILES and InChI lines")
    smiles = (lines[inchi - 1].split() or [""])[0]
    return f"record {name}", smiles, {"gap": properties[_GAP], "alpha": properties[_ALPHA]}
