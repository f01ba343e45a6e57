"""The provisioner under jupyter_client's managers, with a scripted service."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
from asyncio import InvalidStateError
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq
from jupyter_console.app import ZMQTerminalIPythonApp
from traitlets.config import Configurable

from kit.fakes.service import FakeService, exited
from kit.jupyter.kernel_managers import a_start, ended, manager, the_start
from roost.launchers.protocol.messages import PORT_NAMES
from roost.provisioners import RoostProvisioner, provisioner
from roost.provisioners.exit_watch import UNKNOWN_EXIT_CODE, ExitWatch
from roost.scheduler.errors import (
    BackendUnavailable,
    ConfigError,
    KernelDied,
    NoNodeEver,
)
from roost.scheduler.messages import Event, Kernel, StartKernel
from roost.testing.deadlines import allow_s


async def test_a_start_sends_the_kernelspecs_options(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    km = manager(
        tmp_path, config={"cpus": 2, "memory": "1GiB", "fork": False}, env={"GREETING": "hi ${USERNAME_X}"}
    )
    await km.start_kernel(cwd=str(tmp_path), env={**os.environ, "USERNAME_X": "ada", "KERNEL_USERNAME": "ada"},
                          extra_arguments=["--quiet"], stdout=-1)  # fmt: skip
    start = the_start(service)
    assert start.kernel_id == km.kernel_id
    assert start.argv == (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--quiet")
    assert start.request.cpus == 2.0
    assert start.request.memory_bytes == 1 << 30
    assert not start.may_fork
    assert start.cwd == str(tmp_path)
    assert start.env["GREETING"] == "hi ada"
    assert "JPY_PARENT_PID" not in start.env
    assert start.owner.user == "ada"
    assert start.owner.pid == os.getpid()
    assert not start.owner.can_adopt
    assert all(getattr(start.connection, name) == 0 for name in PORT_NAMES)
    written = json.loads((tmp_path / "connection.json").read_text())
    assert written["shell_port"] == km.shell_port == service.kernels[km.kernel_id].connection.shell_port  # type: ignore[union-attr]
    assert written["curve_publickey"] == start.connection.curve_publickey is not None
    assert await km.is_alive()
    await km.shutdown_kernel(now=True)


@pytest.mark.parametrize("is_cached", [True, False])
async def test_new_ports_are_for_managers_that_do_not_cache_them(
    service: FakeService, tmp_path: Path, is_cached: bool
) -> None:
    """The restarter of a kernel's first 10 s asks for new ports, and its clients stay where they are."""
    km = manager(tmp_path)
    assert km.cache_ports  # jupyter_client's default
    km.cache_ports = is_cached
    await km.start_kernel()
    ports = km.ports
    await km.restart_kernel(now=True, newports=True)
    asked = [getattr(the_start(service).connection, name) for name in PORT_NAMES]
    assert asked == ([getattr(km, name) for name in PORT_NAMES] if is_cached else [0] * 5)
    assert km.ports == ports or not is_cached
    await km.shutdown_kernel(now=True)


async def test_a_dead_kernels_shutdown_does_not_wait_for_its_successor(
    service: FakeService, tmp_path: Path
) -> None:
    km = manager(tmp_path)
    await km.start_kernel()
    service.exit(km.kernel_id, -9)
    await km.request_shutdown(restart=True)
    assert km._control_socket.linger == 0
    await km.shutdown_kernel(now=True)


