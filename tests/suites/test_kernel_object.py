"""Real kernels of `roost.start_kernel`, for programs with and without an event loop."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager

import roost
from kit.jupyter.kernelspecs import kernelspecs
from kit.jupyter.notebook import SLEEP
from kit.machine.daemons import wait_gone
from roost.provisioners.execution import Result
from roost.scheduler.client.client import connect
from roost.testing.deadlines import allow_s, until, until_blocking

pytestmark = [
    pytest.mark.usefixtures("roosted"),
    pytest.mark.backends("local", "ray", why="the same client on every backend"),
]
on_this_machine = pytest.mark.backends("local", why="the same on every backend")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def roosted(specs: KernelSpecManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the kernelspec `roosted`. Return the folder in which kernels have their connection files."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "connections"))
    return tmp_path / "connections"


def left_behind() -> list[str]:
    return [kernel.id for kernel in connect("local").kernels().result(allow_s(10))]


def test_start_execute_stop(roosted: Path, tmp_path: Path, backend: str) -> None:
    with roost.start_kernel("roosted", cwd=tmp_path, env={"MINE": "a$b"}) as kernel:
        assert [one.id for one in connect(backend).kernels().result(allow_s(10))] == [kernel.id]
        assert kernel.node_id in {node["id"] for node in connect(backend).nodes().result(allow_s(10))}
        assert kernel.device_ids == ()
        assert kernel.timing_ms["launched"] > 0
        assert kernel.decision["reason"]
        result = kernel.execute("import os; print(os.getcwd(), os.environ['MINE']); os.getpid()")
        assert (result.stdout, result.error) == (f"{tmp_path} a$b\n", None)
        pid = int(result.text)
        assert not wait_gone(pid, 0)
    assert wait_gone(pid, 0)
    assert connect(backend).kernels().result(allow_s(10)) == []
    assert [each for each in roosted.rglob("*") if not each.is_dir()] == []
    kernel.stop()


def test_an_error_in_the_code() -> None:
    with roost.start_kernel("roosted") as kernel:
        error = kernel.execute("1 / 0").error
        assert error is not None
        assert (error.name, error.value) == ("ZeroDivisionError", "division by zero")
        assert "ZeroDivisionError" in error.traceback
        with pytest.raises(roost.ExecutionError, match="division by zero"):
            kernel.execute("1 / 0", check=True)
        assert kernel.execute("2").text == "2"


def test_a_plain_call_and_an_exception_in_the_block() -> None:
    kernel = roost.start_kernel("roosted")
    try:
        assert kernel.execute("1 + 1").text == "2"
    finally:
        kernel.stop()
    for use in (lambda: kernel.execute("1"), kernel.interrupt, kernel.restart):
        with pytest.raises(roost.KernelDied, match="has ended"):
            use()
    with pytest.raises(ValueError, match="mine"), roost.start_kernel("roosted"):
        raise ValueError("mine")
    assert left_behind() == []


@on_this_machine
def test_code_that_takes_too_long_is_interrupted() -> None:
    with roost.start_kernel("roosted") as kernel:
        with pytest.raises(TimeoutError, match="interrupted"):
            kernel.execute(SLEEP, timeout_s=allow_s(5))
        assert kernel.execute("3", timeout_s=allow_s(30)).text == "3"


def test_restart_and_the_end_of_the_kernel(backend: str) -> None:
    with roost.start_kernel("roosted") as kernel:
        lease_id = connect(backend).kernel(kernel.id).result(allow_s(10)).lease_id
        kernel.execute("x = 1", check=True)
        kernel.restart()
        error = kernel.execute("x").error
        assert error is not None
        assert error.name == "NameError"
        assert connect(backend).kernel(kernel.id).result(allow_s(10)).lease_id == lease_id
        for code in ("import os; os._exit(3)", "1"):
            with pytest.raises(roost.KernelDied, match="code 3") as raised:
                kernel.execute(code)
            assert raised.value.fields["exit_code"] == 3
        kernel.restart()
        assert kernel.execute("4").text == "4"


@on_this_machine
def test_a_restart_that_fails(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    script = f'test ! -e {broken} && exec {sys.executable} -m ipykernel_launcher -f "$0"'
    kernelspecs(tmp_path, "fragile", argv=["sh", "-c", script, "{connection_file}"])
    with roost.start_kernel("fragile", cpus=0.1) as kernel:
        assert kernel.execute("1").text == "1"
        broken.touch()
        for call in (kernel.restart, lambda: kernel.execute("1")):
            with pytest.raises(roost.KernelDied):
                call()
        broken.unlink()
        kernel.restart()
        assert kernel.execute("2").text == "2"
    assert left_behind() == []


@on_this_machine
def test_a_client_of_its_own() -> None:
    with roost.start_kernel("roosted") as kernel:
        clients = [kernel.client() for _ in range(2)]
        for client in clients:
            assert client.execute("y = 5", reply=True, timeout=allow_s(30))["content"]["status"] == "ok"
            socket = client.shell_channel.socket
            assert (socket.reconnect_ivl, socket.reconnect_ivl_max) == (5, 100)
        assert kernel.execute("y").text == "5"


async def test_in_an_event_loop(backend: str) -> None:
    async with roost.start_kernel("roosted") as kernel:
        results = await asyncio.gather(*(kernel.execute(f"print({n}); {n}") for n in range(3)))
        assert [(result.text, result.stdout) for result in results] == [(str(n), f"{n}\n") for n in range(3)]
        client = await kernel.client()
        reply = await client.execute("1", reply=True, timeout=allow_s(30))
        assert reply["content"]["status"] == "ok"
    kernel = await roost.start_kernel("roosted")
    with pytest.raises(RuntimeError, match="started before"):
        await kernel.start()
    await asyncio.gather(kernel.stop(), kernel.stop())
    with roost.start_kernel("roosted") as blocking:  # as in a cell of a notebook
        assert blocking.execute("6").text == "6"
    assert [one.id for one in await connect(backend).kernels()] == []


@on_this_machine
async def test_a_cancelled_execute_interrupts_the_code(tmp_path: Path) -> None:
    running = tmp_path / "running"
    async with roost.start_kernel("roosted") as kernel:
        code = f"import pathlib\npathlib.Path({str(running)!r}).touch()\n{SLEEP}"
        task = asyncio.ensure_future(kernel.execute(code))
        await until(running.exists, "the code runs")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await kernel.execute("7", timeout_s=allow_s(30))).text == "7"


@on_this_machine
async def test_a_restart_ends_the_running_code(tmp_path: Path) -> None:
    running = tmp_path / "running"
    async with roost.start_kernel("roosted") as kernel:
        code = f"import pathlib\npathlib.Path({str(running)!r}).touch()\n{SLEEP}"
        task = asyncio.ensure_future(kernel.execute(code))
        await until(running.exists, "the code runs")
        await kernel.restart()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        if not isinstance(ended, roost.KernelDied):  # the restart interrupts the code first
            assert isinstance(ended, Result)
            assert ended.error is not None
        assert (await kernel.execute("8", timeout_s=allow_s(30))).text == "8"


STARTS = """
import roost
try:
    with roost.start_kernel("roosted") as kernel:
        print("up", flush=True)
        kernel.execute("import time\\nwhile True: time.sleep(0.1)")
