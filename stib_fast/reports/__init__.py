"""Tables and figures that set results beside the paper's."""

from stib_fast.reports.figures import LatentSpace, latent_figure, training_figure
from stib_fast.reports.run_report import table_of, write_report
from stib_fast.reports.tables import (
    ARTIFICIAL_LIMIT,
    ARTIFICIAL_PAPER,
    QM9_PAPER,
    ZINC_PAPER,
    artificial_table,
    molecule_table,
    qm9_table,
)

__all__ = [
    "ARTIFICIAL_LIMIT",
    "ARTIFICIAL_PAPER",
    "QM9_PAPER",
    "ZINC_PAPER",
    "LatentSpace",
    "artificial_table",
    "latent_figure",
    "molecule_table",
    "qm9_table",
    "table_of",
    "training_figure",
    "write_report",
]
