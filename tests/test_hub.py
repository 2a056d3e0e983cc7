"""An exported folder on its way to the Hub: here a server of this process, which keeps what it is sent."""

import base64
import json
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
from huggingface_hub import constants

from cvt_nas.errors import ExportError
from cvt_nas.export import FORMATS, push
from cvt_nas.model import CvT
from test_export import CLASSES, GELU

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub itself

TOKEN = "hf_of_this_test"


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload needs: weights by LFS, all else inside the commit."""

    protocol_version = "HTTP/1.1"
    requests: ClassVar[list[tuple[str, str]]]
    created: ClassVar[dict[str, Any]]
    large: ClassVar[dict[str, bytes]]
    files: ClassVar[dict[str, bytes]]
    public: ClassVar[bool]

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002

    def _answer(self, tree: Any, status: int = 200) -> None:
        body = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _refused(self) -> bool:
        self.requests.append((self.command, self.path))
        if self.path.startswith("/large/") or self.headers["Authorization"] == f"Bearer {TOKEN}":
            return False
        self._answer({"error": "Invalid username or password."}, 401)
        return True

    def do_GET(self) -> None:
        if not self._refused():
            self._answer({"id": "someone/net", "private": not self.public})

    def do_PUT(self) -> None:
        if not self._refused():
            self.large[self.path.removeprefix("/large/")] = self._body()
            self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self._refused():
            return
        here = f"http://{self.headers['Host']}"
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.large[value["oid"]]
            self._answer({"commitUrl": f"{here}/someone/net/commit/0", "commitOid": "0" * 40})
            return
        tree = json.loads(body)
        if self.path == "/api/repos/create":
            self.created.update(tree)
            self._answer({"url": f"{here}/someone/net"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            names = [file["path"] for file in tree["files"]]
            self._answer({"files": [{"path": name, "uploadMode": "lfs" if name.endswith(".safetensors") else "regular",
                                     "shouldIgnore": False} for name in names]})  # fmt: skip
        else:
            assert self.path == "/someone/net.git/info/lfs/objects/batch"
            self._answer({"objects": [{**file, "actions": {"upload": {"href": f"{here}/large/{file['oid']}"}}}
                                      for file in tree["objects"]]})  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.requests, Hub.created, Hub.large, Hub.files, Hub.public = [], {}, {}, {}, True
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its server is another
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        huggingface_hub.close_session()
        yield Hub
        huggingface_hub.close_session()
        server.shutdown()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as an export leaves it."""
    to = tmp_path / "model"
    FORMATS["timm"].write(CvT(GELU), to, {"image_size": 32, "mean": [0.3], "std": [0.4], "classes": CLASSES})
    (to / "README.md").write_text("# A network")
    return to


def test_every_file_of_an_export_arrives_as_it_is_and_nothing_else(hub: type[Hub], model: Path) -> None:
    expected = {path.name: path.read_bytes() for path in model.iterdir()}
    (model / "notes.txt").write_text("mine")
    (model / "checkpoints").mkdir()
    (model / "checkpoints" / "model.safetensors").write_text("mine too")
    assert push(model, "someone/net") == f"{constants.ENDPOINT}/someone/net"
    assert hub.files == expected
    assert set(hub.large.values()) == {expected["model.safetensors"]}
    assert hub.created == {"name": "net", "organization": "someone"}, "the owner's default decides who sees it"


def test_a_private_repository_is_made_private(hub: type[Hub], model: Path) -> None:
    hub.public = False
    push(model, "someone/net", private=True)
    assert hub.created["visibility"] == "private"
    assert hub.files


def test_a_public_repository_is_sent_nothing_that_was_to_be_private(hub: type[Hub], model: Path) -> None:
    with pytest.raises(ExportError, match=r"--push someone/net: is public already"):
        push(model, "someone/net", private=True)
    assert not hub.files
    assert not hub.large


@pytest.mark.parametrize(
    "name", ["net", "someone/net/more", "/net", "some one/net", "someone/net--x", "someone/net.git"]
)
def test_a_name_that_the_hub_cannot_have_is_refused_before_anything_is_sent(
    hub: type[Hub], model: Path, name: str
) -> None:
    with pytest.raises(ExportError, match="must be USER/NAME"):
        push(model, name)
    assert not hub.requests


def test_a_token_that_is_missing_or_wrong_is_said_with_the_remedy(
    hub: type[Hub], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_yesterday")
    with pytest.raises(ExportError, match=r"^--push someone/net: .* answers 401: Invalid .*; sign in by .*$"):
        push(model, "someone/net")
    hub.requests.clear()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        ExportError, match=r"^--push someone/net: there is no token for .*: sign in by `hf auth login`.*$"
    ):
        push(model, "someone/net")
    assert not hub.requests


def test_a_hub_that_cannot_be_reached_is_named(hub: type[Hub], model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    with pytest.raises(ExportError, match=rf"^--push someone/net: {address} cannot be reached: .*refused.*$"):
        push(model, "someone/net")


def test_a_folder_without_an_export_is_refused(hub: type[Hub], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Something else")
    with pytest.raises(ExportError, match="holds no exported model"):
        push(tmp_path, "someone/net")
    assert not hub.requests


def test_the_package_that_uploads_is_named_where_it_is_missing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ExportError, match=r"--push needs huggingface_hub: pip install 'cvt-nas\[hf\]'"):
        push(model, "someone/net")
