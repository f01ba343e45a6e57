"""On one machine, the next Jupyter Server of a server name adopts the kernels of the server that has ended."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_core.utils import ensure_event_loop

import roost
from kit.jupyter.front_end import errors, front_end, texts
from kit.jupyter.restarted_servers import end, has_begun, listed, replies, serving, shown, start
from kit.machine.daemons import daemon_pids, kill
from roost.bench.world import wait_until_forked
from roost.launchers.daemon.private_files import runtime_dir, write_private_json
from roost.provisioners.journal_reader import read_runs
from roost.scheduler.client.client import connect
from roost.scheduler.errors import RoostError
from roost.testing.deadlines import allow_s, until

STANDING_STILL = """
import pathlib, time
from roost.provisioners.server_extension.replay import Replay

join = Replay._join


async def stand_still(self):
    await join(self)
    pathlib.Path({go!r}).touch()
    time.sleep(8)


Replay._join = stand_still
c.ZMQChannelsWebsocketConnection.limit_rate = False
"""
"""A server's configuration. Its event loop stands still when a client has all of the journal, and a cell goes on."""


@pytest.fixture(autouse=True)
def nothing_stays(one_gpu: Path) -> Iterator[None]:
    yield
    for kernel in connect("local").kernels().result(allow_s(10)):
        connect("local").stop(kernel.id).result(allow_s(20))


def wait_for(file: Path) -> str:
    """Return code that waits until this file is there."""
    return f"import os, time\nwhile not os.path.exists({str(file)!r}): time.sleep(0.05)"


async def test_a_waiting_kernel_keeps_its_place_and_its_cell_ends(one_gpu: Path) -> None:
    async with serving(one_gpu) as server:
        holder, waiting = await start(server, "gpu"), await start(server, "gpu")
        async with front_end(server, waiting, "client") as front:
            cell = await front.run("print('never')")
            await front.until(lambda: "Position 1 in the queue" in front.line(cell))
            await end(server)
    async with serving(one_gpu) as server:
        assert (await listed(server)).keys() == {holder, waiting}
        assert (await server.api("GET", f"kernels/{waiting}"))[1]["execution_state"] == "starting"
        async with front_end(server, waiting, "client") as front:
            assert "run it again" in errors(await front.ended(cell))[0]
            again = await front.run("print('now')")
            await front.until(lambda: "Position 1 in the queue" in front.line(again))
            await server.api("DELETE", f"kernels/{holder}")
            ended = await front.ended(again)
            assert texts(ended) == "now\n"
            assert replies(front.about(cell)) == ["error"]
        async with front_end(server, waiting, "client") as front:
            await front.ended(await front.run("1"))
            assert front.about(cell) == []


async def test_two_servers_at_once_do_not_share_a_kernel(one_gpu: Path) -> None:
    async with serving(one_gpu) as server:
        kernel_id = await start(server, "gpu")
        async with serving(one_gpu) as second:
            assert await listed(second) == {}
            assert any("another server named 'ours' runs" in line for line in second.log)
        assert (await listed(server)).keys() == {kernel_id}
        await end(server)
    async with AsyncExitStack() as stack:
        both = await asyncio.gather(*(stack.enter_async_context(serving(one_gpu)) for _ in range(2)))
        assert sorted([len(await listed(server)) for server in both]) == [0, 1]


async def test_a_line_in_a_servers_file_takes_no_kernel_from_a_program(one_gpu: Path) -> None:
    """A server's files may name any kernel. The scheduler knows the holder."""
    async with serving(one_gpu) as server:
        kernel_id = await start(server, "gpu")
        async with front_end(server, kernel_id) as front:
            await front.ended(await front.run("1"))
        await end(server)
    files = Path(os.environ["XDG_STATE_HOME"]).glob("roost/servers/*/kernels.json")
    (file,) = [each for each in files if kernel_id in json.loads(each.read_text())]
    noted = json.loads(file.read_text())
    with roost.start_kernel("gpu", gpus=0) as held:
        write_private_json(file, {**noted, held.id: noted[kernel_id], "abc": "x"})
        async with serving(one_gpu) as server:
            assert (await listed(server)).keys() == {kernel_id}
            assert any(
                f"kernel {held.id} is not adopted" in line and "is held by" in line for line in server.log
            )
        assert held.execute("6 * 7").text == "42"
        (holder,) = [each.owner for each in await connect("local").kernels() if each.id == held.id]
        assert holder.pid == os.getpid()


