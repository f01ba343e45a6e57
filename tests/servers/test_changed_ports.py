"""A restart for which the kernel's ports are taken: the open websockets go over to the new ports."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from server import JupyterServer, jupyter_server

from kit.jupyter.background_processes import KEEP_PORTS, ending, find_named, start_code
from kit.jupyter.front_end import FrontEnd, front_end, states, texts
from kit.jupyter.restarted_servers import EXTENSIONS, replies, start
from roost.scheduler.client.client import connect
from roost.testing.deadlines import allow_s, until

READY_S = 60.0


@asynccontextmanager
async def serving_a_kernel(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[JupyterServer, str]]:
    monkeypatch.setenv("JUPYTER_PATH", str(folder))
    async with jupyter_server(folder, options=(f"--ServerApp.jpserver_extensions={EXTENSIONS}",)) as server:
        kernel_id = await start(server, "roosted")
        try:
            yield server, kernel_id
        except BaseException:
            print("\n".join(server.log))
            raise
        finally:
            await server.api("DELETE", f"kernels/{kernel_id}")


async def read_ports(front: FrontEnd) -> set[int]:
    """Return the ports that the kernel reports."""
    code = "import json; from ipykernel.connect import get_connection_info; print(get_connection_info())"
    info = json.loads(texts(await front.ended(await front.run(code), READY_S)))
    return {info["shell_port"], info["iopub_port"], info["stdin_port"], info["control_port"], info["hb_port"]}


def kinds(front: FrontEnd) -> set[str]:
    return {message["msg_type"] for message in front.messages}


async def keep_ports(front: FrontEnd, name: str) -> None:
    """Start a process that keeps the kernel's ports open after the kernel's end."""
    await front.ended(await front.run(KEEP_PORTS + start_code("popen", name)), READY_S)
    await until(lambda: find_named(name), "the process runs", READY_S)


async def assert_answers_once(front: FrontEnd, request: str, text: str) -> None:
    messages = await front.ended(request, READY_S)
    assert (texts(messages), replies(messages)) == (text, ["ok"])
    await asyncio.sleep(0.2)  # an answer of a second process would come now
    messages = front.about(request)
    assert (texts(messages), replies(messages)) == (text, ["ok"])


@pytest.mark.backends("local")
@pytest.mark.parametrize("is_early", [False, True], ids=["after", "during"])
async def test_open_websockets_follow_a_restart_with_other_ports(
    specs_of: Callable[..., object],
    backend: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_early: bool,
) -> None:
    specs_of()
    name = f"daemon-{uuid.uuid4().hex}"
    with ending(name):
        async with (
            serving_a_kernel(tmp_path, monkeypatch) as (server, kernel_id),
            front_end(server, kernel_id, "first") as first,
            front_end(server, kernel_id, "second") as second,
        ):
            left = 2
            while left:
                await keep_ports(first, name)
                await first.ended(await first.run("import atexit, time; atexit.register(time.sleep, 2)"))
                before = await read_ports(first)
                first.messages.clear()
                restarting = asyncio.create_task(server.api("POST", f"kernels/{kernel_id}/restart", {}))
                if is_early:  # the old process reads no requests any more
                    await first.until(lambda: "shutdown_reply" in kinds(first), READY_S)
                    requests = [await each.run(f"print({n})") for n, each in enumerate((first, second))]
                    left -= not restarting.done()  # else this process was too slow, and they came late
                assert (await restarting)[0] == 200
                if not is_early:
                    left -= 1
                    requests = [await each.run(f"print({n})") for n, each in enumerate((first, second))]
                for n, front in enumerate((first, second)):
                    await assert_answers_once(front, requests[n], f"{n}\n")
                assert not before & await read_ports(first)
                assert {"busy", "idle"} <= set(states(second.about(requests[0])))


@pytest.mark.backends("local")
async def test_open_websockets_follow_an_automatic_restart_with_other_ports(
    specs_of: Callable[..., object], backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request comes after the kernel's end is known, and before the kernel is started again."""
    specs_of()
    name = f"daemon-{uuid.uuid4().hex}"
    with ending(name):
        async with (
            serving_a_kernel(tmp_path, monkeypatch) as (server, kernel_id),
            front_end(server, kernel_id, "first") as front,
        ):
            await keep_ports(front, name)
            before = await read_ports(front)
            service = connect(backend)
            launch_id = service.kernels().result(allow_s(10))[0].launch_id
            await front.run("import os; os.kill(os.getpid(), 9)")

            def has_ended() -> bool:  # the server may have started it again
                (kernel,) = service.kernels().result(allow_s(10))
                return kernel.state == "exited" or kernel.launch_id != launch_id

            await until(lambda: asyncio.to_thread(has_ended), "the kernel ends")
            # The server has the report, too, and holds requests from now on.
            await until(
                lambda: any("ended with exit code" in line for line in server.log),
                "the server knows that the kernel has ended",
            )
            request = await front.run("print(42)")
            await assert_answers_once(front, request, "42\n")
            assert not before & await read_ports(front)


@pytest.mark.backends("local")
async def test_a_client_that_was_away_finds_the_kernel_at_its_other_ports(
    specs_of: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jupyter Server keeps the sockets of a client that has disconnected, and the messages that arrive on them."""
    specs_of()
    name = f"daemon-{uuid.uuid4().hex}"
    with ending(name):
        async with serving_a_kernel(tmp_path, monkeypatch) as (server, kernel_id):
            async with front_end(server, kernel_id, "same") as front:
                await keep_ports(front, name)
                before = await read_ports(front)
            assert (await server.api("POST", f"kernels/{kernel_id}/restart", {}))[0] == 200
            for _ in range(2):
                async with front_end(server, kernel_id, "same") as front:
                    assert not before & await read_ports(front)
                    await assert_answers_once(front, await front.run("print(42)"), "42\n")
            assert (await server.api("GET", f"kernels/{kernel_id}"))[1]["execution_state"] == "idle"
