"""A Hub on this machine: as much of its interface as downloads need, over HTTP."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secret"


class Hub(http.server.ThreadingHTTPServer):
    """Repositories by the end of their address: "owner/name" for a model, "datasets/owner/name" for a dataset.

    Attributes:
        repositories: files by name.
        gated: repositories whose files are given with `TOKEN` alone.
        requests: what was asked, method and path.
        held: while it is cleared, files of weights are held back; `reached` says that one was asked for.
    """

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = dict(repositories)
        self.gated: set[str] = set()
        self.requests: list[str] = []
        self.held, self.reached = threading.Event(), threading.Event()
        self.held.set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str) -> str:
        return hashlib.sha1(repr(sorted(self.repositories[name].items())).encode()).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.requests.append(f"{self.command} {path}")
        if path.startswith(("api/models/", "api/datasets/")):
            _, kind, rest = path.split("/", 2)
            parts = rest.split("/", 2)
            name = ("" if kind == "models" else f"{kind}/") + "/".join(parts[:2])
            status, content, headers = self._api(name, parts[2] if len(parts) > 2 else "")
        elif "/resolve/" in path:
            name, _, rest = path.partition("/resolve/")
            status, content, headers = self._file(name, rest.partition("/")[2])
        else:
            status, content, headers = 404, b"", {}
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            if "safetensors" in path:
                self.server.reached.set()
                self.server.held.wait()
            with suppress(ConnectionError):
                self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _api(self, name: str, rest: str) -> tuple[int, bytes, dict[str, str]]:
        files = self.server.repositories.get(name)
        if files is None:  # as the Hub does, which does not tell what is private
            return 401, b"{}", {"X-Error-Code": "RepoNotFound"}
        commit = self.server.commit(name)
        kind, _, revision = rest.partition("/")
        if kind == "tree":
            listed = [
                {"type": "file", "path": path, "size": len(data), "oid": _digest(data)}
                for path, data in files.items()
            ]
            return 200, json.dumps(listed).encode(), {}
        if revision not in ("", "main", commit):
            return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
        siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
        return 200, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode(), {}

    def _file(self, name: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        if name in self.server.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 403, b"", {"X-Error-Code": "GatedRepo"}
        data = self.server.repositories[name][path]
        headers = {"ETag": f'"{_digest(data)}"', "X-Repo-Commit": self.server.commit(name)}
        return 200, data, headers


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def serving(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[Hub]:
    hub = Hub(repositories)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
