"""A kernel whose messages lack fields, and which only a message interrupts: `kit.jupyter.odd_kernel`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import roost
from kit.jupyter.front_end import FrontEnd, front_end, texts
from kit.jupyter.odd_kernel import ODD_SPEC
from kit.jupyter.restarted_servers import end, serving, start
from roost.provisioners.execution import Result
from roost.provisioners.journal_reader import read_runs
from roost.scheduler.client.client import connect
from roost.scheduler.messages import Kernel
from roost.testing.deadlines import allow_s, until

pytestmark = pytest.mark.backends("local")
REPLY_S = 60.0


@pytest.fixture
def folder(
    specs_of: Callable[..., object], backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Install the kernelspec `roosted` of the odd kernel. Return a folder for notebooks."""
    specs_of(**ODD_SPEC)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    yield tmp_path
    service = connect(backend)
    for kernel in service.kernels().result(allow_s(60)):
        service.stop(kernel.id).result(allow_s(60))


def find_launched(kernel_id: str) -> Kernel:
    return connect("local").kernel(kernel_id).result(allow_s(10))


def test_a_program_reads_the_kernels_values(folder: Path) -> None:
    with roost.start_kernel("roosted") as kernel:
        assert kernel.execute("value").text == "42"
        assert [each["metadata"] for each in kernel.execute("value").outputs] == [{}, {}]
        assert kernel.execute("text").stdout == "text"
        kernel.restart()
        assert kernel.execute("value").text == "42"
        client = kernel.client()
        assert client.execute("value", reply=True, timeout=allow_s(REPLY_S))["content"]["status"] == "ok"


async def test_the_journal_keeps_its_output(folder: Path) -> None:
    async with roost.start_kernel("roosted") as kernel:
        service = connect("local")
        await kernel.execute("value")

        async def is_kept() -> bool:  # the agent reads a little later, and may subscribe after the first cell
            await kernel.execute("text")
            kept = await read_runs(service, kernel.id)
            return bool(kept) and kept[-1].is_done

        await until(is_kept, "the journal keeps a cell", 30)
        await kernel.execute("value")
        await kernel.execute("text")
        kinds: list[tuple[str, list[str], bool]] = []

        async def are_kept() -> bool:
            nonlocal kinds
            runs = (await read_runs(service, kernel.id))[-2:]
            kinds = [(run.code, [each["output_type"] for each in run.outputs], run.is_done) for run in runs]
            return kinds == [("value", ["display_data", "display_data"], True), ("text", ["stream"], True)]

        await until(are_kept, lambda: f"the journal keeps both cells: {kinds}", 30)


def test_a_program_interrupts_by_a_message(folder: Path) -> None:
    with roost.start_kernel("roosted") as kernel:
        with pytest.raises(TimeoutError):
            kernel.execute("wait", timeout_s=0.5)
        assert kernel.execute("value").text == "42"
        results: list[Result] = []
        watcher = kernel.client()
        waiting = threading.Thread(target=lambda: results.append(kernel.execute("wait")))
        waiting.start()
        while watcher.get_iopub_msg(timeout=allow_s(REPLY_S))["msg_type"] != "stream":
            pass
        kernel.interrupt()
        waiting.join(allow_s(REPLY_S))
        assert (error := results.pop().error) is not None
        assert (error.name, error.value, error.traceback) == ("Interrupted", "", "")
        assert find_launched(kernel.id).state == "running"


async def interrupt(front: FrontEnd, server: object, kernel_id: str) -> None:
    """Run a cell that waits, interrupt it through the server, and check that the kernel lives."""
    launched = find_launched(kernel_id).launch_id
    request = await front.run("wait")
    await front.until(lambda: "stream" in {each["msg_type"] for each in front.about(request)}, REPLY_S)
    assert (await server.api("POST", f"kernels/{kernel_id}/interrupt", {}))[0] == 204  # type: ignore[attr-defined]
    messages = await front.ended(request, REPLY_S)
    assert [each["content"]["ename"] for each in messages if each["msg_type"] == "error"] == ["Interrupted"]
    assert find_launched(kernel_id).launch_id == launched


async def test_a_server_interrupts_by_a_message_before_and_after_its_restart(folder: Path) -> None:
    async with serving(folder) as server:
        kernel_id = await start(server, "roosted")
        async with front_end(server, kernel_id, "client") as front:
            await interrupt(front, server, kernel_id)
            assert (await server.api("POST", f"kernels/{kernel_id}/restart", {}))[0] == 200
            assert texts(await front.ended(await front.run("text"), REPLY_S)) == "text"
            await interrupt(front, server, kernel_id)
            await end(server)
    async with serving(folder) as server, front_end(server, kernel_id, "client") as front:
        await interrupt(front, server, kernel_id)
        assert texts(await front.ended(await front.run("text"), REPLY_S)) == "text"
        await server.api("DELETE", f"kernels/{kernel_id}")


async def test_a_client_gets_the_messages_after_bad_ones(folder: Path) -> None:
    async with serving(folder) as server:
        kernel_id = await start(server, "roosted")
        async with front_end(server, kernel_id, "client") as front:
            for _ in range(2):
                await front.ended(await front.run("bad"), REPLY_S)
                assert texts(await front.ended(await front.run("text"), REPLY_S)) == "text"
        await server.api("DELETE", f"kernels/{kernel_id}")
        assert sum("messages of the kernel cannot be read" in line for line in server.log) == 1
