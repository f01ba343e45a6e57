"""A private place for benchmarks that start kernels, and how they start them.

Plain and roost get the same argv and differ in their provisioner alone. Kernels write and read bytecode as
they do on anybody's machine, whatever PYTHONDONTWRITEBYTECODE says here: the warm-up writes it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

PLAIN = "local-provisioner"
ROOST = "roost"
REPLY_TIMEOUT_S = 60.0
FIRST_S = 20.0
RUNTIME = "ROOST_RUNTIME_DIR"


@contextmanager
def private_world(provisioners: Mapping[str, str], *, installed: Sequence[str] = ()) -> Iterator[Path]:
    """Folders of its own for Jupyter, IPython and roost, with one kernelspec per (name → provisioner).

    `installed` names kernelspecs of this machine that are wanted too (KeyError if there is none). Changes
    this process's environment until the end, and then ends every process that still names the folder.
    """
    root = Path(tempfile.mkdtemp(prefix="rb-", dir="/tmp"))  # short: a socket's path ends at 107 bytes
    before = dict(os.environ)
    found = KernelSpecManager().find_kernel_specs() if installed else {}
    for name in installed:
        shutil.copytree(found[name], root / "jupyter_path" / "kernels" / name)
    for name in list(os.environ):
        if name.startswith("KERNEL_") or name in ("PYTHONDONTWRITEBYTECODE", "JPY_PARENT_PID"):
            del os.environ[name]
    for variable in (
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "JUPYTER_PATH",
        "IPYTHONDIR",
    ):
        os.environ[variable] = str(root / variable.lower())
    os.environ[RUNTIME] = str(root / "r")
    for name, provisioner in provisioners.items():
        write_kernelspec(root / "jupyter_path" / "kernels" / name, provisioner)
    try:
        yield root
    finally:
        end_processes(str(root / "r"))
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(root, ignore_errors=True)


def write_kernelspec(folder: Path, provisioner: str, config: Mapping[str, object] | None = None) -> None:
    """This interpreter's ipykernel, under `provisioner` with its `config`."""
    folder.mkdir(parents=True)
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": f"Python ({provisioner})",
        "language": "python",
        "metadata": {
            "debugger": True,
            "supported_encryption": ["curve"],
            "kernel_provisioner": {"provisioner_name": provisioner, "config": dict(config or {})},
        },
    }
    (folder / "kernel.json").write_text(json.dumps(spec))


def processes(runtime_dir: str) -> list[psutil.Process]:
    """All processes, but this one, that were started with this ROOST_RUNTIME_DIR."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(RUNTIME) == runtime_dir:
                found.append(process)
        except (psutil.Error, OSError):  # gone, a zombie, or somebody else's
            continue
    return found


def end_processes(runtime_dir: str, *, grace_s: float = 5.0) -> None:
    """SIGTERM, and SIGKILL after `grace_s`, to all of `processes(runtime_dir)`."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        left = processes(runtime_dir)
        for process in left:
            try:
                process.send_signal(signum)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=grace_s)


async def start(manager: AsyncKernelManager) -> None:
    """start_kernel() with the kernel's own output thrown away: plain ones would share this terminal."""
    await manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@asynccontextmanager
async def client_of(manager: AsyncKernelManager, *, iopub: bool = False) -> AsyncIterator[AsyncKernelClient]:
    """A client with the shell channel alone (and IOPub if asked for), closed at the end."""
    client = manager.client()
    client.start_channels(shell=True, iopub=iopub, stdin=False, hb=False, control=False)
    try:
        yield client
    finally:
        client.stop_channels()


async def execute(client: AsyncKernelClient, code: str = "1+1", **options: Any) -> dict[str, Any]:
    """Send one execute_request at once and give the content of its reply; RuntimeError if the cell failed."""
    wanted = client.execute(code, **options)
    content = await reply_to(client, wanted)
    if content["status"] != "ok":
        raise RuntimeError(f"{code!r} failed in the kernel: {content}")
    return content


async def first_reply(manager: AsyncKernelManager) -> dict[str, float]:
    """Start a kernel and ask it the moment start_kernel() returns: milliseconds until that, and until the reply."""
    began = time.perf_counter()
    await start(manager)
    returned_ms = elapsed_ms(began)
    async with client_of(manager) as client:
        await execute(client)
        return {"start_kernel returned": returned_ms, "start": elapsed_ms(began)}


async def reply_to(client: AsyncKernelClient, message_id: str) -> dict[str, Any]:
    """The content of the reply to one message on the shell channel."""

    async def wait() -> dict[str, Any]:
        while True:
            message = await client.get_shell_msg(timeout=REPLY_TIMEOUT_S)
            if message["parent_header"].get("msg_id") == message_id:
                content: dict[str, Any] = message["content"]
                return content

    return await asyncio.wait_for(wait(), REPLY_TIMEOUT_S)


async def pid_of(client: AsyncKernelClient) -> int:
    """Runs `1+1` and learns the kernel's process id in the same request."""
    reply = await execute(client, "1+1", user_expressions={"pid": "__import__('os').getpid()"})
    return int(reply["user_expressions"]["pid"]["data"]["text/plain"])


@asynccontextmanager
async def kernels(name: str, count: int) -> AsyncIterator[list[AsyncKernelManager]]:
    """`count` kernels of one kernelspec, started four at a time, stopped at the end.

    Plain Jupyter chooses ports before the kernel binds them: now and then another kernel is faster, and one that was
    started never answers. So each is asked once, and started again, twice at most, if it stays silent.
    """
    managers = [AsyncKernelManager(kernel_name=name) for _ in range(count)]
    gate = asyncio.Semaphore(4)

    async def bring_up(manager: AsyncKernelManager) -> None:
        for last in (False, False, True):
            async with gate:
                await start(manager)
                try:
                    async with client_of(manager) as client:
                        await asyncio.wait_for(execute(client, "pass"), REPLY_TIMEOUT_S if last else FIRST_S)
                    return
                except asyncio.TimeoutError:
                    if last:
                        raise
                    print(f"a kernel of {name} did not answer: started again", file=sys.stderr)
                    await manager.shutdown_kernel(now=True)

    try:
        await asyncio.gather(*(bring_up(manager) for manager in managers))
        yield managers
    finally:
        started = [manager for manager in managers if manager.has_kernel]
        await asyncio.gather(*(manager.shutdown_kernel(now=True) for manager in started))


async def until_forked(name: str, *, backend: str = "local", within_s: float = 60.0) -> bool:
    """Start and stop kernels until one was forked, so that its zygote is warm; False if none was."""
    import roost

    client = roost.connect(backend)
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        async with kernels(name, 1) as [manager]:
            async with client_of(manager) as channel:
                await execute(channel)
            if (await client.kernel(manager.kernel_id)).how == "forked":
                return True
    return False


def elapsed_ms(since: float) -> float:
    """Since a `time.perf_counter()`."""
    return (time.perf_counter() - since) * 1000