async def test_a_kernel_that_has_ended_meanwhile_is_not_listed_and_says_why(one_gpu: Path) -> None:
    async with serving(one_gpu) as server:
        kernel_id = await start(server, "gpu")
        async with front_end(server, kernel_id) as front:
            cell = await front.run(f"{wait_for(one_gpu / 'go')}\nos._exit(7)")
            await front.until(lambda: has_begun(front, cell))
            await end(server)
    (one_gpu / "go").touch()

    async def runs_none() -> bool:
        return all(kernel.state != "running" for kernel in await connect("local").kernels())

    await until(runs_none, "the kernel ends")
    async with serving(one_gpu) as server:
        assert await listed(server) == {}
        _, status = await server.get(f"roost/api/kernels/{kernel_id}")
        assert "exited with code 7" in status["detail"], status


async def test_much_output_arrives_once_for_each_of_two_clients(one_gpu: Path) -> None:
    objects = "for i in range(5000): display(i)"
    text = "for i in range(10): print(('%d' % i) * 1_000_000)"
    assert await wait_until_forked("gpu"), "other kernels keep fewer messages for a client that is late"
    async with serving(one_gpu) as server:
        kernel_id = await start(server, "gpu")
        async with front_end(server, kernel_id, "one") as one, front_end(server, kernel_id, "two") as two:
            await one.ended(await one.run("import time; time.sleep(0.01)"))
            pause = await one.run(wait_for(one_gpu / "much"))
            cells = {one: await one.run(objects), two: await two.run(text)}
            await one.until(lambda: has_begun(one, pause))
            await asyncio.sleep(
                allow_s(0.5)
            )  # so that the server has passed on the cells that wait in the kernel
            await end(server)
    (one_gpu / "much").touch()
    await asyncio.sleep(3)
    async with serving(one_gpu) as server:
        async with front_end(server, kernel_id, "one") as front:
            ended = await front.ended(cells[one])
            assert shown(ended) == "".join(f"{i}\n" for i in range(5000))
            assert replies(ended) == ["ok"]
            assert replies(await front.ended(pause)) == ["ok"]
            assert front.about(cells[two]) == []
        async with front_end(server, kernel_id, "two") as front:
            ended = await front.ended(cells[two])
            assert shown(ended) == "".join(f"{i}" * 1_000_000 + "\n" for i in range(10))
            assert replies(ended) == ["ok"]


async def test_a_server_that_stands_still_loses_no_live_output(one_gpu: Path) -> None:
    standing = one_gpu / "standing.py"
    standing.write_text(STANDING_STILL.format(go=str(one_gpu / "still")))
    assert await wait_until_forked("gpu"), "other kernels keep fewer messages for a client that is late"
    async with serving(one_gpu) as server:
        kernel_id = await start(server, "gpu")
        async with front_end(server, kernel_id, "client") as front:
            cell = await front.run(f"{wait_for(one_gpu / 'still')}\nfor i in range(4800): display(i)")
            await front.until(lambda: has_begun(front, cell))
            await end(server)
    async with (
        serving(one_gpu, f"--config={standing}") as server,
        front_end(server, kernel_id, "client") as front,
    ):
        assert shown(await front.ended(cell)) == "".join(f"{i}\n" for i in range(4800))


async def test_output_beyond_the_journal_is_reported(one_gpu: Path) -> None:
    async with serving(one_gpu) as server:
        kernel_id = await start(server, "gpu")
        async with front_end(server, kernel_id, "client") as front:
            cell = await front.run(
                f"{wait_for(one_gpu / 'beyond')}\nfor i in range(20): print(('%x' % i)[-1] * 1_000_000)"
            )
            await front.until(lambda: has_begun(front, cell))
            await end(server)
    (one_gpu / "beyond").touch()

    async def is_done() -> bool:
        runs = await read_runs(connect("local"), kernel_id)
        return bool(runs) and runs[-1].is_done

    await until(is_done, "the cell ends")
    async with serving(one_gpu) as server, front_end(server, kernel_id, "client") as front:
        text = shown(await front.ended(cell))
        assert text.startswith("[roost: the beginning of this output was not kept")
        assert text.endswith("3" * 1_000_000 + "\n")


