"""STIB on the C7H10O2 isomers of QM9 (Wieser et al. 2020, section 5.2): SMILES and properties."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from stib_fast.data import MoleculeTable, read_qm9
from stib_fast.training.molecule_data import MoleculeData
from stib_fast.training.molecules import MoleculeConfig, MoleculeExperiment


@dataclass(frozen=True)
class QM9Data(MoleculeData):
    """Where the molecules of QM9 come from, beside what `MoleculeData` says.

    Parameters
    ----------
    gap, polarisability : str
        Columns of a table; an xyz archive has none.
    gap_unit : {"hartree", "ev"}
        Unit of the gap in the file.
    """

    gap: str = "gap"
    polarisability: str = "alpha"
    gap_unit: Literal["hartree", "ev"] = "hartree"


@dataclass(frozen=True)
class QM9Config(MoleculeConfig):
    """Configuration of the QM9 experiment; `data` is the file of the molecules."""

    molecules: QM9Data = field(default_factory=QM9Data)


class QM9(MoleculeExperiment[QM9Config]):
    """Gap in eV and polarisability in bohr³ of QM9's molecules."""

    name = "qm9"
    config_type = QM9Config
    predictions = ("gap_ev", "polarisability")

    @classmethod
    def read(cls, config: QM9Config) -> MoleculeTable:
        """Read a table or an official archive."""
        data = config.molecules
        return read_qm9(
            config.data,
            data.gap,
            data.polarisability,
            data.smiles,
            data.gap_unit,
            strict=data.strict,
            check=data.check,
            unique=True,
        )
