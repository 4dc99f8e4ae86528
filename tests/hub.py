"""A hub on this machine that serves one repository, as far as huggingface-hub asks for one."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class LocalHub(ThreadingHTTPServer):
    """Serves files by name and writes down what it is asked.

    Attributes:
        commit: The only one there is; "main" is it too.
        files: Contents by name.
        requests: Method and path of each request, and the range where one is asked for.
        cut: Send so many bytes of a file at most, and hang up.
    """

    def __init__(self, repository: str, commit: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository, self.commit, self.files = repository, commit, files
        self.requests: list[str] = []
        self.cut: int | None = None

    @property
    def address(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[str]:
        """The requests that asked for a file's bytes."""
        return [line for line in self.requests if line.startswith("GET") and "/resolve/" in line]


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, asked = self.server, self.headers.get("Range", "")
        hub.requests.append(f"{self.command} {self.path} {asked}".strip())
        path = self.path.partition("?")[0].strip("/")
        api = f"api/models/{hub.repository}"
        if not path.startswith((api, hub.repository)):
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif path.split("/")[-1] not in (hub.commit, "main") and path.startswith(api):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(f"{api}/tree"):
            self._send(200, json.dumps([self._entry(name) for name in hub.files]).encode(), {})
        elif path.startswith(api):
            self._send(200, json.dumps({"id": hub.repository, "sha": hub.commit}).encode(), {})
        else:
            self._file(path.rpartition("/")[2], asked)

    def _entry(self, name: str) -> dict[str, object]:
        content = self.server.files[name]
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return {"type": "file", "path": name, "size": len(content), "oid": "0" * 40, "lfs": lfs}

    def _file(self, name: str, asked: str) -> None:
        content = self.server.files[name]
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": self.server.commit,
            "X-Linked-Size": str(len(content)),
            "Accept-Ranges": "bytes",
        }
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if asked else 200, content[start:], headers)

    def _send(self, code: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            limit = self.server.cut if "/resolve/" in self.path else None
            self.wfile.write(content[:limit])
            if limit is not None and len(content) > limit:
                self.close_connection = True


@contextmanager
def serve(repository: str, commit: str, files: dict[str, bytes]) -> Iterator[LocalHub]:
    """Run a hub while the context lasts."""
    hub = LocalHub(repository, commit, files)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def lay(cache: Path, repository: str, commit: str, files: dict[str, bytes]) -> Path:
    """Put files into a cache as huggingface-hub does; returns the snapshot."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)
    return snapshot
