"""The service: its operations over a socket."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit.fakes.scheduler import FakeWorld, fake_world
from roost.launchers.daemon.process import start_time
from roost.launchers.protocol.messages import Connection, Owner
from roost.launchers.protocol.rpc import Disconnected, RemoteError
from roost.launchers.protocol.rpc_client import RpcClient
from roost.placement.model import Request
from roost.placement.model.json_codec import decode
from roost.scheduler.backends.spec import BackendSpec, RequestOption
from roost.scheduler.client.client import connect
from roost.scheduler.client.service_folder import service_command, service_folder
from roost.scheduler.config.settings import Settings
from roost.scheduler.errors import ConfigError, NoNodeEver, UnknownKernel, from_remote
from roost.scheduler.messages import Event, Kernel, StartKernel
from roost.scheduler.service.server import Service
from roost.testing.deadlines import allow_s

ME = Owner(
    user="ada",
    application="test",
    host=socket.gethostname(),
    pid=os.getpid(),
    process_started_at=start_time(os.getpid()),
)


def start_of(kernel_id: str, **asked: Any) -> StartKernel:
    return StartKernel(
        kernel_id=kernel_id,
        launch_id="1",
        request=Request(**asked),
        owner=ME,
        argv=("kernel", "{connection_file}"),
        env={},
        cwd="/",
        connection=Connection(),
        launch_timeout_s=5.0,
    )


class Caller:
    """A minimal client for the service: it has no reconnection, sharing or conversion of errors."""

    def __init__(self, endpoint: str) -> None:
        self.events: list[Event] = []
        self._client = RpcClient(endpoint, on_event=lambda event: self.events.append(decode(Event, event)))

    async def open(self) -> None:
        await self._client.connect(timeout_s=60)

    async def __call__(self, op: str, **arguments: Any) -> Any:
        return await self._client.call(op, arguments, timeout_s=60)

    async def start(self, start: StartKernel) -> Kernel:
        return decode(Kernel, await self._client.call("start", start, timeout_s=60))

    async def close(self) -> None:
        await self._client.close()


SPEC = BackendSpec(
    name="fake",
    settings="none:RoostFakeBackend",
    create="none:create",
    request_options=(RequestOption(name="queue", kind=str, help="queue of the cluster"),),
)


@asynccontextmanager
async def served(
    tmp_path: Path,
    settings: Settings | None = None,
    spec: BackendSpec = SPEC,
    **totals: Any,
) -> AsyncIterator[tuple[FakeWorld, Service, Caller]]:
    settings = settings or Settings()
    async with fake_world(tmp_path, settings=settings, **totals) as w:
        service = Service(w.scheduler, settings, spec)
        caller = Caller(service.server.start(f"ipc://{tmp_path}/s"))
        await caller.open()
        try:
            yield w, service, caller
        finally:
            await caller.close()
            await service.close()


@pytest.mark.parametrize(
    ("settings", "timeout_s"),
    [
        (Settings(), 60),
        (Settings(default_launch_timeout_s=300), 300),
        (Settings(default_launch_timeout_s=300, max_launch_timeout_s=200), 200),
    ],
)
async def test_clients_learn_how_long_a_start_may_take(
    tmp_path: Path, settings: Settings, timeout_s: float
) -> None:
    async with served(tmp_path, settings) as (_, _, call):
        assert (await call("hello"))["launch_timeout_s"] == timeout_s
        assert (await call.start(replace(start_of("k"), launch_timeout_s=timeout_s))).state == "running"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"kernel_id": "k\x1b[2J"}, r"the kernel's id has characters that cannot be shown: 'k\\x1b\[2J'\."),
        ({"kernel_id": "k" * 300}, r"the kernel's id has 300 characters: give at most 256"),
        ({"kernel_id": ""}, "a start needs a kernel id"),
        ({"owner": replace(ME, user="a\ud800")}, r"the owner's user has characters .*: 'a\\ud800'\."),
        ({"owner": replace(ME, server="/user/\u202eada/")}, "the owner's server has characters"),
        ({"request": Request(labels={"zone": "a\nb"})}, "a label has characters"),
        ({"request": Request(resources={"li\x00cence": 1})}, "a resource has characters"),
        ({"env": {"A": "b\0c"}}, r"the variable A has a zero byte\."),
        ({"env": {"A\0": "b"}}, r"the name of a variable has a zero byte: 'A'\."),
        ({"env": {"A=B": "c"}}, r"a variable cannot have the name 'A=B'\."),
        ({"env": {"": "c"}}, r"a variable cannot have the name ''\."),
        ({"env": {"A": "\ud800"}}, r"the variable A has characters that no process can have\."),
        ({"argv": ("a", "\0")}, "has a zero byte"),
        ({"cwd": "/a\0b"}, r"has a zero byte: '/a'\."),
        ({"connection": Connection(kernel_name="a\nb")}, "the kernelspec's name has characters"),
        ({"launch_timeout_s": -1.0}, "launch_timeout is -1 s: give seconds above 0"),
        ({"asked_at": -1.0}, "asked_at is -1: give seconds since the epoch, or 0"),
    ],
)
async def test_names_that_cannot_be_shown_are_refused(
    tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    async with served(tmp_path) as (_, _, call):
        with pytest.raises(RemoteError, match=complaint) as refusal:
            await call.start(replace(start_of("k"), **change))
        assert refusal.value.kind == "ConfigError"
        assert (await call("kernels"))["kernels"] == []


async def test_no_process_is_warmed_with_an_impossible_variable(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, _, call):
        with pytest.raises(RemoteError, match="a variable cannot have the name 'A=B'") as refusal:
            await call("warm", argv=["python"], env={"A=B": "c"})
        assert refusal.value.kind == "ConfigError"


async def test_the_backend_gets_the_variables_that_it_wants_of_callers(tmp_path: Path) -> None:
    async with served(tmp_path, spec=replace(SPEC, caller_variables=("TICKETS", "AGENT"))) as (w, _, call):
        noted: list[Any] = []
        w.backend.note_caller = noted.append
        await call("note_caller", variables={"TICKETS": "KCM:7", "AGENT": ""})
        assert noted == [{"TICKETS": "KCM:7", "AGENT": ""}]
        for variables, complaint in (
            ({"PATH": "hush"}, r"the backend wants no variable 'PATH' of its callers\."),
            ({"AGENT": "hush\n"}, "AGENT has characters that cannot be shown"),
            ({"AGENT": "hush" * 1_025}, "or more than 4,096 characters"),
            ({"AGENT": ["hush"]}, "AGENT"),
        ):
            with pytest.raises(RemoteError, match=complaint) as refusal:
                await call("note_caller", variables=variables)
            assert "hush" not in refusal.value.message
        assert len(noted) == 1


async def test_every_operation_answers(tmp_path: Path) -> None:
    async with served(tmp_path, gpus=1) as (_, service, call):
        hello = await call("hello")
        assert (hello["backend"], hello["address"]) == ("fake", "")
        await call("subscribe", owner=ME)
        kernel = await call.start(start_of("k", gpus=0.5))
        assert kernel.state == "running"
        assert kernel.connection is not None
        assert [decode(Kernel, item).connection for item in (await call("kernels"))["kernels"]] == [None]
        assert decode(Kernel, await call("kernel", kernel_id="k")) == kernel
        assert decode(Kernel, await call("adopt", kernel_id="k", owner=ME)).connection == kernel.connection
        assert (await call("nodes"))["nodes"][0]["gpus_promised"] == 0.5
        decision = (await call("explain", request=Request(gpus=1), owner=ME))["decision"]
        assert decision["placement"] is None
        assert not decision["is_never"]
        assert await call("logs", kernel_id="k") == {"text": "log"}
        await call("signal", kernel_id="k", signum=2)
        await call("drain", node_id="here", on=True)
        await call("drain", node_id="here", on=False)
        (wrong,) = (await call("check_policies", names=["pack", "no-such"]))["problems"].items()
        assert wrong[0] == "no-such"
        assert "unknown policy 'no-such'; known are balanced" in wrong[1]
        assert (await call("doctor"))["findings"][0]["level"] == "ok"
        assert decode(Kernel, await call("stop", kernel_id="k")).state == "exited"
        await call("cancel", kernel_id="k")
        told = [event.kind for event in call.events]
        assert told[:3] == ["placed", "leased", "running"]
        recent = (await call("events", limit=2))["events"]
        assert [decode(Event, event).kind for event in recent] == ["exited", "released"]
        await call("leave")
        await asyncio.wait_for(service.left.wait(), allow_s(60))


async def test_doctor_says_that_the_metrics_are_not_served(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, service, call):
        service.metrics_problem = "metrics are not served at 127.0.0.1:9: Address already in use"
        _, found = (await call("doctor"))["findings"]
        assert (found["level"], found["what"]) == ("warning", service.metrics_problem)


async def test_errors_arrive_as_what_they_are(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, __, call):
        with pytest.raises(RemoteError) as caught:
            await call.start(start_of("k", gpus=1))
        error = from_remote(caught.value)
        assert isinstance(error, NoNodeEver)
        assert error.fields["decision"]["refusals"][0]["when"] == "never"
        with pytest.raises(RemoteError, match="There is no kernel '': `roost kernels` lists") as caught:
            await call("kernel", kernel_id="")
        assert isinstance(from_remote(caught.value), UnknownKernel)


async def test_a_start_outlives_the_connection_that_asked_for_it(tmp_path: Path) -> None:
    async with served(tmp_path) as (w, service, call):
        release = w.agent.hold("launch")
        asked = asyncio.ensure_future(call.start(start_of("k")))
        await w.agent.called("launch")
        await call.close()
        with pytest.raises(Disconnected):
            await asked
        again = Caller(service.server.endpoint)
        await again.open()
        joined = asyncio.ensure_future(again.start(start_of("k")))
        release.set()
        assert (await joined).state == "running"
        assert len(w.agent.launched) == 1
        await again.close()


async def test_it_stays_while_there_are_kernels_and_leaves_when_there_are_none(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, service, call):
        await call.start(start_of("k"))
        service._settings = Settings(idle_exit_s=0.1)
        await call("hello")  # the time until the exit begins again
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(service.left.wait(), 0.3)
        await call("stop", kernel_id="k")
        await asyncio.wait_for(service.left.wait(), allow_s(60))


async def test_it_stays_while_a_client_is_subscribed(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, service, call):
        await call("subscribe", owner=ME)
        service._settings = Settings(idle_exit_s=0.1)
        await call("hello")  # the time until the exit begins again
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(service.left.wait(), 0.3)
        await call.close()
        await asyncio.wait_for(service.left.wait(), allow_s(60))


def test_its_arguments_name_no_options(runtime_dir: Path) -> None:
    argv, env = service_command("local", Path("/x"), {"gpu_model": "hush"})
    assert "hush" not in " ".join(argv)
    assert "hush" in "".join(env.values())
    assert service_folder("local", {}) != service_folder("local", {"gpus": 1})


def test_a_backend_that_there_is_not_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend's name comes from a kernelspec, so an unknown name must not become a path."""
    monkeypatch.setenv("ROOST_RUNTIME_DIR", str(tmp_path / "run"))
    for ask in (lambda: service_folder("../../x", {}), lambda: connect("../../x")):
        with pytest.raises(
            ConfigError, match=r"no backend '\.\./\.\./x'; known are dask, docker, kubernetes, local, ray"
        ):
            ask()
    assert not (tmp_path / "run").exists()


