"""Jupyter's private members, in the installed libraries. A test fails if its member is gone or does something else."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import zmq.asyncio
from jupyter_client.ioloop.restarter import AsyncIOLoopKernelRestarter
from jupyter_server.serverapp import ServerApp
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager, ServerKernelManager
from jupyter_server.services.kernels.websocket import KernelWebsocketHandler

from kit.fakes.service import FakeService
from kit.jupyter.kernel_managers import manager
from kit.jupyter.kernelspecs import kernelspecs
from roost.provisioners import jupyter_internals as internals
from roost.scheduler.messages import StartKernel
from roost.testing.deadlines import allow_s


@pytest.fixture
def context() -> Iterator[zmq.asyncio.Context]:
    with zmq.asyncio.Context() as context:
        yield context


@pytest.fixture
def kernels(tmp_path: Path, context: zmq.asyncio.Context) -> Any:
    """Return the kernel manager of a Jupyter Server."""
    specs = kernelspecs(tmp_path)
    return AsyncMappingKernelManager(kernel_spec_manager=specs, parent=ServerApp(), context=context)


@pytest.fixture
def km(kernels: Any, context: zmq.asyncio.Context) -> Any:
    """Return the manager of the kernel `k`, which `kernels` lists. Nothing listens on its port."""
    km = ServerKernelManager(parent=kernels, context=context, kernel_id="k", shell_port=50_001)
    km.execution_state, km.last_activity = "idle", datetime.now(timezone.utc)
    internals.list_kernel(kernels, "k", km)
    return km


class Connection(ZMQChannelsWebsocketConnection):  # type: ignore[misc]
    """A connection of Jupyter Server's without a websocket."""

    _open_sessions: dict[str, Any] = {}


@pytest.fixture
def connection(km: Any) -> Any:
    handler = KernelWebsocketHandler.__new__(KernelWebsocketHandler)
    connection = Connection(parent=km, websocket_handler=handler)
    yield connection
    Connection._open_sessions.clear()
    if connection.kernel_info_channel is not None:
        connection.kernel_info_channel.close(linger=0)


def test_each_function_says_for_which_releases_it_is_known_to_hold() -> None:
    release = re.compile(
        r"^ *(jupyter_client 8\.10|jupyter_server 2\.17–2\.21|traitlets 5\.\d+–5\.\d+): ", re.MULTILINE
    )
    functions = [each for _, each in inspect.getmembers(internals, inspect.isfunction)]
    own = [each for each in functions if each.__module__ == internals.__name__]
    assert len(own) > 10
    assert [each.__name__ for each in own if not release.search(each.__doc__ or "")] == []


def test_an_object_becomes_one_of_a_subclass(km: Any) -> None:
    class Sub(ServerKernelManager):  # type: ignore[misc]
        def describe(self) -> str:
            return f"{self.kernel_id} is {self.execution_state}"

    internals.change_class(km, Sub)
    km.execution_state = "busy"
    assert km.describe() == "k is busy"


# One kernel's manager


async def test_the_arguments_of_the_latest_start_can_be_read(service: FakeService, tmp_path: Path) -> None:
    km = manager(tmp_path)
    assert internals.read_launch_arguments(km) == {}
    await km.start_kernel(cwd=str(tmp_path))
    assert internals.read_launch_arguments(km)["cwd"] == str(tmp_path)
    await km.shutdown_kernel(now=True)


def test_added_arguments_are_put_into_the_command(tmp_path: Path) -> None:
    km = manager(tmp_path)
    with internals.added_launch_arguments(km, place="here"):
        assert km.format_kernel_cmd(["{place}"])[-1] == "here"
    assert km.format_kernel_cmd(["{place}"])[-1] == "{place}"


@pytest.mark.parametrize(("is_cached", "expected"), [(False, (5, 0)), (True, (5, 6))])
def test_recorded_ports_are_chosen_again(tmp_path: Path, is_cached: bool, expected: tuple[int, int]) -> None:
    km = manager(tmp_path)
    km.hb_port, km.cache_ports = 5, is_cached
    internals.record_random_ports(km)
    km.shell_port = 6
    km.cleanup_random_ports()
    assert (km.hb_port, km.shell_port) == expected


@pytest.mark.parametrize(("supported", "expected"), [(["curve"], True), ([], False)])
def test_a_kernelspec_declares_curve(tmp_path: Path, supported: list[str], expected: bool) -> None:
    assert (
        internals.declares_curve(manager(tmp_path, metadata={"supported_encryption": supported})) is expected
    )


async def test_the_control_channel_drops_what_was_not_read(service: FakeService, tmp_path: Path) -> None:
    km = manager(tmp_path)
    await km.start_kernel()
    control = km._control_socket
    assert control.linger > 0
    internals.drop_unread_requests(km)
    assert control.linger == 0
    internals.drop_unread_requests(None)
    await km.shutdown_kernel(now=True)


async def test_ready_is_renewed_after_the_first_start_has_begun(service: FakeService, tmp_path: Path) -> None:
    km = manager(tmp_path)
    first = km.ready
    internals.renew_ready(km)
    assert km.ready is first
    await km.start_kernel()
    started = km.ready
    internals.renew_ready(km)
    assert (started.done(), km.ready.done()) == (True, False)
    await km.shutdown_kernel(now=True)


