"""Download the official files of QM9 and ZINC250k, checked and kept."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_FIGSHARE = "https://figshare.com/ndownloader/files/"
_CHEMICAL_VAE = (
    "https://raw.githubusercontent.com/aspuru-guzik-group/chemical_vae/main/models/zinc_properties/"
)


@dataclass(frozen=True)
class RemoteFile:
    """A file, where it is, and its MD5 digest."""

    name: str
    url: str
    md5: str


# QM9: Ramakrishnan et al. 2014, Sci. Data 1:140022: the C7H10O2 isomers, all molecules, and those
# to leave out. ZINC250k: Gómez-Bombarelli et al. 2018, ACS Cent. Sci. 4:268.
DATA_SETS: dict[str, tuple[RemoteFile, ...]] = {
    "qm9": (
        RemoteFile(
            "dsC7O2H10nsd.xyz.tar.bz2", f"{_FIGSHARE}3195398", "c750c9f3832e6f63ad64bfb3bd12a045"
        ),
        RemoteFile(
            "dsgdb9nsd.xyz.tar.bz2", f"{_FIGSHARE}3195389", "ad1ebd51ee7f5b3a6e32e974e5d54012"
        ),
        RemoteFile(
            "uncharacterized.txt", f"{_FIGSHARE}3195404", "a361887bacb427b8a0ce7903d92a53b4"
        ),
    ),
    "zinc250k": (
        RemoteFile(
            "250k_rndm_zinc_drugs_clean_3.csv",
            f"{_CHEMICAL_VAE}250k_rndm_zinc_drugs_clean_3.csv",
            "b59078b2b04c6e9431280e3dc42048d5",
        ),
    ),
}


def fetch(
    name: str,
    folder: str | Path | None = None,
    data_sets: Mapping[str, Sequence[RemoteFile]] = DATA_SETS,
) -> list[Path]:
    """Download the files of a data set that are not there yet, and check their digests.

    Parameters
    ----------
    name : {"qm9", "zinc250k"}
    folder : str or Path, optional
        Where to keep them; by default the user's cache folder for stib_fast.
    data_sets : mapping of str to sequence of RemoteFile
        The files of each data set.

    Returns
    -------
    list of Path
        The files. A file with the right digest is not downloaded again.

    Raises
    ------
    OSError
        The host cannot be reached or the folder not be written; no half file stays.
    ValueError
        Another name, or a file whose digest is not the known one.

    Examples
    --------
    >>> [file.name for file in DATA_SETS["zinc250k"]]
    ['250k_rndm_zinc_drugs_clean_3.csv']
    """
    import pooch

    if name not in data_sets:
        raise ValueError(f"there is no data set {name!r}; there are {', '.join(data_sets)}")
    folder = Path(pooch.os_cache("stib_fast") if folder is None else folder)
    pooch.get_logger().setLevel(logging.WARNING)
    return [_retrieve(file, folder) for file in data_sets[name]]


def _retrieve(file: RemoteFile, folder: Path) -> Path:
    import pooch
    import requests

    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=2**16)
    by_hand = f"try again later, or put the file by hand at {folder / file.name}"
    try:
        return Path(
            pooch.retrieve(file.url, f"md5:{file.md5}", file.name, folder, downloader=downloader)
        )
    except requests.RequestException as error:
        raise OSError(f"{file.name} could not be downloaded: {error}; {by_hand}") from error
    except ValueError as error:
        raise ValueError(
            f"{file.name} from {file.url} is not the known file (MD5 {file.md5}), so it was "
            f"deleted; {by_hand}"
        ) from error
