"""A stand-in for the hub on this machine: repositories, and commits of files, in memory."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_standin"


class Hub:
    """What the stand-in holds and was asked.

    Attributes:
        repositories: files by name, by repository.
        private: whether each is.
        asked: method and path of every request.
        refuses: a status to answer to everything, if any.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []
        self.refuses: int | None = None
        self.endpoint = ""

    def answer(self, path: str, token: str, body: bytes) -> tuple[int, Any]:
        """Status and content."""
        if self.refuses is not None:
            return self.refuses, {"error": "no"}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        repository = "/".join(path.split("/")[3:5])
        return self.fill(repository, path, body) if repository in self.repositories else (404, {})

    def create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        address = {"url": f"{self.endpoint}/{name}", "name": name}
        if name in self.repositories:
            return 409, {"error": "You already created this model repo"} | address
        self.repositories[name] = {}
        self.private[name] = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        return 200, address

    def fill(self, repository: str, path: str, body: bytes) -> tuple[int, Any]:
        """The two steps of a commit: how each file is sent, and the files."""
        if path.endswith("/commit/main"):
            return self.commit(repository, body)
        files = json.loads(body)["files"]
        modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
        return 200, {"files": modes}

    def commit(self, repository: str, body: bytes) -> tuple[int, Any]:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.repositories[repository][line["value"]["path"]] = content
        url = f"{self.endpoint}/{repository}/commit/{'0' * 40}"
        return 200, {"commitUrl": url, "commitOid": "0" * 40, "pullRequestUrl": None}


@contextmanager
def hub_stand_in() -> Iterator[Hub]:
    """The stand-in, for as long as it is needed."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """Nothing."""

        def do_POST(self) -> None:
            hub.asked.append(self.path)
            body = self._body()
            status, content = hub.answer(self.path, self.headers.get("Authorization", ""), body)
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
