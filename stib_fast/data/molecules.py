"""Tables of molecules with properties, read from anybody's files and from QM9's archives."""

from __future__ import annotations

import math
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stib_fast.chem.cells import as_numbers, as_strings, parse_number
from stib_fast.chem.files import read_batches
from stib_fast.chem.validity import canonical_smiles
from stib_fast.ops.smiles import Status, count, malformation
from stib_fast.ops.strings import strings_of

if TYPE_CHECKING:
    import pyarrow

EV_PER_HARTREE = 27.211386

# Places in a QM9 record's property line: tag, index, A, B, C, mu, alpha, homo, lumo, gap, ...
# (Ramakrishnan et al. 2014, Sci. Data 1:140022, Table 3.)
_ALPHA, _GAP = 6, 9
_NAMED_ROWS = 5
_UNCHARACTERISED = "uncharacterized.txt"


@dataclass(frozen=True)
class LeftOut:
    """Rows that were left out for one reason.

    Parameters
    ----------
    reason : str
        What is wrong with them, to be read after "3 rows".
    count : int
        How many they are.
    first : tuple of str
        The first few: row (from 1) and what it holds.
    """

    reason: str
    count: int
    first: tuple[str, ...]

    def __str__(self) -> str:
        if not self.first:
            return f"{self.count} {self.reason}"
        more = ["..."] if self.count > len(self.first) else []
        return f"{self.count} {self.reason}: {'; '.join([*self.first, *more])}"


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
    source : str
        Where they come from, for messages.
    rows : Tensor, optional
        int64, shape [N]: the place of each row in its source, from 1. Default: 1 to N.
    left_out : tuple of LeftOut
        What else the source held.

    Raises
    ------
    ValueError
        The shapes disagree.

    Examples
    --------
    >>> table = MoleculeTable(["C"], torch.tensor([[9.1]], dtype=torch.float64), ("gap",))
    >>> len(table)
    1
    """

    smiles: list[str]
    targets: Tensor
    target_names: tuple[str, ...]
    source: str = "table"
    rows: Tensor | None = None
    left_out: tuple[LeftOut, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.smiles), len(self.target_names))
        if self.targets.shape != shape:
            raise ValueError(
                f"{shape[0]} SMILES and {shape[1]} target names do not fit targets of shape "
                f"{list(self.targets.shape)}"
            )
        if self.rows is not None and self.rows.shape != shape[:1]:
            raise ValueError(f"rows has shape {list(self.rows.shape)}, not [{shape[0]}]")

    def __len__(self) -> int:
        return len(self.smiles)

    def row(self, i: int) -> int:
        """Return the place of the i-th row in its source, from 1."""
        return i + 1 if self.rows is None else int(self.rows[i])

    def without(
        self,
        bad: NDArray[np.bool_],
        reason: str,
        describe: Callable[[int], str],
        *,
        strict: bool = False,
    ) -> MoleculeTable:
        """Leave rows out and keep account of them.

        Parameters
        ----------
        bad : array of bool [N]
            The rows to leave out.
        reason : str
            What is wrong with them, to be read after "3 rows".
        describe : callable
            Row (from 0) → what it holds; called for the first few.
        strict : bool
            Refuse such rows instead.

        Raises
        ------
        ValueError
            `strict`, and there are such rows; the message counts them and names the first.

        Examples
        --------
        >>> table = MoleculeTable(["C", "?"], torch.zeros(2, 0), ())
        >>> rest = table.without(np.array([False, True]), "of odd marks", lambda i: table.smiles[i])
        >>> rest.smiles, str(rest.left_out[0])
        (['C'], '1 of odd marks: row 2: ?')
        """
        found = np.flatnonzero(bad)
        if not len(found):
            return self
        first = tuple(f"row {self.row(i)}: {describe(i)}" for i in found[:_NAMED_ROWS].tolist())
        note = LeftOut(reason, len(found), first)
        if strict:
            raise ValueError(f"{self.source}: rows that strict reading refuses: {note}")
        kept = torch.from_numpy(np.flatnonzero(~bad))
        return replace(
            self,
            smiles=[self.smiles[i] for i in kept.tolist()],
            targets=self.targets[kept],
            rows=kept + 1 if self.rows is None else self.rows[kept],
            left_out=(*self.left_out, note),
        )


def read_table(
    path: str | Path,
    smiles: str = "smiles",
    *,
    targets: Sequence[str],
    strict: bool = True,
    check: bool = False,
    unique: bool = False,
) -> MoleculeTable:
    r"""Read SMILES and properties from a table.

    Parameters
    ----------
    path : str or Path
        A file that `stib_fast.chem.files.read_batches` knows: ``.csv``, ``.csv.gz``, ``.parquet``,
        or, for SMILES alone, ``.smi``.
    smiles : str
        The column of the SMILES strings; blanks and newlines around them are taken off.
    targets : sequence of str
        Columns to read as numbers, each once.
    strict : bool
        Whether rows that cannot be used are an error, or left out and counted: those without
        SMILES, with a target that is not a finite number, with a SMILES that cannot be cut into
        tokens; with `check` those that are no molecule; with `unique` those that repeat another.
    check : bool
        Let RDKit read every string (`stib_fast.chem.validity.canonical_smiles`).
    unique : bool
        Keep only the first row of each molecule (with `check`) or of each string (without).

    Returns
    -------
    MoleculeTable
        Targets in the order of `targets`.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        No usable rows; a column that is missing, appears twice or holds no numbers; what `strict`
        refuses. The message counts the rows and names the first (from 1, after the header).

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "table.csv"
    ...     _ = path.write_text("smiles,logP\nCCO,-0.0014\nCC,\n")
    ...     table = read_table(path, targets=["logP"], strict=False)
    >>> table.targets
    tensor([[-0.0014]], dtype=torch.float64)
    >>> print(table.left_out[0])
    1 with a target that is not a finite number: row 2: '' in column 'logP'
    """
    batches = read_batches(path, [smiles, *targets])
    table = _table(Path(path), batches, tuple(targets), strict)
    return usable(table, strict=strict, check=check, unique=unique)


def read_qm9(
    path: str | Path,
    gap: str = "gap",
    polarisability: str = "alpha",
    smiles: str = "smiles",
    gap_unit: Literal["hartree", "ev"] = "hartree",
    *,
    strict: bool = True,
    check: bool = False,
    unique: bool = False,
) -> MoleculeTable:
    r"""Read band gap and polarisability of QM9 molecules.

    Parameters
    ----------
    path : str or Path
        A table with the columns below (as DeepChem's ``qm9.csv``), or an official archive
        ``*.tar.bz2`` of xyz records, of which the first string of the SMILES line (GDB's) is taken.
        The records of ``dsgdb9nsd`` that a file ``uncharacterized.txt`` beside it lists are left
        out, also when `strict`, as QM9's authors advise.
    gap, polarisability, smiles : str
        Columns of a table; an archive has none.
    gap_unit : {"hartree", "ev"}
        Unit of the gap in the file. Archives are in Hartree.
    strict, check, unique : bool
        As of `read_table`.

    Returns
    -------
    MoleculeTable
        Targets ``gap`` in eV (1 Hartree = 27.211386 eV) and ``polarisability`` in bohr^3.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        As `read_table`; a damaged archive, record or list; an archive read with ``gap_unit="ev"``.

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
    if ".tar" not in path.suffixes:
        batches = read_batches(path, [smiles, gap, polarisability])
        table = _table(path, batches, (gap, polarisability), strict)
    elif gap_unit == "hartree":
        table = _archive(path)
    else:
        raise ValueError(f"gap_unit: the records of {path} are in Hartree")
    if gap_unit == "hartree":
        table.targets[:, 0] *= EV_PER_HARTREE
    table = replace(table, target_names=("gap", "polarisability"))
    return usable(table, strict=strict, check=check, unique=unique)


def _table(
    path: Path,
    batches: Iterable[pyarrow.RecordBatch],
    names: tuple[str, ...],
    strict: bool,
) -> MoleculeTable:
    """Read the rows that hold what they should: a string, and a number for each target."""
    strings: list[str] = []
    parts: list[NDArray[np.float64]] = []
    cells: dict[int, str] = {}  # the first that are no numbers, by row
    for batch in batches:
        values = np.empty((batch.num_rows, len(names)))
        for i, (name, column) in enumerate(zip(names, batch.columns[1:], strict=True)):
            values[:, i] = as_numbers(path, name, column)
            for row in np.flatnonzero(~np.isfinite(values[:, i]))[:_NAMED_ROWS].tolist():
                text = f"{column[row].as_py()!r} in column {name!r}"
                cells.setdefault(len(strings) + row, text)
        parts.append(values)
        strings += _strings(path, batch.schema.names[0], batch.column(0))
    if not strings:
        raise ValueError(f"{path}: the file holds no molecules")
    numbers = np.concatenate(parts)
    for name, finite in zip(names, np.isfinite(numbers).T, strict=True):
        if not finite.any():
            raise ValueError(f"{path}: column {name!r} holds no number in {len(strings)} rows")
    table = MoleculeTable(strings, torch.from_numpy(numbers), names, source=str(path))
    bad = np.asarray(~np.isfinite(numbers).all(axis=1))
    table = table.without(
        bad, "with a target that is not a finite number", cells.__getitem__, strict=strict
    )
    empty = np.array([not text for text in table.smiles], dtype=bool)
    return table.without(empty, "without SMILES", lambda i: "an empty cell", strict=strict)


def _strings(path: Path, name: str, column: pyarrow.Array) -> list[str]:
    return [(text or "").strip() for text in as_strings(path, name, column).to_pylist()]


def usable(table: MoleculeTable, *, strict: bool, check: bool, unique: bool) -> MoleculeTable:
    """Leave out, or refuse, the strings that are no molecules, and repeated ones.

    Parameters
    ----------
    table : MoleculeTable
    strict, check, unique : bool
        As of `read_table`.

    Raises
    ------
    ValueError
        What `strict` refuses, or no row is left.

    Examples
    --------
    >>> table = MoleculeTable(["CCO", "C[", "OCC"], torch.zeros(3, 0), ())
    >>> usable(table, strict=False, check=True, unique=True).smiles
    ['CCO']
    """
    [strings] = strings_of(table.smiles)
    malformed = count(strings, "atom").status.numpy() != Status.KEPT
    table = table.without(
        malformed,
        "with a malformed SMILES",
        lambda i: malformation(table.smiles[i], "atom"),
        strict=strict,
    )
    keys: list[str | None] = list(table.smiles)
    if check:
        keys = canonical_smiles(table.smiles)
        invalid = np.array([key is None for key in keys], dtype=bool)
        reason = "with a SMILES that RDKit does not read"
        table = table.without(invalid, reason, table.smiles.__getitem__, strict=strict)
        keys = [key for key in keys if key is not None]
    if unique:
        first: dict[str | None, int] = {}
        repeats = np.array([first.setdefault(key, i) != i for i, key in enumerate(keys)], bool)
        table = table.without(
            repeats,
            "repeating a molecule",
            lambda i: f"{table.smiles[i]} is that of row {table.row(first[keys[i]])}",
            strict=strict,
        )
    if not len(table):
        reasons = " | ".join(map(str, table.left_out))
        raise ValueError(f"{table.source}: no usable row is left; left out: {reasons}")
    return table


def _archive(path: Path) -> MoleculeTable:
    """All records of an archive but those that its authors advise to leave out: gap, alpha."""
    records: list[_Record] = []
    with path.open("rb") as source:
        try:
            with tarfile.open(fileobj=source) as archive:
                for member in archive:
                    file = archive.extractfile(member)
                    if file is not None and member.name.endswith(".xyz"):
                        text = file.read().decode("ascii", "replace")
                        records.append(_xyz_record(path, member.name, text))
        except (tarfile.ReadError, EOFError, OSError) as error:
            raise ValueError(f"{path}: not a readable tar archive: {error}") from error
    if not records:
        raise ValueError(f"{path}: the file holds no molecules")
    values = torch.tensor([record.values for record in records], dtype=torch.float64)
    strings = [record.smiles for record in records]
    table = MoleculeTable(strings, values, ("gap", "alpha"), source=str(path))
    listed = _listed(path.with_name(_UNCHARACTERISED))
    return table.without(
        np.array([record.qm9_index in listed for record in records], dtype=bool),
        f"listed in {_UNCHARACTERISED}",
        lambda i: f"index {records[i].qm9_index}, {records[i].smiles}",
    )


def _listed(path: Path) -> set[int]:
    """Read the indices that QM9's list begins its lines with, between a header and a footer."""
    if not path.is_file():
        return set()
    fields = [line.split(maxsplit=1) for line in path.read_text("utf-8", "replace").splitlines()]
    listed = {int(field[0]) for field in fields if field and field[0].isdecimal()}
    if not listed:
        raise ValueError(f"{path}: no line begins with the index of a molecule")
    return listed


class _Record(NamedTuple):
    smiles: str
    values: tuple[float, float]
    qm9_index: int | None


def _xyz_record(path: Path, name: str, text: str) -> _Record:
    """Read one record: GDB's SMILES comes first on the line before the InChI line."""
    lines = text.splitlines()
    properties = lines[1].split() if len(lines) > 1 else []
    inchi = next((i for i, line in enumerate(lines) if line.startswith("InChI=")), 0)
    if len(properties) <= _GAP or inchi < 2:
        raise ValueError(f"{path}: record {name} has no property line or no SMILES and InChI lines")
    smiles = lines[inchi - 1].split()
    if not smiles:
        raise ValueError(f"{path}: record {name}: the SMILES is empty")
    gap, alpha = parse_number(properties[_GAP]), parse_number(properties[_ALPHA])
    if not math.isfinite(gap + alpha):
        raise ValueError(
            f"{path}: record {name}: gap {properties[_GAP]!r} or alpha {properties[_ALPHA]!r} is "
            "not a finite number"
        )
    # The isomers' archive counts its records for itself: the list knows others by these numbers.
    numbered = PurePosixPath(name).name.startswith("dsgdb9nsd") and properties[1].isdecimal()
    return _Record(smiles[0], (gap, alpha), int(properties[1]) if numbered else None)
