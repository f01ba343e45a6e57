"""Starts that wait without blocking the server, and the state that the server reports meanwhile."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_events import EventLogger
from jupyter_server.serverapp import ServerApp
from jupyter_server.services.kernels.connection.base import BaseKernelWebsocketConnection
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager, MappingKernelManager
from tornado.web import Application, HTTPError

from kit.fakes.service import FakeService
from kit.jupyter.kernelspecs import kernelspecs
from roost.provisioners.application import find_holder
from roost.provisioners.server_extension import RoostExtension, pending_starts, shutdown, waiting_starts
from roost.provisioners.server_extension.adoption import FoundKernel
from roost.provisioners.server_extension.connection import RoostConnection
from roost.provisioners.server_extension.pending_start import PendingStart
from roost.provisioners.server_extension.pending_starts import PendingStarts, add_pending_starts
from roost.scheduler.errors import LaunchError
from roost.scheduler.messages import Event, Kernel, StartKernel
from roost.testing.deadlines import allow_s, until


class OtherConnection(BaseKernelWebsocketConnection):
    pass


class SiteKernelManager(AsyncMappingKernelManager):
    """A kernel manager class that a site has configured in place of Jupyter Server's."""

    started = ""

    async def start_kernel(self, **options: Any) -> str:
        self.started = await super().start_kernel(**options)
        return self.started


def a_server(
    kernels: type[Any] = AsyncMappingKernelManager, connections: type[Any] = ZMQChannelsWebsocketConnection
) -> Any:
    server = ServerApp()
    server.gateway_config = SimpleNamespace(gateway_enabled=False)
    server.kernel_websocket_connection_class = connections
    server.kernel_manager = kernels(parent=server)
    server.web_app = Application(base_url="/")
    return server


def test_the_configured_kernel_manager_is_wrapped() -> None:
    server = a_server(SiteKernelManager)
    extension = RoostExtension(parent=server)
    extension.load()
    assert isinstance(server.kernel_manager, SiteKernelManager)
    assert isinstance(server.kernel_manager, PendingStarts)
    assert find_holder(SimpleNamespace(parent=server.kernel_manager)) is server.kernel_manager
    assert server.kernel_manager.queue_timeout_s == 3600.0
    assert server.kernel_websocket_connection_class is RoostConnection
    assert server.web_app.settings["kernel_websocket_connection_class"] is RoostConnection
    assert extension.off == []


def test_a_manager_with_pending_starts_stays_as_it_is() -> None:
    made = add_pending_starts(SiteKernelManager)
    assert add_pending_starts(made) is made


def test_another_kernel_manager_stays_and_turns_everything_off() -> None:
    server = a_server(kernels=MappingKernelManager)
    before = type(server.kernel_manager), server.kernel_websocket_connection_class
    extension = RoostExtension(parent=server)
    extension.load()
    assert (type(server.kernel_manager), server.kernel_websocket_connection_class) == before
    (off,) = extension.off
    assert "MappingKernelManager manages the kernels" in off


def test_another_connection_class_stays_and_kernels_are_adopted_all_the_same() -> None:
    server = a_server(connections=OtherConnection)
    extension = RoostExtension(parent=server)
    extension.load()
    assert server.kernel_websocket_connection_class is OtherConnection
    assert isinstance(server.kernel_manager, PendingStarts)
    assert not server.kernel_manager.may_wait
    (off,) = extension.off
    assert "OtherConnection serves the websockets" in off