def test_nothing_of_a_cluster_is_imported_by_clients() -> None:
    code = "import sys, roost.scheduler.client.service_folder; print('numpy' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


async def test_the_service_checks_the_options_of_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service checks the options, because a caller of another version may not have done so."""

    def check(request: Request) -> None:
        if request.options.get("queue") == "closed":
            raise ConfigError("the queue closed takes no kernels: choose another.")

    async with served(tmp_path) as (w, _, call):
        monkeypatch.setattr(w.backend, "check_request", check)
        for options, says in (
            ({"queu": "a"}, "did you mean queue"),
            ({"queue": 1}, "queue = 1 must be text"),
            ({"queue": "closed"}, "the queue closed takes no kernels"),
        ):
            with pytest.raises(RemoteError, match=says) as caught:
                await call.start(start_of("k", options=options))
            assert caught.value.kind == "ConfigError"
            with pytest.raises(RemoteError, match=says):
                await call("explain", request=Request(options=options), owner=ME)
        kernel = await call.start(start_of("k", options={"queue": "long"}))
        assert kernel.request.options == {"queue": "long"}


def test_spellings_of_one_address_have_one_service(runtime_dir: Path) -> None:
    folders = {
        service_folder("ray", {"address": address})
        for address in ("127.0.0.1:6379", "localhost:6379", " LOCALHOST:6379/ ", "[::1]:6379")
    }
    assert len(folders) == 1
    assert service_folder("ray", {"address": "127.0.0.1:6380"}) not in folders
    assert service_folder("dask", {"address": "tcp://Head:8786"}) == service_folder(
        "dask", {"address": "TCP://head:8786"}
    )
