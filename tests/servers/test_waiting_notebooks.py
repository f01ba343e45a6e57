"""Notebooks whose kernels wait for a GPU, in a real Jupyter Server over HTTP and websockets."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import statistics
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.jsonutil import parse_date
from server import JupyterServer, jupyter_server, until_it_listens

from kit.jupyter.front_end import FrontEnd, errors, front_end, texts
from kit.jupyter.kernelspecs import kernelspecs
from kit.jupyter.restarted_servers import listed, none_is_left
from kit.machine.daemons import wait_gone
from roost.scheduler.client.client import connect
from roost.scheduler.messages import Kernel
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import allow_s, until

_PIDFD_GETFD = 438  # from linux/unistd.h, on every processor
STOPPED_WITHIN_S = 60.0
"""The tests' limit for the end of a server. It takes 1 s on a machine that does nothing else."""


@pytest.fixture(scope="module")
def shared_server(one_gpu: Path) -> Iterator[JupyterServer]:
    """Return a server for the module. It runs on a thread's event loop, because each test has a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait_for(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(allow_s(60))

    context = run_server(one_gpu)
    yield wait_for(context.__aenter__())
    wait_for(context.__aexit__(None, None, None))
    loop.call_soon_threadsafe(loop.stop)
    thread.join(allow_s(60))
    loop.close()


@pytest.fixture
async def server(shared_server: JupyterServer) -> AsyncIterator[JupyterServer]:
    """Return the shared server. After the test it has no kernel."""
    yield shared_server
    for kernel in (await shared_server.api("GET", "kernels"))[1]:
        await shared_server.api("DELETE", f"kernels/{kernel['id']}")
    await none_is_left()


@asynccontextmanager
async def run_server(folder: Path, *options: str, is_on: bool = True) -> AsyncIterator[JupyterServer]:
    extensions = f"--ServerApp.jpserver_extensions={{'roost': {is_on}}}"
    async with jupyter_server(folder, options=(extensions, *options)) as running:
        try:
            yield running
        except BaseException:
            print("\n".join(running.log))
            raise


async def start(server: JupyterServer, name: str = "gpu") -> str:
    status, kernel = await server.api("POST", "kernels", {"name": name})
    assert status == 201, kernel
    return str(kernel["id"])


async def until_queued(kernel_id: str, position: int = 1) -> None:
    kernels: dict[str, Kernel] = {}

    async def is_queued() -> bool:
        nonlocal kernels
        kernels = {kernel.id: kernel for kernel in await connect("local").kernels()}
        return kernel_id in kernels and kernels[kernel_id].position == position

    await until(is_queued, lambda: f"{kernel_id} has position {position}: {kernels}", 60, 0.02)


@asynccontextmanager
async def held_gpu(server: JupyterServer) -> AsyncIterator[str]:
    """Start a kernel that holds the GPU, and yield its id."""
    kernel_id = await start(server)
    async with front_end(server, kernel_id) as front:
        await front.ended(await front.run("1"))
    yield kernel_id


async def test_cells_of_a_waiting_kernel_run_once_and_in_order(server: JupyterServer) -> None:
    async with held_gpu(server) as holder:
        waiting = await start(server)
        async with front_end(server, waiting) as front:
            cells = [await front.run(f"print({number})") for number in range(5)]
            wanted = ("Position 1 in the queue", "There is room on", "needs 1 GPU, 0 free")
            await front.until(lambda: all(each in front.line(cells[0]) for each in wanted), 60)
            _, model = await server.api("GET", f"kernels/{waiting}")
            assert model["execution_state"] == "starting"
            assert model["connections"] == 1

            async def are_equal() -> bool:  # the seconds in it go on
                _, model = await server.api("GET", f"kernels/{waiting}")
                return bool(model["reason"] == front.line(cells[0]))

            await until(are_equal, "the model has the reason that the cell shows", 20)
            await server.api("DELETE", f"kernels/{holder}")
            ended = [await front.ended(cell) for cell in cells]
            assert [texts(messages) for messages in ended] == [f"{number}\n" for number in range(5)]
            kinds = [message["msg_type"] for message in ended[0]]
            assert kinds.index("clear_output") < kinds.index("stream")
            counts = [
                m["content"]["execution_count"] for m in front.messages if m["msg_type"] == "execute_input"
            ]
            assert counts == [1, 2, 3, 4, 5]
            _, model = await server.api("GET", f"kernels/{waiting}")
            assert model["execution_state"] == "idle"
            assert "reason" not in model


async def test_the_line_changes_with_the_position(server: JupyterServer) -> None:
    async with held_gpu(server) as holder:
        first = await start(server)
        await until_queued(first)
        second = await start(server)
        async with front_end(server, second) as front:
            cell = await front.run("1")
            await front.until(lambda: "Position 2 in the queue" in front.line(cell), 20)
            await server.api("DELETE", f"kernels/{first}")
            await front.until(lambda: "Position 1 in the queue" in front.line(cell), 20)
            times = [  # of the server: a message may be late
                parse_date(message["header"]["date"]).timestamp()
                for message in front.about(cell)
                if message["msg_type"] == "update_display_data"
            ]
            assert all(later - earlier > 0.9 for earlier, later in itertools.pairwise(times))
            await server.api("DELETE", f"kernels/{holder}")
            await front.ended(cell)


async def test_an_interrupt_withdraws_the_start_and_a_restart_asks_again(server: JupyterServer) -> None:
    async with held_gpu(server) as holder:
        waiting = await start(server)
        async with front_end(server, waiting) as front:
            cell = await front.run("1")
            await until_queued(waiting)
            assert (await server.api("POST", f"kernels/{waiting}/interrupt", {}))[0] == 204
            (sentence,) = errors(await front.ended(cell))
            assert "interrupt" in sentence
            (reply,) = [m["content"] for m in front.about(cell) if m["channel"] == "shell"]
            assert (reply["status"], reply["evalue"]) == ("error", sentence)
            assert [kernel.id for kernel in await connect("local").kernels()] == [holder]
            _, model = await server.api("GET", f"kernels/{waiting}")
            assert (model["execution_state"], model["reason"]) == ("dead", sentence)
            assert errors(await front.ended(await front.run("2"))) == [sentence]

            assert (await server.api("POST", f"kernels/{waiting}/restart", {}))[0] == 200
            cell = await front.run("print('again')")
            await until_queued(waiting)
            await server.api("DELETE", f"kernels/{holder}")
            assert texts(await front.ended(cell)) == "again\n"


async def test_a_restart_keeps_the_place_and_ends_held_cells(server: JupyterServer) -> None:
    async with held_gpu(server) as holder:
        waiting, later = await start(server), await start(server)
        await until_queued(later, 2)
        async with front_end(server, waiting) as front:
            cell = await front.run("print('never')")
            assert (await server.api("POST", f"kernels/{waiting}/restart", {}))[0] == 200
            assert "run the cell again" in errors(await front.ended(cell))[0]
            await until_queued(waiting, 1)
            cell = await front.run("print('after')")
            await front.until(lambda: front.line(cell), 20)
            await server.api("DELETE", f"kernels/{later}")
            await server.api("DELETE", f"kernels/{holder}")
            assert texts(await front.ended(cell)) == "after\n"
            assert not [message for message in front.messages if "never" in str(message["content"])]


async def test_deleting_a_waiting_kernel_withdraws_its_start(server: JupyterServer) -> None:
    async with held_gpu(server) as holder:
        waiting = await start(server)
        async with front_end(server, waiting) as front:
            cell = await front.run("1")
            await until_queued(waiting)
            assert (await server.api("DELETE", f"kernels/{waiting}"))[0] == 204
            assert "shut down" in errors(await front.ended(cell))[0]
            assert [kernel.id for kernel in await connect("local").kernels()] == [holder]
            assert [kernel["id"] for kernel in (await server.api("GET", "kernels"))[1]] == [holder]


async def test_a_cancelled_start_ends_its_cells(server: JupyterServer) -> None:
    async with held_gpu(server):
        waiting = await start(server)
        async with front_end(server, waiting) as front:
            cell = await front.run("1")
            await until_queued(waiting)
            await connect("local").stop(waiting)  # as `roost stop` does
            assert "was taken back" in errors(await front.ended(cell))[0]


async def test_cells_outlive_their_page(server: JupyterServer) -> None:
    """Cells of a reloaded page run after the cells that the page sent before, while the kernel still waited."""
    async with held_gpu(server) as holder:
        waiting = await start(server)
        async with front_end(server, waiting) as front:
            cell = await front.run("x = ['before']")
            await front.until(lambda: front.line(cell), 20)
        async with front_end(server, waiting) as front:
            cell = await front.run("x.append('after'); print(x)")
            await front.until(lambda: front.line(cell), 20)
            await server.api("DELETE", f"kernels/{holder}")
            assert texts(await front.ended(cell)) == "['before', 'after']\n"


async def test_a_cell_runs_although_its_page_was_closed(server: JupyterServer) -> None:
    async with held_gpu(server) as holder:
        waiting = await start(server)
        async with front_end(server, waiting) as front:
            cell = await front.run("x = 'ran'")
            await front.until(lambda: front.line(cell), 20)
        await server.api("DELETE", f"kernels/{holder}")

        async def runs_one() -> bool:
            return any(kernel.state == "running" for kernel in await connect("local").kernels())

        await until(runs_one, "the waiting kernel runs", 10)
        async with front_end(server, waiting) as front:
            assert texts(await front.ended(await front.run("print(x)"))) == "ran\n"


async def test_a_start_that_waits_too_long_ends_its_cells(one_gpu: Path) -> None:
    async with run_server(one_gpu, "--RoostExtension.queue_timeout_s=1") as server, held_gpu(server):
        waiting = await start(server)
        async with front_end(server, waiting) as front:
            (sentence,) = errors(await front.ended(await front.run("1")))
            assert "waited 1 s at position 1" in sentence
            _, model = await server.api("GET", f"kernels/{waiting}")
            assert (model["execution_state"], model["reason"]) == ("dead", sentence)
            assert (await server.api("DELETE", f"kernels/{waiting}"))[0] == 204


async def test_a_server_that_stops_withdraws_its_waiting_starts_first(one_gpu: Path) -> None:
    async with run_server(one_gpu) as server, AsyncExitStack() as stack:
        holder = await stack.enter_async_context(held_gpu(server))
        waiting = await asyncio.gather(*(start(server) for _ in range(10)))
        for kernel_id in waiting:
            front = await stack.enter_async_context(front_end(server, kernel_id))
            await front.run("1")
        assert len(await connect("local").kernels()) == 11, holder
        os.kill(server.pid, signal.SIGTERM)
        text = "Shutting down 11 kernels"
        await until(lambda: text in "".join(server.log), f"the log has {text!r}", STOPPED_WITHIN_S, 0.02)
        assert await asyncio.to_thread(wait_gone, server.pid, STOPPED_WITHIN_S)
    await none_is_left()


@pytest.mark.parametrize("is_on", [True, False])
async def test_a_refused_start_keeps_no_server_from_ending(one_gpu: Path, is_on: bool) -> None:
    refused: dict[str, dict[str, object]] = {
        "number": {"cpus": "50%"},
        "node": {"gpus": 64},
        "option": {"fork": "x"},
    }
    for name, config in refused.items():
        kernelspecs(one_gpu, f"no-{name}", config=config)
    async with run_server(one_gpu, is_on=is_on) as server:
        await start(server)
        for name in refused:
            status, answer = await server.api("POST", "kernels", {"name": f"no-{name}"})
            # With the extension, a start that takes longer is listed, and fails then.
            assert status in ((201, 400, 500) if is_on else (400, 500)), answer
            assert "%%" not in answer.get("message", "")
        os.kill(server.pid, signal.SIGTERM)
        assert await asyncio.to_thread(wait_gone, server.pid, STOPPED_WITHIN_S)
    await none_is_left()


async def test_a_waiting_kernel_is_not_culled(one_gpu: Path) -> None:
    culling = (f"--MappingKernelManager.{name}" for name in ("cull_idle_timeout=5", "cull_interval=1"))
    async with run_server(one_gpu, *culling) as server, AsyncExitStack() as stack:
        holder = await stack.enter_async_context(held_gpu(server))
        await stack.enter_async_context(front_end(server, holder))  # a kernel with a client is not culled
        waiting = await start(server)
        idle = await start(
            server, "plain"
        )  # a later kernel without a client, which the server culls after `waiting`
        kernels: dict[str, str] = {}

        async def is_culled() -> bool:
            nonlocal kernels
            kernels = await listed(server)
            return idle not in kernels

        await until(is_culled, lambda: f"the idle kernel is culled: {kernels}", 60, 0.1)
        assert kernels.keys() == {holder, waiting}


@pytest.mark.parametrize("what", ["kernels", "sessions"])
async def test_a_refusal_says_why(server: JupyterServer, one_gpu: Path, what: str) -> None:
    kernelspecs(one_gpu, "huge", config={"gpus": 64})
    session = {"path": "a.ipynb", "type": "notebook", "name": "", "kernel": {"name": "huge"}}
    status, answer = await server.api("POST", what, {"name": "huge"} if what == "kernels" else session)
    if status == 201:  # on a busy machine the refusal comes after the answer
        kernel_id = answer["id"] if what == "kernels" else answer["kernel"]["id"]
        async with front_end(server, kernel_id) as front:
            (sentence,) = errors(await front.ended(await front.run("1")))
        await server.api("DELETE", f"kernels/{kernel_id}")
    else:
        assert status == (400 if what == "kernels" else 500)
        sentence = answer["message"]
    assert "64 GPUs" in sentence
    assert not sentence.startswith("HTTP")


async def test_a_session_of_a_waiting_kernel(server: JupyterServer) -> None:
    async with held_gpu(server) as holder:
        session = {"path": "a.ipynb", "type": "notebook", "name": "", "kernel": {"name": "gpu"}}
        status, answer = await server.api("POST", "sessions", session)
        assert status == 201
        assert answer["kernel"]["execution_state"] == "starting"
        async with front_end(server, answer["kernel"]["id"]) as front:
            cell = await front.run("print(1)")
            await server.api("DELETE", f"kernels/{holder}")
            assert texts(await front.ended(cell)) == "1\n"
        assert (await server.api("DELETE", f"sessions/{answer['id']}"))[0] == 204


async def test_no_message_waits_for_an_acknowledgement(server: JupyterServer) -> None:
    """With Nagle's algorithm each round trip takes at least 40 ms."""
    kernel_id = await start(server)
    async with front_end(server, kernel_id) as front:
        await front.ended(await front.run("1"))
        ours = {each.laddr for each in psutil.Process().net_connections("tcp")}
        (websocket,) = (
            each.fd for each in psutil.Process(server.pid).net_connections("tcp") if each.raddr in ours
        )
        with copy_of_socket(server.pid, websocket) as copy:
            assert copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    await server.api("DELETE", f"kernels/{kernel_id}")


