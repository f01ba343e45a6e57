"""The metrics of a service, scraped from its sockets."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import re
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kit.fakes.scheduler import FakeWorld, fake_world
from roost.launchers.protocol.messages import Owner
from roost.placement import Node, NodeType
from roost.scheduler.errors import BackendUnavailable, ConfigError
from roost.scheduler.service import metrics_port
from roost.scheduler.service.metrics import Metrics, serve_metrics
from roost.scheduler.service.metrics_port import AT_ONCE, REQUEST_S
from roost.testing.deadlines import allow_s, until

ROOT = Path(__file__).parents[4]
METRIC = re.compile(r"roost_[a-z_]+")


@asynccontextmanager
async def served(tmp_path: Path, **options: Any) -> AsyncIterator[tuple[FakeWorld, Path]]:
    """Yield a scheduler with one node, and the path of the socket that serves its metrics."""
    async with fake_world(tmp_path / "world", gpus=2) as w:
        metrics = Metrics(w.scheduler.count_kernels, w.scheduler.snapshot, **options)
        w.scheduler.events.listen(metrics)
        path = tmp_path / "metrics"
        with serve_metrics(metrics, f"unix:{path}"):
            yield w, path


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=allow_s(20))
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


def fetch(connection: http.client.HTTPConnection) -> str:
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    assert answer.status == 200
    text = answer.read().decode()
    connection.close()
    return text


async def scrape(path: Path) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return the value of each sample, by its name and its labels' values."""
    text = await asyncio.to_thread(fetch, UnixConnection(path))
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_kernels_nodes_and_events_are_counted(tmp_path: Path) -> None:
    async with served(tmp_path) as (w, path):
        await w.start("a", gpus=1)
        await w.start("b", gpus=0.5)
        await w.scheduler.stop("b", 0)
        found = await scrape(path)
        assert found["roost_kernels", ("running",)] == 1
        assert found["roost_kernels", ("queued",)] == 0
        assert found["roost_nodes", ("ready",)] == 1
        assert found["roost_nodes_total", ("gpus",)] == 2
        assert found["roost_nodes_promised", ("gpus",)] == 1
        assert found["roost_events_total", ("running",)] == w.count("running") == 2
        assert found["roost_events_total", ("released",)] == w.count("released") == 1
        assert found["roost_start_seconds_count", (w.kernel("a").how,)] == 2
        assert found["roost_queue_seconds_count", ()] == 2


async def test_the_types_of_a_cluster_that_grows_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = NodeType(node=Node(id="big", cpus=8), running=1, limit=4)
    async with served(tmp_path) as (w, path):
        monkeypatch.setattr(w.backend.growth, "list_types", lambda snapshot: (big,))
        found = await scrape(path)
        counts = {labels: value for (name, labels), value in found.items() if name == "roost_node_types"}
        assert counts == {("running", "big"): 1, ("limit", "big"): 4}


@pytest.mark.parametrize("by_user", [False, True])
async def test_users_are_named_only_if_asked(tmp_path: Path, by_user: bool) -> None:
    async with served(tmp_path, by_user=by_user) as (w, path):
        await w.start("secret-kernel", owner=Owner(user="secret-user"))
        text = await asyncio.to_thread(fetch, UnixConnection(path))
        assert ("secret-user" in text) is by_user
        assert "secret-kernel" not in text


async def test_a_cluster_that_is_away_leaves_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise BackendUnavailable("away")

    async with served(tmp_path) as (w, path):
        await w.start("a")
        monkeypatch.setattr(w.scheduler.backend, "snapshot", fail)
        found = await scrape(path)
        assert found["roost_kernels", ("running",)] == 1
        assert ("roost_nodes", ("ready",)) not in found


async def test_the_socket_is_private_and_goes_with_the_service(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def test_a_taken_port_is_reported_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_world(tmp_path) as w:
        metrics = Metrics(w.scheduler.count_kernels, w.scheduler.snapshot)
        with (
            taken_port() as port,
            caplog.at_level(logging.WARNING),
            serve_metrics(metrics, f"127.0.0.1:{port}"),
        ):
            assert f"metrics are not served at 127.0.0.1:{port}: Address already in use" in caplog.text
        hosts = {"localhost": "127.0.0.1"} | ({"[::1]": "::1"} if socket.has_dualstack_ipv6() else {})
        for host, address in hosts.items():
            with serve_metrics(metrics, f"{host}:{port}"):
                text = await asyncio.to_thread(
                    fetch, http.client.HTTPConnection(address, port, timeout=allow_s(20))
                )
                assert "roost_kernels" in text


async def test_only_a_socket_that_nobody_serves_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path) as (w, path):
        metrics = Metrics(w.scheduler.count_kernels, w.scheduler.snapshot)
        file, link, dead = tmp_path / "file", tmp_path / "link", tmp_path / "dead"
        file.write_text("mine")
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(dead))
        link.symlink_to(dead)
        for taken in (file, link, path):
            with serve_metrics(metrics, f"unix:{taken}") as problem:
                assert problem == f"metrics are not served at unix:{taken}: Address already in use"
                assert problem in caplog.text
        assert (file.read_text(), link.is_symlink(), dead.is_socket()) == ("mine", True, True)
        assert ("roost_nodes", ("ready",)) in await scrape(path)
        with serve_metrics(metrics, f"unix:{dead}") as problem:
            assert problem == ""
            assert ("roost_nodes", ("ready",)) in await scrape(dead)
        assert not dead.exists()


