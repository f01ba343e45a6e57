"""Calls to an API server whose connections fall silent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from roost.scheduler.backends.kubernetes import api
from roost.scheduler.backends.kubernetes.api import Api
from roost.scheduler.errors import BackendUnavailable
from roost.testing.deadlines import allow_s, until_blocking


class SilentServer(ThreadingHTTPServer):
    """A server that answers `{}`, except on connections from the client ports in `silent`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, int]] = []
        """The HTTP method and the client's port of each request."""
        self.silent: set[int] = set()
        self.refusals: list[str] = []
        """The values of Retry-After with which the next requests are refused."""
        self.is_over = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SilentServer

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        port = self.client_address[1]
        self.server.requests.append((self.command, port))
        if port in self.server.silent:
            self.server.is_over.wait()
            return
        if self.server.refusals:
            self.send_response(429)
            self.send_header("Retry-After", self.server.refusals.pop())
        else:
            self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[SilentServer]:
    with SilentServer() as made:
        serving = threading.Thread(target=made.serve_forever)
        serving.start()
        yield made
        made.is_over.set()
        made.shutdown()
        serving.join()


@pytest.fixture
def client(server: SilentServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    config = {
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    }
    (tmp_path / "config").write_text(json.dumps(config))
    monkeypatch.setattr(api, "_SILENT_S", 0.2)
    made = Api(str(tmp_path / "config"), "")
    yield made
    made.close()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_call_on_a_silent_connection_is_repeated_on_a_new_one(
    client: Api, server: SilentServer, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.request("GET", "/version", timeout_s=allow_s(60))
    monkeypatch.setattr(api, "_SILENT_S", allow_s(0.3))
    monkeypatch.setattr(api, "_SILENT_SHARE", 0.0)
    server.silent = {port for _, port in server.requests}
    assert client.request(method, "/version", timeout_s=30.0) == {}
    assert [sent for sent, _ in server.requests] == ["GET", method, method]
    assert len({port for _, port in server.requests}) == 2


def test_a_server_that_is_silent_is_away_after_two_attempts(client: Api, server: SilentServer) -> None:
    server.silent = set(range(1 << 16))
    with pytest.raises(BackendUnavailable, match="does not answer"):
        client.request("GET", "/version", timeout_s=0.3)
    until_blocking(lambda: len(server.requests) >= 2, "the server gets two requests", 60, 0.01)
    assert len(server.requests) == 2


@pytest.mark.parametrize("retry_after", ["0", "Wed, 21 Oct 2015 07:28:00 GMT", "soon", ""])
def test_a_busy_server_is_asked_again(
    client: Api, server: SilentServer, retry_after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_PAUSE_S", 0.01)
    server.refusals = [retry_after]
    assert client.request("GET", "/version", timeout_s=allow_s(60)) == {}
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred (_ssl.c:1006)", "EOF occurred"),
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: it has expired (_ssl.c:1006)",
            "it has expired",
        ),
        (
            "Failed to establish a new connection: [Errno 111] Connection refused",
            "[Errno 111] Connection refused",
        ),
    ],
)
def test_the_cause_of_a_failed_call_is_short(said: str, text: str) -> None:
    assert api._short(OSError(said)) == text