async def test_an_exit_is_pushed_and_logged(
    service: FakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    km = manager(tmp_path)
    await km.start_kernel()
    asked = len(service.calls)
    with caplog.at_level(logging.WARNING):
        service.exit(km.kernel_id, -9, "killed: out of memory", "last words\n")
        assert await ended(km) == -9
    assert len(service.calls) == asked
    assert not km.has_kernel
    assert "exit code -9 (killed: out of memory)" in caplog.text
    assert "last words" in caplog.text
    await km.shutdown_kernel(now=True)
    assert not service.kernels


async def test_a_start_is_no_information_outside_a_jupyter_server(
    service: FakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """nbconvert and Papermill would show it beside the output of a notebook."""
    km = manager(tmp_path)
    with caplog.at_level(logging.DEBUG):
        await km.start_kernel()
    (level,) = (each.levelno for each in caplog.records if f"kernel={km.kernel_id} node=" in each.message)
    assert level == logging.DEBUG
    await km.shutdown_kernel(now=True)


async def test_an_exit_is_no_warning_in_a_console(
    service: FakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody types in that terminal. Jupyter's console shows INFO."""
    km = manager(tmp_path)
    km.parent = console = ZMQTerminalIPythonApp(log_level=logging.DEBUG)
    console.log.addHandler(caplog.handler)
    await km.start_kernel()
    service.exit(km.kernel_id, -9, "killed: out of memory", "last words\n")
    assert await ended(km) == -9
    (level,) = (each.levelno for each in caplog.records if "out of memory" in each.message)
    assert level == logging.DEBUG
    await km.shutdown_kernel(now=True)


async def test_a_failed_first_start_is_undone(service: FakeService, tmp_path: Path) -> None:
    service.answers["start"] = NoNodeEver("No node has 3 GPUs.")
    km = manager(tmp_path)
    with pytest.raises(NoNodeEver, match="3 GPUs"):
        await km.start_kernel()
    assert not km.has_kernel
    assert [cancel.launch_id for cancel in service.called("cancel")] == [the_start(service).launch_id]
    assert not service.called("stop")
    del service.answers["start"]
    await km.start_kernel()
    assert await km.is_alive()
    await km.shutdown_kernel(now=True)


async def test_poll_reports_a_failed_restart(
    service: FakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    km = manager(tmp_path)
    await km.start_kernel()
    ports = km.ports
    service.answers["start"] = KernelDied("It died.", exit_code=7, log_tail="")
    await km.restart_kernel(now=True)
    assert km.has_kernel
    assert km.ports == ports
    assert await km.provisioner.poll() == 7
    assert not await km.is_alive()
    assert "It died." in caplog.text
    assert km.provisioner.end_reason == "the kernel could not be restarted: It died."
    del service.answers["start"]
    await km.restart_kernel(now=True)
    assert await km.is_alive()
    await km.shutdown_kernel(now=True)


async def test_a_restart_that_cannot_end_the_kernel_does_not_take_it_for_dead(
    service: FakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    km = manager(tmp_path)
    await km.start_kernel()
    launched = the_start(service)
    silent = BackendUnavailable("The agent on a does not answer.")
    service.answers.update(signal=silent, start=silent)
    await km.restart_kernel(now=True)
    assert await km.is_alive(), "nobody knows whether it has ended"
    assert "was not restarted: The agent on a does not answer." in caplog.text
    service.answers.clear()
    service.exit(launched.kernel_id, -2)  # its agent answers again
    assert await ended(km) == -2
    await km.restart_kernel(now=True)
    assert await km.is_alive()
    await km.shutdown_kernel(now=True)


async def begin_restart(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, asyncio.Task[None], asyncio.Event]:
    """Start a kernel and begin its restart, which has ended it and waits for the returned event before its launch."""
    km = manager(folder)
    await km.start_kernel()
    plain, has_ended, go = km.provisioner.pre_launch, asyncio.Event(), asyncio.Event()

    async def wait(**kwargs: Any) -> dict[str, Any]:
        monkeypatch.setattr(km.provisioner, "pre_launch", plain)
        has_ended.set()
        await go.wait()
        return dict(await plain(**kwargs))

    monkeypatch.setattr(km.provisioner, "pre_launch", wait)
    restart = asyncio.create_task(km.restart_kernel(now=True))
    await has_ended.wait()
    return km, restart, go


async def test_a_restart_ends_the_kernel_that_another_restart_has_started_meanwhile(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    km, restart, go = await begin_restart(tmp_path, monkeypatch)
    await km.restart_kernel(now=True)
    go.set()
    with suppress(InvalidStateError):  # jupyter_client sets the state of one of the two restarts twice
        await restart
    assert await km.is_alive()
    assert [call.signum for call in service.called("signal")].count(signal.SIGKILL) == 2
    assert len(service.called("start")) == 3
    await km.shutdown_kernel(now=True)
    assert not service.kernels


async def test_a_shutdown_during_a_restart_is_final(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    km, restart, go = await begin_restart(tmp_path, monkeypatch)
    await km.shutdown_kernel(now=True)
    go.set()
    with suppress(InvalidStateError, zmq.ZMQError):  # jupyter_client has closed its sockets
        await restart
    assert not await km.is_alive()
    assert not service.kernels
    assert len(service.called("start")) == 1


async def test_a_shutdown_asks_a_silent_agent_once(service: FakeService, tmp_path: Path) -> None:
    km = manager(tmp_path)
    await km.start_kernel()
    km.shutdown_wait_time = 0.2
    gone = BackendUnavailable("The agent cannot be reached.")
    service.answers.update(signal=gone, stop=gone)
    await km.shutdown_kernel()
    assert (len(service.called("signal")), len(service.called("stop"))) == (1, 1)
    assert not await km.is_alive()


async def test_a_service_that_does_not_answer_does_not_delay_a_shutdown(
    service: FakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    km = manager(tmp_path)
    await km.start_kernel()
    gone = BackendUnavailable("The agent cannot be reached.")
    service.answers.update(signal=gone, stop=gone)
    with pytest.raises(BackendUnavailable):
        await km.interrupt_kernel()
    await km.provisioner.kill()
    await km.provisioner.terminate()
    await km.cleanup_resources()
    assert caplog.text.count("cannot be reached") == 3
    assert not await km.is_alive()


async def test_a_stop_is_repeated_after_the_shutdown(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("roost.provisioners.provisioner._NO_ANSWER_S", 0.1)
    stopped = threading.Event()
    km = manager(tmp_path)
    await km.start_kernel()
    service.close()
    await km.provisioner.cleanup()
    assert "is repeated for 300 s" in caplog.text
    service.answers["stop"] = lambda arguments: (stopped.set(), service._stop(arguments))[1]
    service.serve()
    assert await asyncio.to_thread(stopped.wait, allow_s(30))
    await km.shutdown_kernel(now=True)


class ManyKernels(Configurable):
    """A stand-in for a manager of many kernels that shows its users what a start waits for (`Holder`)."""

    queue_timeout_s = 3600.0
    server_name = ""

    def __init__(self) -> None:
        super().__init__()
        self.adopting: set[str] = set()
        self.changed = threading.Event()

    def find_client(self, kernel_id: str, backend: str) -> None:
        """Return None: the kernels are the application's own."""

    def note_waiting(self, kernel_id: str) -> None:
        self.changed.set()


@pytest.mark.parametrize(
    "problem", [BackendUnavailable("Ray is away."), ConfigError("there is no option max_gpu.")]
)
async def test_an_adoption_waits_until_a_service_can_start(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    monkeypatch.setattr(provisioner, "_ADOPT_AGAIN_S", 0.01)
    holder, taker = manager(tmp_path), manager(tmp_path)
    await holder.start_kernel()
    taker.kernel_id = holder.kernel_id
    taker.parent = ManyKernels()
    taker.parent.adopting.add(holder.kernel_id)

    def refuse(_: object) -> None:
        del service.answers["adopt"]
        raise problem

    service.answers["adopt"] = refuse
    await taker.start_kernel()
    assert await taker.is_alive()
    assert len(service.called("adopt")) == 2
    await taker.shutdown_kernel(now=True)
    await holder.shutdown_kernel(now=True)


async def test_a_start_and_a_restart_wait_longer_where_people_see_it(
    service: FakeService, tmp_path: Path
) -> None:
    km = manager(tmp_path)
    km.parent = ManyKernels()
    await km.start_kernel()
    await km.restart_kernel(now=True)
    first, again = service.called("start")
    assert (first.queue_timeout_s, again.queue_timeout_s) == (3600.0, 3600.0)
    await km.shutdown_kernel(now=True)


async def test_the_log_shows_what_a_start_waits_for(
    service: FakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = threading.Event()

    async def wait(_: object) -> None:
        begun.set()
        await asyncio.sleep(3600)

    service.answers["start"] = wait
    km = manager(tmp_path)
    starting = asyncio.ensure_future(km.start_kernel())
    assert await asyncio.to_thread(begun.wait, allow_s(30))
    start = the_start(service)
    assert start.queue_timeout_s is None  # nobody sees it wait here
    km.parent = ManyKernels()
    waiting = Kernel(
        id=start.kernel_id, launch_id=start.launch_id, state="queued", owner=start.owner, request=start.request,
        position=3, waits_for="no GPU is free",
    )  # fmt: skip
    changed = km.parent.changed
    with caplog.at_level(logging.INFO):
        for position in (3, 2):  # the second change comes too soon for the log
            service.push(Event(kind="queued", at=0.0, kernel=replace(waiting, position=position)))
            assert await asyncio.to_thread(changed.wait, allow_s(30))
            changed.clear()
    assert [record.message for record in caplog.records if "Position" in record.message] == [
        f"kernel={start.kernel_id} Position 3 in the queue: no GPU is free."
    ]
    assert km.provisioner.waiting.position == 2
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert km.provisioner.waiting is None


async def test_a_late_exit_does_not_end_a_new_launch(service: FakeService) -> None:
    exits = ExitWatch(logging.getLogger(), lambda: True)
    exits.begin("k", "1")
    old = exits.current
    new = exits.begin("k", "2")
    kernel = service._start(a_start("k", "1"))
    exits.read(old, exited(kernel, 9))
    assert (old.code, new.code) == (9, None)
    exits.read(new, exited(kernel, 9))
    assert new.code is None


async def test_info_attaches_another_provisioner(service: FakeService, tmp_path: Path) -> None:
    km = manager(tmp_path)
    await km.start_kernel()
    info = await km.provisioner.get_provisioner_info()
    other = RoostProvisioner(kernel_id="?", kernel_spec=km.kernel_spec, parent=None)
    await other.load_provisioner_info(info)
    assert other.kernel_id == km.kernel_id
    assert other.has_process
    assert await other.poll() is None
    assert other.connection_info == km.provisioner.connection_info
    assert service.called("adopt")[0].kernel_id == km.kernel_id
    service.exit(km.kernel_id, 5)
    assert await asyncio.wait_for(other.wait(), allow_s(60)) == 5
    await km.shutdown_kernel(now=True)
    await other.load_provisioner_info(info)
    assert await other.poll() == UNKNOWN_EXIT_CODE
    await other.cleanup()


async def test_there_is_no_kernel_during_a_launch(service: FakeService, tmp_path: Path) -> None:
    km = manager(tmp_path)
    await km.start_kernel()
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def slow(start: StartKernel) -> Any:
        loop.call_soon_threadsafe(begun.set)
        await asyncio.to_thread(go_on.wait, allow_s(60))
        return service._start(start)

    service.answers["start"] = slow
    restarting = asyncio.ensure_future(km.restart_kernel(now=True))
    await begun.wait()
    assert not await km.is_alive()
    go_on.set()
    await restarting
    assert await km.is_alive()
    await km.shutdown_kernel(now=True)