async def test_what_has_taken_the_place_of_the_socket_stays(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, path):
        path.rename(tmp_path / "moved")  # keeps its inode's number in use
        path.write_text("mine")
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0:9476", "9476", "example.org:80", "127.0.0.1:x", "127.0.0.1:²", "127.0.0.1:99999"),
        *("127.0.0.1:0", ":80", "unix:here", "unix:"),
    ],
)
async def test_only_loopback_addresses_and_sockets_are_possible(tmp_path: Path, address: str) -> None:
    async with fake_world(tmp_path) as w:
        metrics = Metrics(w.scheduler.count_kernels, w.scheduler.snapshot)
        says = r"c\.RoostScheduler\.metrics = '.*' is not possible: give a loopback address"
        with pytest.raises(ConfigError, match=says), serve_metrics(metrics, address):
            pass


async def test_the_dashboard_shows_metrics_that_exist(tmp_path: Path) -> None:
    dashboard = json.loads((ROOT / "docs" / "examples" / "grafana.json").read_text())
    queries = [each["expr"] for panel in dashboard["panels"] for each in panel["targets"]]
    async with served(tmp_path) as (w, path):
        await w.start("a")
        await w.scheduler.stop("a", 0)
        known = {name for name, _ in await scrape(path)}
    assert {name for query in queries for name in METRIC.findall(query)} <= known


@contextmanager
def open_connections(port: int, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    with ExitStack() as opened:
        peers = []
        for _ in range(count):
            peers.append(
                opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=allow_s(20)))
            )
            peers[-1].sendall(sent)
        yield peers


@asynccontextmanager
async def served_port(tmp_path: Path) -> AsyncIterator[int]:
    async with fake_world(tmp_path) as w:
        with taken_port() as port:
            pass
        with serve_metrics(Metrics(w.scheduler.count_kernels, w.scheduler.snapshot), f"127.0.0.1:{port}"):
            yield port


@pytest.mark.parametrize("sent", [b"", b"GET /met", b"x" * 20_000])
async def test_connections_without_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(metrics_port, "REQUEST_S", 1000.0)  # only their number ends them
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    async with served_port(tmp_path) as port:
        with open_connections(port, 300, sent):
            text = await asyncio.to_thread(
                fetch, http.client.HTTPConnection("127.0.0.1", port, timeout=allow_s(REQUEST_S))
            )
            assert "roost_kernels" in text
            await until(
                lambda: threading.active_count() < threads + AT_ONCE + 5, "few threads are left", 60, 0.01
            )
            assert len(os.listdir("/proc/self/fd")) < descriptors + 300 + AT_ONCE + 40


async def test_a_request_must_come_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that sends a byte now and then is closed as well."""
    monkeypatch.setattr(metrics_port, "REQUEST_S", 0.3)

    def is_closed(peer: socket.socket) -> bool:
        deadline = time.monotonic() + allow_s(30)
        peer.settimeout(0.1)
        while time.monotonic() < deadline:
            with suppress(TimeoutError):
                try:
                    peer.sendall(b"G")
                    if peer.recv(1) == b"":
                        return True
                except ConnectionError:
                    return True
        return False

    async with served_port(tmp_path) as port:
        with open_connections(port, 1, b"") as (peer,):
            assert await asyncio.to_thread(is_closed, peer)


async def test_few_requests_are_answered_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection too many costs the oldest one its answer."""
    go_on = asyncio.Event()

    async def wait(self: Metrics) -> Any:
        await go_on.wait()
        return Counter(), None

    monkeypatch.setattr(Metrics, "_read", wait)
    async with served_port(tmp_path) as port:
        with open_connections(port, AT_ONCE + 1, b"GET /metrics HTTP/1.0\r\n\r\n") as peers:
            assert await asyncio.to_thread(read_all, peers[0]) == b""
            go_on.set()
            answers = await asyncio.gather(*(asyncio.to_thread(read_all, peer) for peer in peers[1:]))
    assert all(answer.startswith(b"HTTP/1.0 200") for answer in answers)


def test_accepting_is_not_tried_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that does not listen fails in `accept`, as one does without a free descriptor."""
    monkeypatch.setattr(metrics_port, "_LOOK_S", 0.1)
    with socket.socket() as listener:
        server = metrics_port._Server(listener, lambda *_: [])
        began = time.monotonic()
        with pytest.raises(OSError, match="Invalid argument"):
            server.get_request()
        assert time.monotonic() - began >= 0.1


def read_all(peer: socket.socket) -> bytes:
    with peer.makefile("rb") as reader:
        return reader.read()