def copy_of_socket(pid: int, descriptor: int) -> socket.socket:
    """Return a socket of another process, such as a child, which stays open there."""
    process = os.pidfd_open(pid)
    try:
        found = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, descriptor, 0)
    finally:
        os.close(process)
    assert found >= 0, os.strerror(ctypes.get_errno())
    return socket.socket(fileno=found)


async def test_a_cell_shows_why_its_kernel_ended(server: JupyterServer) -> None:
    kernel_id = await start(server)
    async with front_end(server, kernel_id) as front:
        await front.ended(await front.run("1"))
        cell = await front.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        await front.until(lambda: errors(front.about(cell)))
        (sentence,) = errors(front.about(cell))
        assert "SIGKILL" in sentence
        await front.until(lambda: "restarting" in _states(front))
        _, model = await server.api("GET", f"kernels/{kernel_id}")
        assert model["reason"] == sentence

        async def goes_on() -> bool:
            with contextlib.suppress(AssertionError):
                return texts(await front.ended(await front.run("print(42)"), 2)) == "42\n"
            return False

        await until(goes_on, "the kernel is started again, and the same websocket goes on", 30, 0.0)


async def test_a_culled_kernel_says_why_it_ended(one_gpu: Path) -> None:
    names = ("cull_idle_timeout=1", "cull_interval=1", "cull_connected=True")
    async with run_server(one_gpu, *(f"--MappingKernelManager.{name}" for name in names)) as server:
        kernel_id = await start(server)

        async def is_culled() -> bool:
            return bool((await server.api("GET", f"kernels/{kernel_id}"))[0] == 404)

        await until(is_culled, "the kernel is culled", 30, 0.2)
        status, shown = await server.get(f"roost/api/kernels/{kernel_id}")
        assert (status, shown["text"]) == (200, "not running")
        assert "nobody had used it for" in shown["detail"]


