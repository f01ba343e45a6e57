"""A client of a cluster's Kubernetes API, with plain JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import urllib3

from roost.testing.deadlines import allow_s


class Refused(OSError):
    """A reply of the API server with a status of 400 or more."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Api:
    """A client with the rights of a kubeconfig file. One request takes at most 30 s."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._server = cluster["server"]
        self._pool = urllib3.PoolManager(
            ca_certs=cluster["certificate-authority"],
            cert_file=user["client-certificate"],
            key_file=user["client-key"],
            retries=False,
            timeout=allow_s(30),
        )

    def text(self, method: str, path: str, body: object = None) -> str:
        """Return the body of the reply. Raise Refused if the API server refuses, or OSError if it does not answer."""
        headers = {
            "Content-Type": "application/merge-patch+json" if method == "PATCH" else "application/json"
        }
        data = None if body is None else json.dumps(body)
        try:
            reply = self._pool.request(method, self._server + path, body=data, headers=headers)
        except urllib3.exceptions.HTTPError as problem:
            raise ConnectionError(str(problem)) from problem
        if reply.status >= 400:
            raise Refused(reply.status, reply.data.decode(errors="replace"))
        return reply.data.decode()

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Return the reply as JSON. Raise as `text` does."""
        return json.loads(self.text(method, path, body))

    def watch(self, path: str) -> Iterator[Any]:
        """Yield the events of a watch. `path` includes its query. Close the iterator to end the watch."""
        reply = self._pool.request("GET", self._server + path, preload_content=False)
        rest = b""
        try:
            for chunk in reply.stream(1 << 16):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from map(json.loads, lines)
        finally:
            reply.close()

    def has(self, path: str) -> bool:
        """True if the object at this path exists."""
        try:
            self.call("GET", path)
        except Refused as refused:
            if refused.status == 404:
                return False
            raise
        return True

    def is_ready(self) -> bool:
        """True if the API server listens and is ready."""
        try:
            return self.text("GET", "/readyz") == "ok"
        except (Refused, OSError):
            return False
