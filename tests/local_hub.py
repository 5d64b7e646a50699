"""A local folder standing in for the model hub: the few HTTP answers that `huggingface_hub` needs for a download."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

#: Larger files are stored with a pointer, as on the hub.
LARGE = 1000


class LocalHub:
    """Serves `folder/OWNER/NAME/PATH` as repository OWNER/NAME.

    Attributes:
        url: to be used as endpoint.
        requests: (method, path, Range header) of every request.
        cut_after: when set, the next download breaks off after so many bytes.
        lie_about: a path whose announced hash is wrong.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut_after: int | None = None
        self.lie_about: str | None = None
        self.url = ""

    def commit(self, repo: str) -> str:
        """Changes when a file changes."""
        total = hashlib.sha1(usedforsecurity=False)
        for path in sorted((self.folder / repo).rglob("*")):
            if path.is_file():
                total.update(path.relative_to(self.folder).as_posix().encode() + path.read_bytes())
        return total.hexdigest()

    def entry(self, repo: str, path: str) -> dict[str, Any]:
        content = (self.folder / repo / path).read_bytes()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
        entry["oid"] = git_blob_id(content)
        if len(content) > LARGE:
            sha256 = hashlib.sha256(content + (b"!" if path == self.lie_about else b"")).hexdigest()
            entry["oid"] = git_blob_id(f"pointer to {sha256}".encode())
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
        return entry

    @contextmanager
    def running(self) -> Iterator[LocalHub]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.note()
                parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
                if parts[:2] == ["api", "models"]:
                    repo = "/".join(parts[2:4])
                    commit = hub.commit(repo)
                    known = len(parts) == 4 or parts[5] in (commit, "main")
                    if not (hub.folder / repo).is_dir():
                        self.refuse("RepoNotFound")
                    elif not known:
                        self.refuse("RevisionNotFound")
                    else:
                        self.answer({"id": repo, "sha": commit})
                else:
                    self.send_file("/".join(parts[:2]), "/".join(parts[4:]))

            def do_POST(self) -> None:
                self.note()
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                repo = "/".join(unquote(self.path).split("/")[3:5])
                paths = [path for path in form["paths"] if (hub.folder / repo / path).is_file()]
                self.answer([hub.entry(repo, path) for path in paths])

            def note(self) -> None:
                hub.requests.append((self.command, self.path, self.headers.get("Range")))

            def answer(self, content: Any) -> None:
                body = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def refuse(self, code: str) -> None:
                self.send_response(404)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def send_file(self, repo: str, path: str) -> None:
                content = (hub.folder / repo / path).read_bytes()
                start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                cut, hub.cut_after = hub.cut_after, None
                self.wfile.write(content[start : None if cut is None else start + cut])
                if cut is not None:
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
