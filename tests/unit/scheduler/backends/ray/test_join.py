"""Joining Ray, without a cluster: refusals in one sentence, unchanged signal handlers, a deadline."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from roost.placement import Request
from roost.scheduler.backends.ray import checks, join
from roost.scheduler.backends.ray.checks import ClusterFacts, RayletAddress
from roost.scheduler.backends.ray.settings import RoostRayBackend
from roost.scheduler.errors import BackendUnavailable, ConfigError, RoostError
from roost.testing.deadlines import allow_s

GCS = "10.0.0.1:6379"
SETTINGS = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0])


def node(name: str, *, host: str = "10.0.0.1", port: int = 1, is_head: bool = False) -> RayletAddress:
    return RayletAddress(id=name, host=host, port=port, is_head=is_head)


def facts(*nodes: RayletAddress, ray: str = "2.60.0", python: str = "3.11.7") -> ClusterFacts:
    return ClusterFacts(cluster_id="a", ray_version=ray, python_version=python, nodes=nodes)


@pytest.fixture(autouse=True)
def no_ray_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str]]:
    """Hide raylets, Ray's settings and this machine's addresses. Return the list of raylets, to which tests may add."""
    raylets: list[tuple[str, str]] = []
    monkeypatch.setattr(checks, "_raylets", lambda: raylets)
    monkeypatch.setattr(checks, "_is_own_address", lambda address: False)
    monkeypatch.setattr(checks, "_CONNECT_S", allow_s(20))
    settings = ("ADDRESS", "USE_TLS", "AUTH_MODE", "AUTH_TOKEN_PATH", "DEFAULT_PYTHON_VERSION_MATCH_LEVEL")
    for name in (f"RAY_{setting}" for setting in settings):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return raylets


@contextmanager
def listener(answer: bytes | None) -> Iterator[tuple[str, int]]:
    """Listen for one client, and yield host and port. Answer the client's message with `answer` (None: nothing)."""

    def serve() -> None:
        try:
            with server.accept()[0] as connection:
                connection.recv(100)
                if answer is not None:
                    connection.sendall(answer)
                connection.recv(100)  # until the other side has gone
        except OSError:  # it left without reading all
            pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield ("127.0.0.1", server.getsockname()[1])
        thread.join(allow_s(60))


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ray://head:10001", "'ray://head:10001' is Ray Client's address"),
        ("ray://head:10001", "run Jupyter with roost on the head, and reach it by .ssh -L 8888"),
        ("http://head:8265", "is the dashboard's address"),
        ("https://head", "is the dashboard's address"),
        ("redis://head:6379", "is no address"),
        ("local", "is no address of a Ray cluster: give host:port"),
        ("head", "is no address"),
        (":6379", "is no address"),
        ("head:", "is no address"),
        ("head:0", "is no address"),
        ("head:65536", "is no address"),
        ("head:gcs", "is no address"),
        ("::1:6379", "is no address"),
    ],
)
def test_a_wrong_address_is_explained(address: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        checks.resolve(address)


@pytest.mark.parametrize("address", ["head:6379", "10.0.0.1:1", "[::1]:6379"])
def test_an_address_is_used_unchanged(address: str) -> None:
    assert checks.resolve(address) == address


@pytest.mark.parametrize("address", ["", "auto"])
def test_without_an_address_ray_address_is_used(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", GCS)
    assert checks.resolve(address) == GCS
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")  # as for `ray job submit`
    with pytest.raises(ConfigError, match="dashboard"):
        checks.resolve(address)


def test_without_ray_address_the_cluster_of_this_machine_is_used(
    no_ray_here: list[tuple[str, str]], tmp_path: Path
) -> None:
    latest = tmp_path / "ray" / "ray_current_cluster"
    latest.parent.mkdir()
    latest.write_text("127.0.0.1:1\n")  # a cluster that is gone
    with pytest.raises(BackendUnavailable, match="no Ray cluster runs on this machine"):
        checks.resolve("auto")
    no_ray_here += [(GCS, "a"), (GCS, "b")]
    assert checks.resolve("auto") == GCS
    no_ray_here.append(("10.0.0.2:6379", "c"))
    with pytest.raises(
        ConfigError,
        match=r"several Ray clusters run .*, 10\.0\.0\.1:6379, 10\.0\.0\.2:6379.* address=HOST:PORT",
    ):
        checks.resolve("")
    latest.write_text("10.0.0.2:6379\n")
    assert checks.resolve("") == "10.0.0.2:6379"


def test_a_server_that_speaks_grpc_is_accepted() -> None:
    with listener(SETTINGS) as (host, port):
        checks.greet(f"{host}:{port}")


@pytest.mark.parametrize(
    ("answer", "says"),
    [(b"HTTP/1.1 400 Bad Request\r\n", "something else listens"), (None, "no answer within")],
)
def test_a_server_that_is_not_ray_is_explained(
    answer: bytes | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if answer is None:
        monkeypatch.setattr(checks, "_CONNECT_S", 0.2)
    with (
        pytest.raises(BackendUnavailable, match=rf"there is no Ray cluster at 127\.0\.0\.1:\d+: .*{says}"),
        listener(answer) as (host, port),
    ):
        checks.greet(f"{host}:{port}")


def test_a_missing_server_is_explained() -> None:
    with pytest.raises(BackendUnavailable, match=r"connection refused; is its head up.* 6379 by default"):
        checks.greet(f"127.0.0.1:{closed_port()}")
    with pytest.raises(BackendUnavailable, match=r"no host no-such\.invalid is known here"):
        checks.greet("no-such.invalid:6379")


def test_a_new_kernelspec_is_told_of_a_wrong_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(checks, "_raylets", list)
    for address, error in (
        ("127.0.0.1:1", BackendUnavailable),
        ("ray://h:1", ConfigError),
        ("", BackendUnavailable),
    ):
        with pytest.raises(error):
            checks.check(RoostRayBackend(address=address), Request())


def test_with_tls_an_open_port_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with listener(None) as (host, port):
        checks.greet(f"{host}:{port}")


def test_versions_are_compared_as_ray_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_PYTHON", "3.11.7")
    checks.check_versions(GCS, facts(), "2.60.0")
    says = r"has Ray 2\.60\.0 on Python 3\.11\.9, roost's service Ray 2\.60\.0 on Python 3\.11\.7.*ROOST_SERVICE_PYTHON"
    with pytest.raises(ConfigError, match=says):
        checks.check_versions(GCS, facts(python="3.11.9"), "2.60.0")
    with pytest.raises(ConfigError, match=r"Ray 2\.59\.1.*`pip install '\.\[ray\]' ray==2\.60\.0`"):
        checks.check_versions(GCS, facts(), "2.59.1")
    monkeypatch.setenv("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")
    checks.check_versions(GCS, facts(python="3.11.9"), "2.60.0")
    with pytest.raises(ConfigError, match=r"3\.12\.7"):
        checks.check_versions(GCS, facts(python="3.12.7"), "2.60.0")


def test_a_driver_needs_a_node_on_its_machine(no_ray_here: list[tuple[str, str]]) -> None:
    with pytest.raises(BackendUnavailable, match="has no live node"):
        checks.check_machine(GCS, facts())
    no_ray_here.append(("elsewhere:1", "of another cluster"))
    with pytest.raises(
        BackendUnavailable,
        match=f"`ray start --address={GCS} --num-cpus=0 .* joins it .* From outside .* on the head",
    ):
        checks.check_machine(GCS, facts(node("a"), node("b")))


def test_the_node_on_this_machine_must_answer(
    no_ray_here: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = node("dead", host="127.0.0.1", port=closed_port())
    no_ray_here += [(GCS, "dead"), (GCS, "well")]
    with listener(SETTINGS) as (host, port):
        well = node("well", host=host, port=port, is_head=True)
        checks.check_machine(GCS, facts(dead, well))  # the head is what Ray would take
    with pytest.raises(
        BackendUnavailable, match=r"not well, its raylet at 127\.0\.0\.1:\d+: connection refused"
    ):
        checks.check_machine(GCS, facts(dead))
    no_ray_here.clear()  # in a container that sees no other processes, addresses must do
    monkeypatch.setattr(checks, "_is_own_address", lambda address: address == "127.0.0.1")
    with pytest.raises(BackendUnavailable, match="not well"):
        checks.check_machine(GCS, facts(dead, node("far")))


def test_a_raylet_is_known_by_its_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    commands: list[list[str] | None] = [
        None,
        [],
        ["python", "x", "--gcs-address=h:1", "--node_id=worker"],
        ["/opt/ray/raylet/raylet", "--node_id=ab", f"--gcs-address={GCS}", "--command=x --gcs-address=h:2"],
    ]
    processes = [SimpleNamespace(info={"cmdline": command}) for command in commands]
    monkeypatch.setattr(checks.psutil, "process_iter", lambda attrs: processes)
    assert checks._raylets() == [(GCS, "ab")]


def test_this_machines_addresses_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert checks._is_own_address("127.0.0.1")
    assert not checks._is_own_address("192.0.2.1")  # RFC 5737: nobody's
    assert not checks._is_own_address("no address")


SIGNALS = """
import ctypes, os, signal, sys
from roost.scheduler.backends.ray.join import _keep_signals
assert "ray" not in sys.modules  # importing it costs nothing
caught = []
signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
with _keep_signals():
    ctypes.CDLL(None).signal(int(signal.SIGTERM), 0)  # as C code does, behind Python's back
os.kill(os.getpid(), signal.SIGTERM)
assert caught == [signal.SIGTERM]
"""


def test_signal_handlers_are_kept() -> None:
    subprocess.run([sys.executable, "-c", SIGNALS], check=True, timeout=allow_s(60))


class FakeRay:
    """A module `ray` whose `init` calls a function of the test."""

    def __init__(self, init: Callable[[], object]) -> None:
        self._init = init
        self.calls: list[str] = []

    def init(self, **options: object) -> None:
        assert options["log_to_driver"] is False
        self._init()
        self.calls.append("init")

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def is_initialized(self) -> bool:
        return self.calls[-1:] == ["init"]

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(gcs_address=GCS, get_node_id=lambda: "raylet")


def fake(monkeypatch: pytest.MonkeyPatch, init: Callable[[], object]) -> FakeRay:
    ray = FakeRay(init)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(join, "_attempt", threading.Lock())
    monkeypatch.setattr(join, "_cluster_id", "")
    return ray


def init(timeout_s: float = 30.0) -> RoostError | None:
    try:
        join._init(GCS, "roost", time.monotonic() + timeout_s)
    except RoostError as problem:
        return problem
    return None


def test_an_attempt_that_hangs_is_abandoned_and_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    ray = fake(monkeypatch, lambda: goes_on.wait(allow_s(30)))
    assert "ray.init hangs" in str(init(0.0))
    assert "an earlier attempt" in str(init(0.0))
    join.leave()  # nothing to do, and nothing to wait for
    assert ray.calls == []
    goes_on.set()
    assert init() is None  # after the first has undone its own
    assert ray.calls == ["init", "shutdown", "init"]
    join.leave()
    assert ray.calls[3:] == ["shutdown"]


def test_rays_own_error_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ConnectionError("Failed to connect") from RuntimeError("the cause\nand much more")

    ray = fake(monkeypatch, refuse)
    problem = init()
    assert isinstance(problem, BackendUnavailable)
    assert str(problem) == f"the Ray cluster at {GCS} did not take roost's service in: the cause"
    assert ray.calls == ["shutdown"]


def test_a_driver_remains_one_until_another_cluster_has_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = fake(monkeypatch, lambda: None)
    for check in ("greet", "check_token", "check_versions", "check_machine"):
        monkeypatch.setattr(checks, check, lambda *facts: None)
    ray.__version__ = "2.60.0"  # type: ignore[attr-defined]
    for cluster_id, calls in (("a", ["init"]), ("a", ["init"]), ("b", ["init", "shutdown", "init"])):
        monkeypatch.setattr(checks, "ask", lambda gcs, found=cluster_id: replace(facts(), cluster_id=found))
        assert join.join(GCS, namespace="roost") == GCS
        assert ray.calls == calls


def use_setup(monkeypatch: pytest.MonkeyPatch, **functions: Callable[..., object]) -> None:
    """Put these functions in place of those with which Ray finds its token."""
    package = "ray._private.authentication"
    setup = SimpleNamespace(**functions)
    monkeypatch.setitem(sys.modules, package, SimpleNamespace(authentication_token_setup=setup))  # type: ignore[arg-type]


def refuse_token(**_: object) -> None:
    raise RuntimeError("a text of Ray's\nwith several lines")


@pytest.mark.parametrize("address", ["", GCS])
def test_a_file_without_a_token_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_setup(
        monkeypatch,
        maybe_enable_token_auth_if_token_available=refuse_token,
        ensure_token_if_auth_enabled=refuse_token,
    )
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
    with pytest.raises(
        ConfigError, match=f"no token for the Ray cluster at {GCS} in '/nowhere', which RAY_AUTH_"
    ):
        checks.check_token(GCS, address)


@pytest.mark.parametrize(("address", "enabled"), [("", ["enabled"]), ("auto", ["enabled"]), (GCS, [])])
def test_a_token_is_sent_unasked_only_to_the_cluster_of_this_machine(
    address: str, enabled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    use_setup(
        monkeypatch,
        maybe_enable_token_auth_if_token_available=lambda **_: calls.append("enabled"),
        ensure_token_if_auth_enabled=lambda **_: None,
    )
    checks.check_token(GCS, address)
    assert calls == enabled


def test_ray_2_52_looks_for_a_token_that_the_mode_demands(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not have the function that finds a token unasked."""
    use_setup(monkeypatch, ensure_token_if_auth_enabled=refuse_token)
    with pytest.raises(
        ConfigError, match="RAY_AUTH_MODE=token, and there is no token for the Ray cluster at"
    ):
        checks.check_token(GCS, "")
