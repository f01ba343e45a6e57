"""Joining Dask clusters, plain and with TLS: a failed join reports why within seconds and leaves nothing."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kit.clusters.dask.shared_cluster import tls_files
from roost.scheduler.backends.dask import join
from roost.scheduler.backends.dask.settings import RoostDaskBackend
from roost.scheduler.client.client import connect
from roost.scheduler.errors import BackendUnavailable, ConfigError, RoostError
from roost.testing.clusters.dask_machines import DaskMachines, why_not, write_certificate
from roost.testing.deadlines import allow_s

dask = pytest.importorskip("dask", reason="Dask is not installed: pip install '.[dask]'")

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

SECONDS = 10.0
"""How long a failed join may take: far less than the 30 s after which a Dask client gives up."""
SET_TLS = (
    "set tls_ca_file, tls_cert and tls_key of c.RoostDaskBackend, or distributed.comm.tls in Dask's conf"
)


def refused(address: str, **options: str) -> RoostError:
    """Return the error of a failed join at this address. Check that it has one line and comes within `SECONDS`."""

    began = time.monotonic()
    with pytest.raises(RoostError) as caught:
        asyncio.run(join.join(RoostDaskBackend(address=address, **options), ""))
    assert time.monotonic() - began < allow_s(SECONDS)
    assert "\n" not in str(caught.value)
    with warnings.catch_warnings():  # Dask leaves a half-open connection to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    return caught.value


async def joined(**options: str) -> str:
    """Join a cluster, check that it answers, and return its address."""
    client, address = await join.join(RoostDaskBackend(**options), "")
    try:
        await client.scheduler.identity()
        return address
    finally:
        await join.leave(client)


@contextmanager
def listener(answer: bytes | None) -> Iterator[str]:
    """Start a server that sends `answer` (None: nothing) to each client, and yield its address."""
    over = threading.Event()
    held = []

    def serve() -> None:
        while not over.is_set():
            connection, _ = server.accept()
            held.append(connection)
            if answer is not None:
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            socket.create_connection(server.getsockname()).close()
            thread.join(allow_s(60))
            for connection in held:
                connection.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_CONNECT_S", "_ANSWER_S", "_JOIN_S"):
        monkeypatch.setattr(join, name, allow_s(getattr(join, name)))


@pytest.fixture(scope="module")
def foreign_tls_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return TLS files that no cluster accepts."""
    folder = tmp_path_factory.mktemp("others") / "tls"
    write_certificate(folder)
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    return {"tls_ca_file": cert, "tls_cert": cert, "tls_key": key}


def test_a_cluster_is_joined_by_each_kind_of_address(dask_cluster: DaskMachines, tmp_path: Path) -> None:
    at = dask_cluster.address
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"type": "Scheduler", "address": at}))
    assert asyncio.run(joined(address=at)) == at
    assert asyncio.run(joined(address=at.partition("://")[2])) == at
    assert asyncio.run(joined(address=str(file))) == at
    with dask.config.set({"scheduler-address": at}):
        assert asyncio.run(joined()) == at


def test_a_cluster_with_tls_is_joined_by_its_files_or_dasks_configuration(
    dask_tls_cluster: DaskMachines,
) -> None:
    at, files = dask_tls_cluster.address, tls_files(dask_tls_cluster)
    assert asyncio.run(joined(address=at, **files)) == at
    assert asyncio.run(joined(address=at.partition("://")[2], **files)) == at
    known = {"ca-file": "tls_ca_file", "client.cert": "tls_cert", "client.key": "tls_key"}
    configured: dict[str, Any] = {f"distributed.comm.tls.{key}": files[name] for key, name in known.items()}
    with dask.config.set({**configured, "distributed.comm.require-encryption": True}):
        assert asyncio.run(joined(address=at)) == at
        assert asyncio.run(joined(address=at.partition("://")[2])) == at


def test_nobody_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        at = f"127.0.0.1:{server.getsockname()[1]}"
    problem = refused(at)
    assert isinstance(problem, BackendUnavailable)
    says = "nobody listens there; is it up, and c.RoostDaskBackend.address or DASK_SCHEDULER_ADDRESS right?"
    assert str(problem) == f"there is no Dask scheduler at tcp://{at}: {says}"


def test_no_such_host() -> None:
    problem = refused("no-such.invalid:8786")
    assert isinstance(problem, BackendUnavailable)
    assert "there is no Dask scheduler at tcp://no-such.invalid:8786: there is no such host" in str(problem)


@pytest.mark.parametrize(
    "answer", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n" + bytes(100), bytes(64)]
)
@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_something_else_listens_there(
    answer: bytes | None, scheme: str, foreign_tls_files: dict[str, str]
) -> None:
    with listener(answer) as at:
        problem = refused(f"{scheme}://{at}", **(foreign_tls_files if scheme == "tls" else {}))
    says = f"what listens at {scheme}://{at} does not "
    assert str(problem).startswith((f"{says}answer as a Dask scheduler: is", f"{says}speak TLS: is"))


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1", "127.0.0.1", "http://127.0.0.1:8787", "tcp://:8786", "tcp://here:there"]
)
def test_a_malformed_address(address: str) -> None:
    problem = refused(address)
    assert isinstance(problem, ConfigError)
    assert "is no address of a Dask scheduler: give tcp://host:port, tls://host:port, or" in str(problem)