@pytest.fixture
def kernels(service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a site's kernel manager with roost's pending starts added. The service answers a start after an hour.

    No limit of a shutdown ends sooner than the test.
    """
    monkeypatch.setattr(waiting_starts, "_WITHDRAWN_WITHIN_S", 60.0)
    monkeypatch.setattr(shutdown, "_END_S", 60.0)

    async def wait(_: StartKernel) -> None:
        await asyncio.sleep(3600)

    service.answers["start"] = wait
    specs = kernelspecs(tmp_path)
    server = ServerApp()
    made = add_pending_starts(SiteKernelManager)(kernel_spec_manager=specs, parent=server)
    made.begin(RoostExtension(parent=server), may_wait=True)
    made.connection_dir = str(tmp_path)
    yield made
    made.context.destroy(linger=0)


async def test_a_client_may_choose_the_id_of_a_kernel(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id in the server's own environment is no choice of a client."""
    chosen, other = (str(uuid.uuid4()) for _ in range(2))
    monkeypatch.setenv("KERNEL_ID", other)
    assert await kernels.start_kernel(kernel_name="roosted", env={"KERNEL_ID": chosen.upper()}) == chosen
    found = await kernels.start_kernel(kernel_name="roosted", env=dict(os.environ))
    assert kernels.list_kernel_ids() == [chosen, found]
    assert found != other
    for wrong, status in ((chosen, 409), ("mine", 400), (chosen.replace("-", ""), 400), ("../../etc", 400)):
        with pytest.raises(HTTPError) as refused:
            await kernels.start_kernel(kernel_name="roosted", env={"KERNEL_ID": wrong})
        assert refused.value.status_code == status
    for kernel_id in (chosen, found):
        await asyncio.wait_for(kernels.shutdown_kernel(kernel_id), allow_s(60))


async def test_a_waiting_kernel_is_listed_and_no_client_connects_with_it(
    kernels: Any, service: FakeService
) -> None:
    kernel_id = await kernels.start_kernel(kernel_name="roosted")
    assert kernels.kernel_model(kernel_id)["execution_state"] == "starting"
    assert kernels.started == ""
    with pytest.raises(LaunchError, match="has not started yet"):
        kernels.get_kernel(kernel_id).client().start_channels()
    # The first start in a process also imports.
    await until(lambda: service.called("start"), "the service gets the start", 60, 0.01)
    assert service.called("start")[0].queue_timeout_s == 3600.0
    await asyncio.wait_for(kernels.shutdown_kernel(kernel_id), allow_s(60))
    assert kernel_id not in kernels
    assert service.called("cancel")[0].kernel_id == kernel_id


async def test_a_start_is_answered_as_soon_as_it_is_known_to_wait(
    kernels: Any, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PendingStarts, "answer_after_s", 600.0)
    starting = asyncio.ensure_future(kernels.start_kernel(kernel_name="roosted"))
    # The first start in a process also imports.
    await until(lambda: service.called("start"), "the service gets the start", 60, 0.01)
    assert not starting.done()
    start = service.called("start")[0]
    kernel = Kernel(
        id=start.kernel_id, launch_id=start.launch_id, state="queued", owner=start.owner, request=start.request,
        position=1, waits_for="no GPU is free",
    )  # fmt: skip
    service.push(Event(kind="queued", at=0.0, kernel=kernel))
    assert await asyncio.wait_for(starting, allow_s(60)) == start.kernel_id
    assert kernels.starts.pending[start.kernel_id].waiting.waits_for == "no GPU is free"
    await asyncio.wait_for(kernels.shutdown_kernel(start.kernel_id), allow_s(60))


async def test_a_kernel_can_be_described_before_it_is_listed(
    kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`GET /api/kernels` lists a kernel before its adoption ends, so its state must be complete from the beginning."""
    plain, seen = kernels.pre_start_kernel, []

    def prepare(name: str | None, options: Any) -> Any:
        km, *rest = plain(name, options)
        seen.append((km.execution_state, km.reason, km.last_activity.tzinfo is not None))
        return (km, *rest)

    monkeypatch.setattr(kernels, "pre_start_kernel", prepare)
    kernel_id = await kernels.start_kernel(kernel_name="roosted")
    assert seen == [("starting", "", True)]
    await asyncio.wait_for(kernels.shutdown_kernel(kernel_id), allow_s(60))


class EarlyClient:
    """The connection of a client that has found a kernel before its start was over."""

    is_open = False
    is_released = False

    async def open_channels(self) -> None:
        self.is_open = True

    def release(self) -> None:
        self.is_released = True


@pytest.mark.parametrize("is_adoption", [True, False], ids=["adopted", "started"])
async def test_a_client_that_comes_before_a_start_is_over_is_connected(
    kernels: Any, monkeypatch: pytest.MonkeyPatch, is_adoption: bool
) -> None:
    """The kernel is listed a moment earlier."""
    client = EarlyClient()

    async def begin(start: PendingStart) -> str:
        start.km = SimpleNamespace(provisioner=None)
        start.made.set()
        start.connections.append(client)
        return start.kernel_id

    monkeypatch.setattr(kernels.starts, "_start", begin)
    if is_adoption:
        await kernels.adoption.adopt([FoundKernel(kernel_id="k", name="roosted")], 60)
    else:
        assert await kernels.start_kernel(kernel_id="k", kernel_name="roosted") == "k"
    assert (client.is_open, client.is_released, kernels.starts.pending) == (True, True, {})


async def test_a_manager_that_stops_withdraws_its_waiting_starts(
    kernels: Any, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = await kernels.start_kernel(kernel_name="roosted")
    # the second start is not answered before the manager stops
    monkeypatch.setattr(PendingStarts, "answer_after_s", 60.0)
    posting = asyncio.ensure_future(kernels.start_kernel(kernel_name="roosted"))
    await asyncio.sleep(0)
    await asyncio.wait_for(kernels.shutdown_all(), allow_s(60))
    with pytest.raises(HTTPError, match="stopped before the kernel had started"):
        await posting
    assert kernels.list_kernel_ids() == []
    assert kernels.starts.pending == {}
    assert listed in {call.kernel_id for call in service.called("cancel")}
    with warnings.catch_warnings():  # jupyter_client leaves the coroutine of a start that never took a step
        warnings.simplefilter("ignore", RuntimeWarning)
        del posting
        gc.collect()


@pytest.mark.parametrize("end", ["shutdown", "stop"])
async def test_a_kernel_that_comes_as_it_is_shut_down_is_stopped(
    kernels: Any, service: FakeService, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Its start is over, but the server has not noticed yet."""
    follow, goes_on = kernels.starts._follow, asyncio.Event()

    async def follow_late(start: PendingStart) -> None:
        await goes_on.wait()
        await follow(start)

    may_start = threading.Event()

    async def start_late(start: StartKernel) -> Kernel:
        await asyncio.to_thread(may_start.wait, allow_s(60))
        return service._start(start)

    kernels.parent.event_logger = EventLogger()
    monkeypatch.setattr(kernels.starts, "_follow", follow_late)
    service.answers["start"] = start_late
    kernel_id = await kernels.start_kernel(kernel_name="roosted")
    may_start.set()
    await asyncio.wait([kernels.starts.pending[kernel_id].task], timeout=allow_s(60))
    ending = asyncio.ensure_future(
        kernels.shutdown_kernel(kernel_id) if end == "shutdown" else kernels.shutdown_all()
    )
    await asyncio.sleep(0)
    goes_on.set()
    await asyncio.wait_for(ending, 60)
    assert [call.kernel_id for call in service.called("stop")] == [kernel_id]
    assert kernels.list_kernel_ids() == []


@pytest.mark.parametrize("end", ["interrupt", "shutdown", "stop"])
async def test_a_restart_that_waits_is_withdrawn(kernels: Any, service: FakeService, end: str) -> None:
    withdrawn = threading.Event()

    async def wait(_: StartKernel) -> None:
        await asyncio.to_thread(withdrawn.wait, allow_s(60))
        raise LaunchError("the start was withdrawn")

    kernels.parent.event_logger = EventLogger()
    del service.answers["start"]
    kernel_id = await kernels.start_kernel(kernel_name="roosted")
    await until(lambda: kernel_id not in kernels.starts.pending, "the kernel runs", 60, 0.01)
    service.answers |= {"start": wait, "cancel": lambda _: withdrawn.set() or {}}
    restarting = asyncio.ensure_future(kernels.restart_kernel(kernel_id))
    await until(lambda: len(service.called("start")) == 2, "the service gets the restart", 60, 0.01)
    start = service.called("start")[1]
    waiting = replace(service.kernels[kernel_id], launch_id=start.launch_id, state="queued", position=1)
    service.push(Event(kind="queued", at=0.0, kernel=replace(waiting, waits_for="no GPU is free")))
    await asyncio.wait_for(restarting, allow_s(60))
    km = kernels.get_kernel(kernel_id)
    await until(lambda: "no GPU is free" in km.reason, "the reason is shown", 60, 0.01)
    assert km.execution_state == "starting"
    if end == "interrupt":
        await asyncio.wait_for(kernels.interrupt_kernel(kernel_id), allow_s(60))
        assert (km.execution_state, km.reason) == ("dead", pending_starts._INTERRUPTED)
    ending = kernels.shutdown_all() if end == "stop" else kernels.shutdown_kernel(kernel_id)
    await asyncio.wait_for(ending, allow_s(60))
    assert (kernels.list_kernel_ids(), kernels.starts.pending) == ([], {})
    assert withdrawn.is_set()


@pytest.mark.parametrize("may_wait", [True, False])
@pytest.mark.parametrize(
    ("values", "said"),
    [
        *[
            ({"metadata": {"kernel_provisioner": {"provisioner_name": "roost", "config": config}}}, "config")
            for config in (None, [], "x")
        ],
        ({"metadata": {"kernel_provisioner": "roost"}}, "kernel_provisioner"),
        ({"env": {"A": {"B": "1"}}}, "env"),
        ({"argv": [1, 2]}, "argv"),
    ],
)
async def test_a_malformed_kernelspec_is_an_error_with_its_reason(
    kernels: Any, tmp_path: Path, values: dict[str, Any], said: str, may_wait: bool
) -> None:
    kernels.may_wait = may_wait
    kernelspecs(tmp_path, "bad", **values)
    with pytest.raises(HTTPError, match=f"In {tmp_path}/kernels/bad/kernel.json .*{said} is") as caught:
        await kernels.start_kernel(kernel_name="bad")
    assert caught.value.status_code == 400
    assert kernels.list_kernel_ids() == []
