"""The reflector against an API server that falls silent, forgets versions and cuts lists into pages."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from roost.scheduler.backends.kubernetes.api import Api
from roost.scheduler.backends.kubernetes.watch import Reflector
from roost.scheduler.errors import BackendUnavailable
from roost.testing.deadlines import allow_s

DEEP = b"[" * 200_000


class FakeServer(ThreadingHTTPServer):
    """An API server with one kind of objects. `watches` are scripts, one for each watch in turn."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, str] = {}
        self.version = 1
        self.page = 500
        self.lists = 0
        self.watches: list[Any] = []
        self.body: bytes | None = None
        """The answer to a list, in place of the objects."""
        self.released = threading.Event()

    def item(self, uid: str, text: str = "") -> dict[str, Any]:
        version = str(self.version)
        return {"metadata": {"uid": uid, "resourceVersion": version}, "text": text or self.objects[uid]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def do_GET(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlparse(self.path).query).items()}
        if "watch" not in query:
            self.server.lists += 1
            start = int(query.get("continue", 0))
            objects = dict(self.server.objects)  # a test may change them meanwhile
            uids = sorted(objects)[start : start + self.server.page]
            more = start + self.server.page
            metadata = {"resourceVersion": str(self.server.version)}
            if more < len(objects):
                metadata["continue"] = str(more)
            body = json.dumps(
                {"metadata": metadata, "items": [self.server.item(uid, objects[uid]) for uid in uids]}
            ).encode()
            body = body if self.server.body is None else self.server.body
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in self.server.watches.pop(0) if self.server.watches else ["silence"]:
            if event == "silence":
                self.server.released.wait(allow_s(30))
                return
            line = (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        return None


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()


@pytest.fixture
def api(server: FakeServer, tmp_path: Path) -> Iterator[Api]:
    host = f"http://127.0.0.1:{server.server_port}"
    config = {
        "clusters": [{"name": "c", "cluster": {"server": host}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "lab"}}],
        "current-context": "x",
    }
    file = tmp_path / "config"
    file.write_text(json.dumps(config))
    api = Api(str(file), "")
    yield api
    api.close()


class Following:
    """A running reflector, and its changes."""

    def __init__(self, api: Api, timeout_s: float = 30.0) -> None:
        self.changes: list[tuple[str, str | None, str | None]] = []
        self.changed = asyncio.Event()
        self.reflector: Reflector[str] = Reflector(
            api, "/things", lambda raw: str(raw["text"]), self.on_change, timeout_s=timeout_s
        )
        self.task = asyncio.ensure_future(self.reflector.run())

    def on_change(self, *change: Any) -> None:
        self.changes.append(change)
        self.changed.set()

    async def until(self, uid: str, text: str | None) -> None:
        while self.reflector.items.get(uid) != text:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), allow_s(60))

    async def __aenter__(self) -> Following:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_changes_arrive_by_the_watch(server: FakeServer, api: Api) -> None:
    server.objects = {"a": "one"}
    changed = {
        "type": "MODIFIED",
        "object": {"metadata": {"uid": "a", "resourceVersion": "2"}, "text": "two"},
    }
    deleted = {"type": "DELETED", "object": {"metadata": {"uid": "a", "resourceVersion": "3"}, "text": "two"}}
    server.watches = [[changed, deleted, "silence"]]
    async with Following(api) as f:
        await f.reflector.listed.wait()
        await f.until("a", None)
        assert f.changes == [("a", None, "one"), ("a", "one", "two"), ("a", "two", None)]
    assert api.namespace == "lab"


async def test_a_long_list_is_read_in_pages(server: FakeServer, api: Api) -> None:
    server.page = 10
    server.objects = {f"{number:02}": "x" for number in range(25)}
    async with Following(api) as f:
        await f.reflector.listed.wait()
        assert (len(f.reflector.items), server.lists) == (25, 3)


async def test_a_silent_watch_is_noticed_within_its_timeout(
    server: FakeServer, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server accepts the watch and sends nothing, not even the end. The change is found by listing again."""
    monkeypatch.setattr("roost.scheduler.backends.kubernetes.watch._LATE_S", 0.2)
    server.objects = {"a": "one"}
    async with Following(api, timeout_s=1.0) as f:
        await f.until("a", "one")
        server.objects["a"] = "two"
        began = asyncio.get_running_loop().time()
        await f.until("a", "two")
        assert asyncio.get_running_loop().time() - began < allow_s(5.0)


async def test_an_expired_version_is_listed_again(server: FakeServer, api: Api) -> None:
    gone = {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}
    server.objects = {"a": "one", "b": "one"}
    server.watches = [[gone]]
    async with Following(api) as f:
        await f.until("b", "one")
        del server.objects["b"]
        await f.until("b", None)
        assert f.reflector.items == {"a": "one"}


@pytest.mark.parametrize(
    "event",
    [
        7,
        {},
        {"type": "MODIFIED", "object": 7},
        {"type": "MODIFIED", "object": {"metadata": {"uid": "a"}, "text": "two"}},
        {"type": "BOOKMARK", "object": {"metadata": []}},
        {"type": "ERROR", "object": None},
        DEEP,
    ],
)
async def test_an_event_that_cannot_be_read_begins_a_new_list(
    server: FakeServer, api: Api, event: object
) -> None:
    server.objects = {"a": "one"}
    server.watches = [[event, "silence"]]
    async with Following(api) as f:
        await f.until("a", "one")
        server.objects["a"] = "three"
        await f.until("a", "three")


@pytest.mark.parametrize("body", [b"7", b"[]", b"<html>", DEEP, b"{}", b'{"metadata": {}, "items": [7]}'])
async def test_a_list_that_cannot_be_read_is_a_server_that_is_away(
    server: FakeServer, api: Api, body: bytes
) -> None:
    server.body = body
    async with Following(api) as f:
        with pytest.raises(BackendUnavailable):
            await asyncio.wait_for(f.task, allow_s(60))


async def test_a_server_that_is_away_is_an_error_of_the_list(server: FakeServer, api: Api) -> None:
    server.shutdown()
    server.server_close()
    async with Following(api) as f:
        with pytest.raises(BackendUnavailable, match="does not answer"):
            await f.task