except KeyboardInterrupt:
    print("interrupted", [one.id for one in roost.connect("local").kernels().result(60)])
"""


@on_this_machine
@pytest.mark.parametrize("moment", ["start", "execute"])
def test_ctrl_c_stops_the_kernel(moment: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", STARTS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    if moment == "start":
        until_blocking(left_behind, "the kernel is known", 60, 0.02)
    else:
        assert program.stdout.readline() == "up\n"
    program.send_signal(signal.SIGINT)
    out, errors = program.communicate(timeout=allow_s(60))
    assert (out.removeprefix("up\n"), errors) == ("interrupted []\n", "")


@on_this_machine
def test_a_program_that_ends_without_stop_does_not_hang() -> None:
    code = "import roost; k = roost.start_kernel('roosted'); print(k.id, k.execute('9').text)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=allow_s(60), check=False
    )
    kernel_id, text = done.stdout.split()
    assert (text, done.stderr, done.returncode) == ("9", "", 0)
    connect("local").stop(kernel_id).result(allow_s(20))  # the scheduler would do this after `owner_grace_s`


@on_this_machine
@pytest.mark.parametrize("fork", [True, False])
def test_a_kernel_has_the_umask_of_its_application(roosted: Path, fork: bool) -> None:
    """With another umask, other users might read the kernel's files, although they cannot read the application's."""
    read = "import os; umask = os.umask(0); os.umask(umask); umask"
    usual = os.umask(0o027)
    try:
        with roost.start_kernel("roosted", fork=fork) as kernel:
            assert kernel.execute(read).text == str(0o027)
    finally:
        os.umask(usual)


@on_this_machine
def test_the_examples_of_the_developers_guide_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "developers.md").read_text()
    section = page.split("\n## Starting a kernel\n")[1].split("\n## ")[0]
    examples = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        if "BlockingKernelClient" in example:  # it needs the connection file of a server's kernel
            continue
        exec(compile(example, "developers.md", "exec"), {"__name__": "page"})
    shown = capsys.readouterr().out
    assert "2\n" in shown
    assert "ZeroDivisionError" in shown
    assert os.getcwd() in shown


@on_this_machine
def test_a_kernel_that_is_dropped_does_not_block_the_program() -> None:
    """Python's garbage collector would wait without end in a ZeroMQ context with sockets that nobody has closed."""
    program = """
import gc, roost
kernel = roost.start_kernel("roosted", backend="local")
client = kernel.client()
del kernel, client
gc.collect()
print("goes on")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=allow_s(120)
    )
    assert done.stdout == "goes on\n"
    # The scheduler stops the kernels of a program that has ended.
    until_blocking(lambda: not left_behind(), "no kernel is left", 60, 0.02)


@on_this_machine
def test_a_kernel_that_has_ended_has_no_new_client() -> None:
    with roost.start_kernel("roosted") as kernel:
        with pytest.raises(roost.KernelDied):
            kernel.execute("import os; os._exit(7)")
        with pytest.raises(roost.KernelDied, match="code 7"):
            kernel.client()
    with pytest.raises(roost.KernelDied):
        kernel.client()