async def test_output_from_before_a_new_agent_is_reported(one_gpu: Path) -> None:
    """The new agent's journal begins in the middle of the cell. A client must not show some output twice."""
    async with serving(one_gpu) as server:
        kernel_id = await start(server, "gpu")
        async with front_end(server, kernel_id, "client") as front:
            counting = "for i in range(10**6):\n    print(i, flush=True)\n    time.sleep(0.01)"
            cell = await front.run(
                f"import os, time\n{counting}\n    if os.path.exists({str(one_gpu / 'end')!r}): break"
            )
            await front.until(lambda: "99\n" in texts(front.about(cell)))
            await end(server)
            before = front.messages
    (agent,) = daemon_pids(runtime_dir(), "agent")
    kill(agent)

    def has_outputs() -> bool:
        with suppress(RoostError):
            return connect("local").journal(kernel_id).result(allow_s(10)).last > 50
        return False

    await until(has_outputs, "the next agent keeps 50 outputs")
    async with serving(one_gpu) as server, front_end(server, kernel_id, "client") as front:
        front.messages[:0] = before
        (one_gpu / "end").touch()
        lost, *numbers = shown(await front.ended(cell)).splitlines()
        assert lost.startswith("[roost: the beginning of this output was not kept")
        assert len(numbers) > 50
        assert [int(number) - int(numbers[0]) for number in numbers] == [*range(len(numbers))]


async def test_sessions_are_found_again(one_gpu: Path) -> None:
    body = {"path": "a.ipynb", "name": "a.ipynb", "type": "notebook", "kernel": {"name": "gpu"}}
    async with serving(one_gpu) as server:
        status, session = await server.api("POST", "sessions", body)
        assert status == 201
        async with front_end(server, session["kernel"]["id"], "client") as front:
            await front.ended(await front.run("1"))
        await end(server)
    async with serving(one_gpu) as server:
        _, (found,) = await server.api("GET", "sessions")
        assert (found["id"], found["kernel"]["id"]) == (session["id"], session["kernel"]["id"])
        assert (await server.api("DELETE", f"sessions/{session['id']}"))[0] == 204
        assert await listed(server) == {}


async def test_other_programs_attach_to_a_kernel_and_read_its_output(one_gpu: Path) -> None:
    command = (sys.executable, "-m", "roost")
    async with serving(one_gpu) as server:
        kernel_id = await start(server, "gpu")
        async with front_end(server, kernel_id) as front:
            await front.ended(await front.run("x = 41\nprint('hello')\nx"))
            busy = await front.run("import time; time.sleep(2)")
            await front.until(lambda: has_begun(front, busy))
            (shown_kernel,) = json.loads(await run(*command, "kernels", "--json"))["kernels"]
            assert await asyncio.to_thread(attach_and_add, shown_kernel["connection_file"]) == "42"

        async def is_kept() -> bool:  # the journal's copy of an output may come after the output itself
            runs = await read_runs(connect("local"), kernel_id)
            outputs = {run.code: [each.get("text") for each in run.outputs] for run in runs}
            is_first_kept = outputs.get("x = 41\nprint('hello')\nx", [])[:1] == ["hello\n"]
            return is_first_kept and outputs.get("print(x + 1)") == ["42\n"]

        await until(is_kept, "the journal has the outputs of both programs", 20, 0.05)
        listing = await run(*command, "kernels")
        assert "/jupyter_server" in listing
        assert " idle " in listing
        await end(server)
        assert "/nobody" in await run(*command, "kernels")
        assert f"{kernel_id} stopped" in await run(*command, "stop", "--server", "ours")


def attach_and_add(connection_file: str) -> str:
    client = BlockingKernelClient(connection_file=connection_file)
    client.load_connection_file()
    client.start_channels(hb=False)
    client.wait_for_ready(allow_s(60))
    texts: list[str] = []
    for code in ("1 / 0", "print(x + 1)"):
        client.execute_interactive(
            code,
            stop_on_error=False,
            output_hook=lambda message: texts.append(message["content"].get("text", "")),
            timeout=allow_s(20),
        )
    client.stop_channels()
    ensure_event_loop().close()  # jupyter_core keeps a loop for each thread and never closes it
    return "".join(texts).strip()


async def run(*command: str) -> str:
    """Run a command in a wide terminal. Return its output."""
    wide = {**os.environ, "COLUMNS": "200"}
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=wide)
    output, _ = await process.communicate()
    return output.decode()
