"""Molecular formulas: which atoms a molecule is made of, and how many of each."""

from __future__ import annotations

import re
from collections import Counter

_FORMULA = re.compile(r"(?:[A-Z][a-z]?[0-9]*)+")
_ELEMENT = re.compile(r"([A-Z][a-z]?)([0-9]*)")


def molecular_formula(smiles: str) -> str:
    """Formula of a molecule, hydrogens and net charge included: C, H, then the others by name.

    Parameters
    ----------
    smiles : str
        A SMILES that RDKit reads.

    Raises
    ------
    ValueError
        RDKit does not read it.

    Examples
    --------
    >>> molecular_formula("CC(C)(O)C1=CC=CO1"), molecular_formula("C[NH3+]")
    ('C7H10O2', 'CH6N+')
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem.rdMolDescriptors import CalcMolFormula

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise ValueError(f"{smiles!r} is no molecule that RDKit reads")
    return CalcMolFormula(molecule)


def ordered_formula(formula: str) -> str:
    """Order the formula of a neutral molecule as RDKit does: C, H, then the others by name.

    Parameters
    ----------
    formula : str
        Elements in any order, each with its number of atoms; 1 may be left out.

    Raises
    ------
    ValueError
        The text is no such formula, or names something that is no element.

    Examples
    --------
    >>> ordered_formula("C7O2H10"), ordered_formula("OH2")
    ('C7H10O2', 'H2O')
    """
    from rdkit import Chem

    if not _FORMULA.fullmatch(formula):
        raise ValueError(f"{formula!r} is no formula of a neutral molecule, such as C7H10O2")
    atoms: Counter[str] = Counter()
    for element, count in _ELEMENT.findall(formula):
        atoms[element] += int(count or 1)
    table = Chem.GetPeriodicTable()
    known = {table.GetElementSymbol(number) for number in range(1, 119)}
    unknown = atoms.keys() - known
    if unknown:
        raise ValueError(f"formula {formula!r}: {min(unknown)!r} is no element")
    order = sorted(atoms, key=lambda element: (element != "C", element != "H", element))
    return "".join(f"{e}{atoms[e]}" if atoms[e] > 1 else e for e in order)
