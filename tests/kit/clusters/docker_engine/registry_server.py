"""The program of a `Registry`: the part of the registry's HTTP API (version 2) by which an engine pulls an image.

`registry_server.py FOLDER [NAME:PASSWORD]` writes its port to the file `port` in its folder. It has no other input.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_PIECE = 1 << 18
_LOOKS_S = 0.05


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    login: str

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def log_message(self, *args: object) -> None:
        """Log nothing: `requests` has all."""

    def _answer(self, *, has_body: bool) -> None:
        with (self.folder / "requests").open("a") as file:
            file.write(f"{self.path}\n")
        wanted = f"Basic {base64.b64encode(self.login.encode()).decode()}"
        if self.login and self.headers.get("Authorization") != wanted:
            self._send(401, b"{}", {"WWW-Authenticate": 'Basic realm="test"'}, has_body=has_body)
            return
        blobs = json.loads((self.folder / "blobs.json").read_text())
        manifest = (self.folder / "manifest.json").read_bytes()
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        kind, _, name = self.path.removeprefix("/v2/").rpartition("/")
        if self.path == "/v2/":
            self._send(200, b"{}", {}, has_body=has_body)
        elif kind == "team/python/manifests" and name in ("3", digest):
            headers = {"Content-Type": json.loads(manifest)["mediaType"], "Docker-Content-Digest": digest}
            self._send(200, manifest, headers, has_body=has_body)
        elif kind == "team/python/blobs" and name in blobs:
            self._send_blob(*blobs[name], has_body=has_body)
        else:
            problem = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
            self._send(404, json.dumps(problem).encode(), {}, has_body=has_body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, has_body: bool) -> None:
        self.send_response(status)
        fixed = {"Content-Length": str(len(content)), "Docker-Distribution-Api-Version": "registry/2.0"}
        for name, value in {"Content-Type": "application/json", **fixed, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if has_body:
            self.wfile.write(content)

    def _send_blob(self, path: str, offset: int, size: int, *, has_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(size))
        self.end_headers()
        with open(path, "rb") as file:
            file.seek(offset)
            sent = 0
            while has_body and sent < size:
                while self._is_held(sent):
                    time.sleep(_LOOKS_S)
                piece = file.read(min(_PIECE, size - sent))
                self.wfile.write(piece)
                sent += len(piece)

    def _is_held(self, sent: int) -> bool:
        try:
            return sent >= int((self.folder / "hold").read_text())
        except FileNotFoundError:
            return False


def main(folder: Path, login: str) -> None:
    _Handler.folder, _Handler.login = folder, login
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        (folder / "port.new").write_text(str(server.server_port))
        (folder / "port.new").rename(folder / "port")
        server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
