"""STIB on ZINC250k (Wieser et al. 2020, first version, section 5.3): SMILES and druglikeness."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from stib_fast.training.molecules import SmilesModel, molecule_optimisation
from stib_fast.training.optimisation import Optimisation
from stib_fast.training.table import Table, TableConfig, TableData


@dataclass(frozen=True)
class ZincConfig(TableConfig):
    """Configuration of the ZINC experiment; `data` is the file of the molecules, or their cache."""

    molecules: TableData = field(default_factory=lambda: TableData(check=False, targets=("qed",)))
    model: SmilesModel = field(
        default_factory=lambda: SmilesModel(z0_dim=48, z1_dim=8, decoder_hidden=192)
    )
    optimisation: Optimisation = field(
        default_factory=lambda: replace(
            molecule_optimisation(steps=20_000, batch=128),
            invariance_weight=1.0,
            critic_steps=2,
            lambda_start=32.0,
            lambda_max=32.0,
        )
    )


class Zinc(Table):
    """Druglikeness (QED) of ZINC250k's molecules, or other columns of that file."""

    name = "zinc"
    config_type = ZincConfig