async def test_the_restarter_gives_up_at_the_next_death(service: FakeService, tmp_path: Path) -> None:
    km = manager(tmp_path, ServerKernelManager)
    assert internals.find_restarter(km) is None
    await km.start_kernel()
    restarter = internals.find_restarter(km)
    assert isinstance(restarter, AsyncIOLoopKernelRestarter)
    restarter.stop()
    events: list[str] = []
    for event in ("restart", "dead"):
        km.add_restart_callback(lambda event=event: events.append(event), event)
    service.exit(km.kernel_id, 9)
    await asyncio.wait_for(km.provisioner.wait(), allow_s(60))
    internals.use_up_restarts(restarter)
    await restarter.poll()
    assert events == ["dead"]
    await km.cleanup_resources()


# The manager of many kernels


def test_a_kernel_is_listed_before_it_has_started(kernels: Any, km: Any) -> None:
    assert kernels.list_kernel_ids() == ["k"]
    assert kernels.get_kernel("k") is km


async def test_a_pending_start_can_be_forgotten(kernels: Any, service: FakeService) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def wait(_: StartKernel) -> None:
        loop.call_soon_threadsafe(begun.set)
        await asyncio.sleep(3600)

    service.answers["start"] = wait
    starting = asyncio.create_task(kernels.start_kernel(kernel_name="roosted", kernel_id="new"))
    await asyncio.wait_for(begun.wait(), allow_s(60))
    assert isinstance(internals.find_pending(kernels, "new"), asyncio.Task)
    assert internals.find_pending(kernels, "other") is None
    assert internals.find_pending(None, "new") is None
    internals.forget_pending(kernels, "new")
    assert internals.find_pending(kernels, "new") is None
    internals.forget_pending(kernels, "new")
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting


def test_connections_are_counted(kernels: Any, km: Any) -> None:
    def count() -> int:
        return int(kernels.kernel_model("k")["connections"])

    kernels.notify_connect("k")
    assert count() == 0  # nothing counts them yet
    internals.begin_connections(kernels, "k")
    kernels.notify_connect("k")
    internals.begin_connections(kernels, "k")
    assert count() == 1
    internals.reset_connections(kernels, "k")
    assert count() == 0
    kernels.notify_connect("k")
    assert count() == 1
    internals.forget_connections(kernels, "k")
    internals.forget_connections(kernels, "k")
    assert count() == 0


def test_messages_are_kept_for_one_session(kernels: Any, km: Any) -> None:
    assert not internals.is_buffered_for(kernels, "k", "k:mine")
    kernels.start_buffering("k", "k:mine", {})
    assert internals.is_buffered_for(kernels, "k", "k:mine")
    assert not internals.is_buffered_for(kernels, "k", "k:other")
    kernels.stop_buffering("k")
    assert not internals.is_buffered_for(kernels, "k", "k:mine")


# The websocket of a client


async def test_a_known_info_is_not_asked_for(km: Any, connection: Any) -> None:
    known: concurrent.futures.Future[Any] = concurrent.futures.Future()
    known.set_result({})
    internals.answer_info(km, known)
    assert await asyncio.wait_for(asyncio.ensure_future(connection.request_kernel_info()), allow_s(60)) == {}
    assert connection.kernel_info_channel is None
    assert internals.has_info(connection)


async def test_all_connections_stop_waiting_for_an_info_that_is_given_up(km: Any, connection: Any) -> None:
    asking = asyncio.ensure_future(connection.request_kernel_info())
    waiting = asyncio.ensure_future(Connection(parent=km).request_kernel_info())
    assert not internals.has_info(connection)
    internals.give_up_info(connection)
    assert internals.has_info(connection)
    internals.give_up_info(connection)
    assert await asyncio.wait_for(asyncio.gather(asking, waiting), allow_s(60)) == [{}, {}]


async def test_a_session_is_open_on_one_connection(km: Any, connection: Any) -> None:
    await internals.register_session(connection)
    assert list(internals.list_open_sessions(Connection)) == [f"k:{connection.session.session}"]
    other = Connection(
        parent=km,
        session=connection.session,
        websocket_handler=type(connection.websocket_handler).__new__(KernelWebsocketHandler),
    )
    other.session_key = connection.session_key
    internals.forget_session(other)
    assert list(internals.list_open_sessions(Connection)) == [connection.session_key]
    internals.forget_session(connection)
    assert list(internals.list_open_sessions(Connection)) == []
    internals.forget_session(connection)


@pytest.mark.parametrize("is_allowed", [True, False])
def test_a_traceback_is_hidden_if_the_server_says_so(
    kernels: Any, km: Any, connection: Any, is_allowed: bool
) -> None:
    kernels.allow_tracebacks = is_allowed
    km.traceback_replacement_message = "hidden"
    content = {"ename": "E", "evalue": "e", "traceback": ["secret"]}
    message = {"header": {"msg_type": "error"}, "content": content}
    internals.hide_traceback(connection, "iopub", message, [])
    assert content["traceback"] == (["secret"] if is_allowed else ["hidden"])


def test_a_message_is_serialized_for_clients(connection: Any) -> None:
    message = {"header": {}, "parent_header": {}, "metadata": {}, "content": {"a": 1}, "buffers": []}
    written = internals.serialize_for_client(connection, dict(message), "iopub")
    assert isinstance(written, str)
    assert '"content": {"a": 1}' in written
    assert '"channel": "iopub"' in written
    binary = internals.serialize_for_client(connection, {**message, "buffers": [b"xyz"]}, "iopub")
    assert isinstance(binary, bytes)
    assert binary.endswith(b"xyz")
