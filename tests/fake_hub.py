"""A Hugging Face hub on loopback: repositories from folders, ranges, licences to accept, connections that break."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Hub:
    """Serves `repositories` (id -> folder); `cut` breaks so many answers off in the middle of a
    file; with `stall` the others stop there and say nothing more."""

    def __init__(self, repositories: dict[str, Path], gated: tuple[str, ...] = ()) -> None:
        self.repositories, self.gated, self.cut, self.requests = repositories, gated, 0, []
        self.stall, self.lock = threading.Event(), threading.Lock()
        self.stalled = threading.Event()
        self.sent: dict[str, int] = {}
        """Bytes of each file that went out."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repository: str) -> dict[str, Path]:
        folder = self.repositories[repository]
        return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}

    def answer(self, handler, body: bool) -> None:
        path = handler.path.split("?")[0]
        self.requests.append((handler.command, handler.path, dict(handler.headers)))
        for repository in self.repositories:
            if path.startswith(f"/api/models/{repository}"):
                return self._info(handler, repository, path)
            if path.startswith(f"/{repository}/resolve/"):
                name = path.removeprefix(f"/{repository}/resolve/").split("/", 1)[1]
                return self._file(handler, repository, name, body)
        self._json(handler, {"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def _info(self, handler, repository: str, path: str) -> None:
        siblings = [{"rfilename": name, "size": p.stat().st_size, "blobId": "0"}
                    for name, p in self.files(repository).items()]
        if "/tree/" in path:
            return self._json(handler, [{"type": "file", "path": s["rfilename"], "size": s["size"], "oid": "0"}
                                        for s in siblings])
        self._json(handler, {"id": repository, "modelId": repository, "sha": "a" * 40, "siblings": siblings,
                             "cardData": {"license": "other", "license_name": "a-licence"}, "tags": [],
                             "private": False, "downloads": 0, "likes": 0})

    def _json(self, handler, value, code: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        handler.send_response(code)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        for key, said in headers.items():
            handler.send_header(key, said)
        handler.end_headers()
        if handler.command != "HEAD":  # a body would be taken for the next answer
            handler.wfile.write(data)

    def _file(self, handler, repository: str, name: str, body: bool) -> None:
        if repository in self.gated:
            return self._json(handler, {"error": "Access is restricted"}, 403, {"X-Error-Code": "GatedRepo"})
        file = self.files(repository).get(name)
        if file is None:
            return self._json(handler, {"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        data = file.read_bytes()
        start = 0
        if (asked := handler.headers.get("Range")) is not None:
            start = int(asked.removeprefix("bytes=").split("-")[0])
        handler.send_response(206 if asked is not None else 200)
        said = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "a" * 40, "Accept-Ranges": "bytes",
                "Content-Length": str(len(data) - start)}
        if asked is not None:
            said["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        for key, value in said.items():
            handler.send_header(key, value)
        handler.end_headers()
        if not body:
            return
        rest = data[start:]
        # Of a small file nothing would have been written by then, and nothing be there to go on from.
        with self.lock:
            cut = self.cut > 0 and len(rest) > 20_000
            self.cut -= cut
        if cut:
            rest = rest[:len(rest) // 2]
            handler.close_connection = True
        elif self.stall.is_set() and len(rest) > 100_000:
            handler.wfile.write(rest[:len(rest) // 2])
            handler.wfile.flush()
            self.sent[name] = self.sent.get(name, 0) + len(rest) // 2
            self.stalled.set()
            while self.stall.is_set():
                time.sleep(0.05)
            handler.close_connection = True
            return
        self.sent[name] = self.sent.get(name, 0) + len(rest)
        handler.wfile.write(rest)
        handler.wfile.flush()
        if handler.close_connection:
            handler.connection.close()
