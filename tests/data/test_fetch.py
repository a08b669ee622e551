from __future__ import annotations

import hashlib
import http.server
import io
import re
import tarfile
import threading
from collections.abc import Iterator

import pytest

from stib_fast.chem.files import read_batches
from stib_fast.cli import main
from stib_fast.data import read_qm9, read_table
from stib_fast.data.fetch import DATA_SETS, RemoteFile, fetch

RECORD = """3
gdb 1\t10.0\t5.0\t3.3\t1.85\t6.31\t-0.29\t0.07\t0.3615\t19.0\t0.02\t-76.4\t-76.4\t-76.4\t-76.4\t6.0
O\t0.0\t0.0\t0.1\t-0.6
H\t0.0\t0.7\t1.5*^-5\t0.3
H\t0.0\t-0.7\t-0.4\t0.3
1671.4\t3803.6\t3907.6
O\tO
InChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2
"""
ZINC = b'smiles,logP,qed,SAS\n"CCO\n",-0.0014,0.4068,1.98\n"c1ccccc1\n",1.6866,0.4426,1.0\n'


def archive() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:bz2") as tar:
        member = tarfile.TarInfo("dsC7O2H10nsd_0001.xyz")
        member.size = len(RECORD)
        tar.addfile(member, io.BytesIO(RECORD.encode()))
    return content.getvalue()


CONTENTS = {"isomers.xyz.tar.bz2": archive(), "uncharacterized.txt": b"1 2\n", "zinc.csv": ZINC}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENTS; a name below /half/ ends after half of the bytes promised."""

    def do_GET(self) -> None:
        folder, _, name = self.path.strip("/").rpartition("/")
        self.server.requests.append(self.path)
        if name not in CONTENTS:
            self.send_error(404)
            return
        content = CONTENTS[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if folder == "half" else content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def files(server: http.server.ThreadingHTTPServer, *names: str, folder: str = "") -> dict:
    base = f"http://127.0.0.1:{server.server_port}/{folder}"
    md5 = {name: hashlib.md5(CONTENTS.get(name, b"")).hexdigest() for name in names}
    return {"small": [RemoteFile(name, f"{base}{name}", md5[name]) for name in names]}


def test_qm9_is_fetched_once_and_read(server, tmp_path):
    data_sets = files(server, "isomers.xyz.tar.bz2", "uncharacterized.txt")
    paths = fetch("small", tmp_path / "new" / "folder", data_sets)
    assert [path.read_bytes() for path in paths] == [CONTENTS[path.name] for path in paths]
    table = read_qm9(paths[0])
    assert table.smiles == ["O"]
    assert table.targets[0].tolist() == pytest.approx([0.3615 * 27.211386, 6.31])
    assert fetch("small", tmp_path / "new" / "folder", data_sets) == paths
    assert len(server.requests) == 2
    assert {path.name for path in paths[0].parent.iterdir()} == {path.name for path in paths}


def test_zinc_with_newlines_inside_quotes_is_read(server, tmp_path):
    (path,) = fetch("small", tmp_path, files(server, "zinc.csv"))
    (batch,) = read_batches(path, ["smiles", "qed"])
    assert batch.to_pydict() == {"smiles": ["CCO", "c1ccccc1"], "qed": ["0.4068", "0.4426"]}
    table = read_table(path, targets=["qed"])
    assert table.smiles == ["CCO", "c1ccccc1"]
    assert table.targets[:, 0].tolist() == [0.4068, 0.4426]


def test_a_damaged_file_is_fetched_again(server, tmp_path):
    data_sets = files(server, "zinc.csv")
    (path,) = fetch("small", tmp_path, data_sets)
    path.write_bytes(b"altered")
    fetch("small", tmp_path, data_sets)
    assert path.read_bytes() == ZINC


def test_a_wrong_digest_leaves_nothing(server, tmp_path):
    (file,) = files(server, "zinc.csv")["small"]
    wrong = {"small": [RemoteFile(file.name, file.url, "0" * 32)]}
    with pytest.raises(ValueError, match=rf"zinc.csv from {re.escape(file.url)} is not the known"):
        fetch("small", tmp_path, wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [("missing.csv", "", "404"), ("zinc.csv", "half/", r"IncompleteRead|Connection broken")],
)
def test_a_failed_download_leaves_nothing(server, tmp_path, name, folder, message):
    with pytest.raises(OSError, match=message) as error:
        fetch("small", tmp_path, files(server, name, folder=folder))
    assert str(error.value).startswith(f"{name} could not be downloaded")
    assert str(error.value).endswith(f"put the file by hand at {tmp_path / name}")
    assert not list(tmp_path.iterdir())


def test_the_command_prints_paths_or_one_line(server, tmp_path, monkeypatch, capsys):
    data_sets = {"qm9": files(server, "uncharacterized.txt")["small"]}
    monkeypatch.setattr(
        "stib_fast.cli.data.fetch", lambda name, folder: fetch(name, folder, data_sets)
    )
    assert main(["data", "fetch", "qm9", "--to", str(tmp_path)]) == 0
    assert capsys.readouterr() == (f"{tmp_path / 'uncharacterized.txt'}\n", "")
    server.shutdown()
    server.server_close()
    assert main(["data", "fetch", "qm9", "--to", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["data", "fetch", "qm9", "--to", str(tmp_path / "other")]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("stib: uncharacterized.txt could not be downloaded")
    assert error.count("\n") == 1
    assert not list((tmp_path / "other").iterdir())
    assert main(["data", "fetch", "bogus"]) == 2


def test_an_unknown_data_set():
    with pytest.raises(ValueError, match="there is no data set 'bogus'; there are qm9, zinc250k"):
        fetch("bogus")


def test_the_default_folder_is_the_users(server, tmp_path, monkeypatch):
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / project)
    (path,) = fetch("small", data_sets=files(server, "uncharacterized.txt"))
    assert path == tmp_path / "stib_fast" / "uncharacterized.txt"


def test_the_official_files_have_digests():
    every = [file for data_set in DATA_SETS.values() for file in data_set]
    assert len(every) == len({file.name for file in every}) == 4
    for file in every:
        assert re.fullmatch("[0-9a-f]{32}", file.md5)
        assert file.url.startswith("https://")
