"""A Hub on this machine: what `huggingface_hub` asks of one, answered from a folder of repositories."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def hub(folder: Path) -> Iterator[str]:
    """Serves `folder/OWNER/NAME`; gives what HF_ENDPOINT must be."""

    class Handler(_Handler):
        root = folder

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    root: Path
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        """A file's size and hash."""
        self._file(body=False)

    def do_GET(self) -> None:
        """A file, or what there is in a repository."""
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] != ["api", "models"]:
            self._file(body=True)
            return
        repository = self.root / parts[2] / parts[3]
        files = sorted(path for path in repository.rglob("*") if path.is_file())
        names = [path.relative_to(repository).as_posix() for path in files]
        if not files:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif "tree" in parts:
            tree = [
                {"type": "file", "oid": _hash(path), "size": path.stat().st_size, "path": name}
                for path, name in zip(files, names, strict=True)
            ]
            self._send(200, json.dumps(tree).encode())
        else:
            siblings = [{"rfilename": name} for name in names]
            info = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            self._send(200, json.dumps(info).encode())

    def _file(self, *, body: bool) -> None:
        owner, name, _, _, *rest = unquote(urlsplit(self.path).path).strip("/").split("/")
        path = self.root / owner / name / "/".join(rest)
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)
            return
        self._send(200, path.read_bytes(), {"ETag": f'"{_hash(path)}"'}, body=body)

    def _send(self, code: int, content: bytes, headers: dict[str, str] | None = None, *, body: bool = True) -> None:
        self.send_response(code)
        for key, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