def _states(front: FrontEnd) -> list[str]:
    return [m["content"]["execution_state"] for m in front.messages if m["msg_type"] == "status"]


async def test_other_kernels_get_the_messages_of_a_stock_server(one_gpu: Path) -> None:
    compared = []
    for is_on in (False, True):
        async with run_server(one_gpu, is_on=is_on) as server:
            assert any("roost | extension was successfully loaded" in line for line in server.log) == is_on
            compared.append(await _exchange(server))
    assert compared[0] == compared[1]
    assert len(compared[0]) > 10


async def _exchange(server: JupyterServer) -> list[tuple[str, str, str, str]]:
    """Return a plain kernel's answers to five requests, sorted by channel, without parts that vary."""
    found = []
    async with front_end(server, await start(server, "plain")) as front:
        for code in ("print('text')", "1 / 0", "from IPython.display import display; display(2)"):
            found += await front.ended(await front.run(code))
        for kind in ("kernel_info_request", "comm_info_request"):
            request = await front.send(kind, {})
            await front.until(lambda request=request: len(front.about(request)) == 3)  # type: ignore[misc]
            found += front.about(request)
    found.sort(key=lambda message: message["channel"])  # the channels are not in step
    return [
        (
            message["channel"],
            message["msg_type"],
            str(message["metadata"].keys()),
            _lasting(message["content"]),
        )
        for message in found
    ]