def test_no_address_at_all() -> None:
    problem = refused("")
    assert isinstance(problem, ConfigError)
    assert "by c.RoostDaskBackend.address or DASK_SCHEDULER_ADDRESS" in str(problem)


def test_missing_and_malformed_scheduler_files(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    problem = refused(str(file))
    assert isinstance(problem, BackendUnavailable)
    assert str(problem).endswith("cannot be read: No such file or directory; is the cluster running?")
    for text in (
        "",
        "not JSON",
        "[]",
        "{}",
        '{"address": 3}',
        '{"address": ""}',
        '{"address": "http://h:1"}',
    ):
        file.write_text(text)
        problem = refused(str(file))
        assert isinstance(problem, ConfigError), text


def test_tls_without_files(dask_tls_cluster: DaskMachines, tmp_path: Path) -> None:
    at, files = dask_tls_cluster.address, tls_files(dask_tls_cluster)
    for name in files:
        problem = refused(at, **{**files, name: ""})
        assert isinstance(problem, ConfigError)
        assert SET_TLS in str(problem)
        problem = refused(at, **{**files, name: "/nowhere/file.pem"})
        assert isinstance(problem, ConfigError)
        assert "/nowhere/file.pem, is no file here" in str(problem)
    (tmp_path / "garbage.pem").write_text("garbage")
    for name in files:
        problem = refused(at, **{**files, name: str(tmp_path / "garbage.pem")})
        assert isinstance(problem, ConfigError)
        assert SET_TLS in str(problem)


def test_tls_with_the_files_of_another_cluster(
    dask_tls_cluster: DaskMachines, foreign_tls_files: dict[str, str]
) -> None:
    at, files = dask_tls_cluster.address, tls_files(dask_tls_cluster)
    for wrong in ({"tls_ca_file": foreign_tls_files["tls_ca_file"]}, foreign_tls_files):
        problem = refused(at, **{**files, **wrong})
        assert isinstance(problem, ConfigError)
        assert "do not accept each other's certificates" in str(problem)
        assert SET_TLS in str(problem)
    # The scheduler refuses this one; whether it still says so when it hangs up is chance.
    problem = refused(at, **{**foreign_tls_files, "tls_ca_file": files["tls_ca_file"]})
    says = (
        "do not accept each other's certificates: set tls_ca",
        "does it refuse roost's certificate? Set tls_ca",
    )
    assert any(one in str(problem) for one in says)


def test_a_key_of_another_certificate(
    dask_tls_cluster: DaskMachines, foreign_tls_files: dict[str, str]
) -> None:
    files = tls_files(dask_tls_cluster) | {"tls_key": foreign_tls_files["tls_key"]}
    assert SET_TLS in str(refused(dask_tls_cluster.address, **files))


def test_tls_to_a_plain_cluster_and_the_reverse(
    dask_cluster: DaskMachines, dask_tls_cluster: DaskMachines
) -> None:
    files = tls_files(dask_tls_cluster)
    problem = refused(dask_cluster.address.replace("tcp:", "tls:"), **files)
    says = (
        "does not speak TLS: is its address a tcp:// one?",
        "a Dask scheduler: is its address a tcp:// one, or",
    )
    assert any(one in str(problem) for one in says)  # by what comes first, Dask's greeting or its hanging up
    problem = refused(dask_tls_cluster.address.replace("tls:", "tcp:"))
    assert str(problem).endswith("does not answer as a Dask scheduler: is its address a tls:// one?")


def test_encryption_is_required(dask_cluster: DaskMachines) -> None:
    with dask.config.set({"distributed.comm.require-encryption": True}):
        problem = refused(dask_cluster.address)
    assert isinstance(problem, ConfigError)
    assert str(problem).endswith("has none: give its tls:// address")


def test_another_python(dask_cluster: DaskMachines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "sys", SimpleNamespace(version_info=SimpleNamespace(major=3, minor=5)))
    problem = refused(dask_cluster.address)
    assert isinstance(problem, ConfigError)
    theirs = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"runs on Python {theirs}, roost's service on 3.5, and they must be the same" in str(problem)
    assert "set ROOST_SERVICE_PYTHON" in str(problem)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", "there is no Dask scheduler at tcp://127.0.0.1:1: nobody listens there"),
        ("tls://127.0.0.1:1", "wants TLS, and tls_ca_file is not known: set tls_ca_file"),
    ],
)
def test_the_service_reports_the_error_and_leaves_nothing(runtime_dir: Path, address: str, says: str) -> None:
    client = connect("dask", address=address)
    try:
        began = time.monotonic()
        with pytest.raises(RoostError, match=says):
            client.nodes().result(allow_s(60))
        assert time.monotonic() - began < 2 * allow_s(SECONDS)  # with the start of a service
    finally:
        client.close()
    assert list(runtime_dir.glob("scheduler*/ready.json")) == []
