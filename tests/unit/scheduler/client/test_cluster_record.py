"""The names of a cluster, and the folder of the service to which they lead."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from roost.scheduler.client import cluster_record
from roost.scheduler.client.cluster_record import (
    ClusterRecord,
    find_twins,
    read_record,
    refer,
    share_place,
    write_place,
    write_record,
)
from roost.scheduler.client.service_folder import name_service, service_folder
from roost.testing.deadlines import allow_s

HEAD = "192.0.2.7:6379"

Serve = Callable[..., Path]


@pytest.fixture
def serve(runtime_dir: Path) -> Iterator[Serve]:
    """Return a function that makes this process the service of a folder, with or without a record of its cluster."""
    opened: list[int] = []

    def start(
        name: str, record: ClusterRecord | None = None, *, is_alive: bool = True, **announced: Any
    ) -> Path:
        folder = runtime_dir / name
        folder.mkdir(mode=0o700, exist_ok=True)
        if record is not None:
            write_record(folder, record)
        (folder / "ready.json").write_text(json.dumps({"pid": os.getpid(), **announced}))
        if is_alive:
            opened.append(os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600))
            fcntl.flock(opened[-1], fcntl.LOCK_EX)
        return folder

    yield start
    for descriptor in opened:
        os.close(descriptor)


@pytest.fixture(autouse=True)
def no_known_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_record, "_known", {})


def record(*places: str, cluster_id: str = "", backend: str = "ray", **options: Any) -> ClusterRecord:
    return ClusterRecord(backend=backend, cluster_id=cluster_id, places=places, options=options)


def hosts(monkeypatch: pytest.MonkeyPatch, **known: str) -> None:
    """Let these host names, and no others, have these addresses. The name `hangs` has one after a minute."""
    monkeypatch.setattr(cluster_record, "_LOOK_UP_S", allow_s(60))

    def ask(host: str, *_: Any, **__: Any) -> list[Any]:
        if host == "hangs":
            time.sleep(60)
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known[host], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", ask)


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("Head.Example:6379", "head.example:6379"),
        (" tcp://HEAD:8786/ ", "head:8786"),
        ("tls://head:8786", "head:8786"),
        ("localhost:1", "127.0.0.1:1"),
        ("[::1]:1", "127.0.0.1:1"),
        ("[2001:DB8::1]:1", "[2001:db8::1]:1"),
        ("https://api/team", "api:443/team"),
        ("http://rm1:8088", "rm1:8088"),
        ("http://rm1:8088,http://rm2:8088", ""),
        ("https://api:6443, other people's pods not counted", ""),
        ("/etc/Hadoop/conf", ""),
        ("scheduler.json", ""),
        ("auto", ""),
        ("", ""),
        ("host:99999", ""),
        ("[:1", ""),
    ],
)
def test_an_address_has_one_spelling(address: str, place: str) -> None:
    assert write_place(address) == place


def test_host_names_are_one_place_with_their_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts(monkeypatch, head="192.0.2.7", alias="192.0.2.7", other="192.0.2.8")
    assert share_place(["head:6379"], ["192.0.2.7:6379"])
    assert share_place(["head:6379"], ["gone:6379", "alias:6379"])
    assert not share_place(["head:6379"], ["alias:6380"])
    assert not share_place(["head:6379"], ["other:6379"])
    assert not share_place(["head:6443/a"], ["alias:6443/b"])
    assert not share_place(["gone:6379"], ["missing:6379"])
    assert not share_place([], ["head:6379"])


def test_a_name_that_hangs_delays_a_search_for_half_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts(monkeypatch, head="192.0.2.7")
    monkeypatch.setattr(cluster_record, "_LOOK_UP_S", 0.05)
    began = time.monotonic()
    for _ in range(20):  # the name is not looked up again at once
        assert not share_place(["hangs:6379"], ["192.0.2.7:6379"])
    assert time.monotonic() - began < allow_s(30), "it has waited for the name"


def test_a_name_without_a_service_leads_to_the_one_that_serves_its_cluster(serve: Serve) -> None:
    own = service_folder("ray", {"address": HEAD})
    assert own.name == name_service("ray", {"address": HEAD})
    running = serve("scheduler-ray", record(HEAD))
    assert service_folder("ray", {"address": f" {HEAD}/"}) == running
    assert service_folder("ray", {}) == running
    for other in ({"address": "192.0.2.8:6379"}, {"address": HEAD, "python": "3"}):
        assert service_folder("ray", other) != running
    assert service_folder("dask", {"address": f"tcp://{HEAD}"}) != running


@pytest.mark.parametrize("scheme", ["ray", "http"])
def test_an_address_that_the_backend_refuses_leads_to_no_service_that_runs(serve: Serve, scheme: str) -> None:
    serve("scheduler-ray", record(HEAD))
    serve("scheduler-dask", record(HEAD, backend="dask"))
    refused = {"address": f"{scheme}://{HEAD}"}
    assert service_folder("ray", refused).name == name_service("ray", refused)
    assert service_folder("dask", {"address": f"tls://{HEAD}"}).name == "scheduler-dask"


def test_a_folder_with_a_running_service_keeps_its_name(serve: Serve) -> None:
    serve("scheduler-ray", record(HEAD))
    own = serve(name_service("ray", {"address": HEAD}), record(HEAD, address=HEAD))
    assert service_folder("ray", {"address": HEAD}) == own


def test_the_last_service_of_a_cluster_is_found_when_none_runs(serve: Serve, runtime_dir: Path) -> None:
    ended = serve("scheduler-ray", record(HEAD), is_alive=False)
    own = runtime_dir / name_service("ray", {"address": HEAD})
    assert service_folder("ray", {"address": HEAD}) == ended
    serve(own.name, record(HEAD, address=HEAD), is_alive=False)
    assert service_folder("ray", {"address": HEAD}) == own
    running = serve("scheduler-ray-1", record(HEAD))
    assert service_folder("ray", {"address": HEAD}) == running


def test_a_referral_holds_while_the_same_process_serves(serve: Serve, runtime_dir: Path) -> None:
    own = runtime_dir / "scheduler-ray"
    own.mkdir(mode=0o700)
    target = serve("scheduler-ray-1", record(HEAD))
    refer(own, target)
    assert service_folder("ray", {}) == target
    (target / "ready.json").write_text(json.dumps({"pid": os.getpid(), "process_started_at": 1.0}))
    assert service_folder("ray", {}) == own
    for damaged in ("{", '{"folder": "../scheduler-x"}', '{"folder": 1}', "[]"):
        (own / "referral.json").write_text(damaged)
        assert service_folder("ray", {}) == own


def test_a_referral_for_an_address_holds_while_the_same_cluster_is_served(
    serve: Serve, runtime_dir: Path
) -> None:
    own = runtime_dir / name_service("ray", {"address": "127.0.0.1:6379"})
    own.mkdir(mode=0o700)
    target = serve("scheduler-ray-1", record(HEAD, cluster_id="c"))
    refer(own, target, cluster_id="c")
    (target / "ready.json").write_text(json.dumps({"pid": os.getpid(), "process_started_at": 1.0}))
    assert service_folder("ray", {"address": "127.0.0.1:6379"}) == target
    write_record(target, record(HEAD, cluster_id="d"))
    assert service_folder("ray", {"address": "127.0.0.1:6379"}) == own


@pytest.mark.parametrize(
    "text", ["", "[]", '{"backend": "ray"}', '{"backend": 1, "cluster_id": 1, "places": 1}']
)
def test_a_damaged_record_is_no_record(serve: Serve, text: str) -> None:
    folder = serve("scheduler-ray", is_alive=False)
    (folder / "cluster.json").write_text(text)
    assert read_record(folder) is None
    assert service_folder("ray", {"address": HEAD}) != folder


def test_twins_are_found_by_address_or_identity_with_any_options(serve: Serve) -> None:
    own = serve("scheduler-ray", record(HEAD, cluster_id="c"))
    by_address = serve("scheduler-ray-1", record(HEAD, cluster_id="before", python="x"))
    by_identity = serve("scheduler-ray-2", record("127.0.0.1:6379", cluster_id="c"))
    serve("scheduler-ray-3", record("127.0.0.1:6379"))
    serve("scheduler-ray-4", record(HEAD), is_alive=False)
    assert set(find_twins(own)) == {by_address, by_identity}