def _lasting(content: dict[str, Any]) -> str:
    return str({key: value for key, value in content.items() if key not in _CHANGING})


_CHANGING = ("traceback", "execution_count", "engine_info", "banner")


@asynccontextmanager
async def run_gateway(folder: Path) -> AsyncIterator[JupyterServer]:
    """Start a Kernel Gateway with roost's two lines of configuration, and stop it at the end."""
    port = free_port()
    package = "roost.provisioners.server_extension"
    settings = {
        "ip": "127.0.0.1",
        "port": port,
        "kernel_manager_class": f"{package}.kernel_gateway.PendingKernels",
        "kernel_websocket_connection_class": f"{package}.connection.RoostConnection",
    }
    config = folder / "gateway.json"
    config.write_text(json.dumps({"KernelGatewayApp": settings}))
    with (folder / "gateway.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "kernel_gateway", f"--config={config}", stdin=asyncio.subprocess.DEVNULL,
            stdout=log, stderr=log, env={**os.environ, "KG_AUTH_TOKEN": "only-here"}, start_new_session=True,
        )  # fmt: skip
    gateway = JupyterServer(pid=process.pid, port=port, token="only-here", log=[])
    try:
        await until_it_listens(gateway, process)
        yield gateway
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), allow_s(60))


async def test_kernels_of_kernel_gateway_wait_as_well(one_gpu: Path) -> None:
    pytest.importorskip("kernel_gateway", reason="Jupyter Kernel Gateway is not installed here")
    async with run_gateway(one_gpu) as gateway, held_gpu(gateway) as holder:
        waiting = await start(gateway)
        async with front_end(gateway, waiting) as front:
            cell = await front.run("print('ran')")
            await front.until(lambda: "Position 1 in the queue" in front.line(cell), 20)
            await gateway.api("DELETE", f"kernels/{holder}")
            assert texts(await front.ended(cell)) == "ran\n"
        chosen = str(uuid.uuid4())
        body = {"name": "python3", "env": {"KERNEL_ID": chosen}}
        assert (await gateway.api("POST", "kernels", body))[1]["id"] == chosen
        assert (await gateway.api("POST", "kernels", body))[0] == 409
        await start(gateway)  # it waits when the gateway is stopped
    await none_is_left()


@pytest.mark.long
@pytest.mark.parametrize("may_fork", [True, False], ids=["forked", "executed"])
async def test_no_cell_is_lost_in_100_tries(server: JupyterServer, one_gpu: Path, may_fork: bool) -> None:
    """Each cell is sent as soon as POST has answered. A kernel that is executed, not forked, is not ready by then."""
    kernelspecs(one_gpu, "quick", config={"fork": may_fork})
    answers = []

    async def try_once(number: int) -> None:
        began = time.monotonic()
        kernel_id = await start(server, "quick")
        answers.append(time.monotonic() - began)
        async with front_end(server, kernel_id) as front:
            assert texts(await front.ended(await front.run(f"print({number})"), 60)) == f"{number}\n"
        assert (await server.api("DELETE", f"kernels/{kernel_id}"))[0] == 204

    for first in range(0, 100, 2):
        await asyncio.gather(*(try_once(number) for number in range(first, first + 2)))
    print(f"POST answered after {statistics.median(answers):.3f} s (median), {max(answers):.3f} s (worst)")
