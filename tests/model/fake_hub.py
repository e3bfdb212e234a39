"""A Hub on loopback: one repository, and the faults that a test asks for.

It speaks what huggingface_hub 2.4 needs: the description of a model, and its files with redirects and ranges.
"""

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "beef"
REPOSITORY = "someone/FLUX.1-test"
TOKEN = "hf_a_token_that_must_not_be_shown"


@dataclass
class FakeHub:
    """What it has and does; tests change it between two runs."""

    files: dict[str, bytes]
    commit: str = COMMIT
    gated: bool = False
    refusal: tuple[HTTPStatus, str, str] | None = None
    """Status, X-Error-Code and X-Error-Message for whatever is asked."""
    cut_after: dict[str, int] = field(default_factory=dict)
    """Files whose connection ends after so many bytes; each is told once how much came."""
    gone: set[str] = field(default_factory=set)
    """Files that get status 503."""
    spoilt: set[str] = field(default_factory=set)
    """Files that come with another first byte."""
    bare: bool = False
    """It lists names only."""
    on_content: Callable[[str], None] = lambda _name: None
    """Called with the name of each file that is asked for."""
    endpoint: str = ""
    lock: Any = field(default_factory=threading.Lock)
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """Path, Range and Authorization of each request."""

    def ranges(self) -> dict[str, str | None]:
        """The last range that was asked for of each file whose content was."""
        prefix = "/content/"
        return {path.removeprefix(prefix): asked for path, asked, _ in self.asked if path.startswith(prefix)}


class _Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.asked.append((path, self.headers["Range"], self.headers["Authorization"]))
        if self.hub.refusal is not None:
            self._refuse(*self.hub.refusal)
        elif path.startswith("/api/models/"):
            self._describe(path.removeprefix("/api/models/"))
        elif path.startswith("/content/"):
            self._send_file(path.removeprefix("/content/"))
        else:
            self._redirect(path)

    def _refuse(self, status: HTTPStatus, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self._answer(status, b"", {name: value for name, value in headers.items() if value})

    def _answer(self, status: HTTPStatus, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _describe(self, asked: str) -> None:
        repository, _, revision = asked.partition("/revision/")
        if repository != REPOSITORY:
            self._refuse(HTTPStatus.UNAUTHORIZED, "RepoNotFound", "Repository not found")
        elif revision not in {"main", self.hub.commit}:
            self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            siblings = [_sibling(path, content) for path, content in self.hub.files.items()]
            if self.hub.bare:
                siblings = [{"rfilename": sibling["rfilename"]} for sibling in siblings]
            description = {"id": repository, "sha": self.hub.commit, "siblings": siblings}
            self._answer(HTTPStatus.OK, json.dumps(description).encode())

    def _redirect(self, path: str) -> None:
        name = path.removeprefix(f"/{REPOSITORY}/resolve/{self.hub.commit}/")
        if self.hub.gated:
            allowed = self.headers["Authorization"] is not None
            status = HTTPStatus.FORBIDDEN if allowed else HTTPStatus.UNAUTHORIZED
            self._refuse(status, "GatedRepo", "You are not in the authorized list")
        elif name not in self.hub.files:
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
        else:
            # Another host by its name, as the Hub's storage is.
            storage = self.hub.endpoint.replace("127.0.0.1", "localhost")
            headers = {"Location": f"{storage}/content/{name}", "X-Repo-Commit": self.hub.commit}
            self._answer(HTTPStatus.FOUND, b"", headers)

    def _send_file(self, name: str) -> None:
        self.hub.on_content(name)
        if name in self.hub.gone:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "", "")
            return
        content = self.hub.files[name]
        if name in self.hub.spoilt:
            content = bytes([content[0] ^ 1]) + content[1:]
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(HTTPStatus.PARTIAL_CONTENT if start else HTTPStatus.OK)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = self.hub.cut_after.pop(name, None)
        self.wfile.write(content[start:] if cut is None else content[start:cut])
        if cut is not None:
            self.hub.gone.add(name)
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # Clients may leave.
            super().handle_error(request, client_address)


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    described: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob}
    if path.endswith(".safetensors"):
        sha256 = hashlib.sha256(content).hexdigest()
        described["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 100}
    return described


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[FakeHub]:
    hub = FakeHub(files=files)
    requests = type("Requests", (_Requests,), {"hub": hub})
    with _Server(("127.0.0.1", 0), requests) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
