"""Private folders for benchmarks, and functions that start and use kernels in them.

Plain kernels and roost's kernels have the same argv and differ only in the provisioner. Kernels write and read
bytecode as on a user's machine, even if PYTHONDONTWRITEBYTECODE is set here. The warm-up writes the bytecode.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from traitlets.config import Config

from roost.testing.clusters.cluster_folder import END_TIMEOUT_S, FOLDER, make_folder

PLAIN = "local-provisioner"
ROOST = "roost"
REPLY_TIMEOUT_S = 60.0
RUNTIME = "ROOST_RUNTIME_DIR"
MIB = 1 << 20
NEUTRAL = "/"
"""The working folder of benchmark processes. Elsewhere, `python -m` could import a folder `roost`."""
OWN_PARTS = ("service", "agent", "zygote")
_OWN = re.compile(rf"(?:scheduler|launchers)[./]({'|'.join(OWN_PARTS)})")
"""A pattern in the command lines of roost's own processes. A forked kernel shows the command of its kernelspec."""


@contextmanager
def private_world(
    provisioners: Mapping[str, str], *, installed: Sequence[str] = (), keeps_config: bool = False
) -> Iterator[Path]:
    """Create private folders for Jupyter, IPython and roost, with one kernelspec per (name → provisioner).

    `installed` names kernelspecs of this machine to copy (`KeyError` if one is missing). With `keeps_config`, the
    user's configuration files count. This process's environment changes until the end. At the end, also if this process
    is killed, every process that uses the folder is killed, and the folder is removed.
    """
    known = KernelSpecManager().find_kernel_specs() if installed else {}
    found = {name: known[name] for name in installed}
    root, watcher = make_folder("rb-")
    before = dict(os.environ)
    for name, folder in found.items():
        shutil.copytree(folder, root / "jupyter_path" / "kernels" / name)
    for name in list(os.environ):
        if name.startswith("KERNEL_") or name in ("PYTHONDONTWRITEBYTECODE", "JPY_PARENT_PID"):
            del os.environ[name]
    config = [] if keeps_config else ["JUPYTER_CONFIG_DIR"]
    for variable in (
        *config,
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "JUPYTER_PATH",
        "IPYTHONDIR",
        "XDG_STATE_HOME",
    ):
        os.environ[variable] = str(root / variable.lower())
    os.environ[RUNTIME] = str(root / "r")
    os.environ[FOLDER] = str(root)
    for name, provisioner in provisioners.items():
        write_kernelspec(root / "jupyter_path" / "kernels" / name, provisioner)
    try:
        yield root
    finally:
        end_processes(str(root / "r"))
        os.environ.clear()
        os.environ.update(before)
        watcher.communicate(timeout=2 * END_TIMEOUT_S)
        shutil.rmtree(root, ignore_errors=True)  # if the watcher could not run


def write_kernelspec(
    folder: Path,
    provisioner: str,
    config: Mapping[str, object] | None = None,
    *,
    python: str = sys.executable,
    display_name: str = "",
) -> None:
    """Write a kernelspec for the ipykernel of `python`, with `provisioner` and its `config`."""
    folder.mkdir(parents=True)
    spec = {
        "argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": display_name or f"Python ({provisioner})",
        "language": "python",
        "metadata": {
            "debugger": True,
            "supported_encryption": ["curve"],
            "kernel_provisioner": {"provisioner_name": provisioner, "config": dict(config or {})},
        },
    }
    (folder / "kernel.json").write_text(json.dumps(spec))


def write_config(root: Path, settings: Mapping[str, Mapping[str, object]]) -> None:
    """Write roost's settings, by section, for a `private_world` in the folder `root`."""
    folder = root / "jupyter_config_dir"
    folder.mkdir(exist_ok=True)
    (folder / "jupyter_roost_config.json").write_text(json.dumps(settings))


def read_provisioner(spec: KernelSpec) -> str:
    """Return the name of a kernelspec's provisioner."""
    return str(spec.metadata.get("kernel_provisioner", {}).get("provisioner_name", PLAIN))


def processes(runtime_dir: str) -> list[psutil.Process]:
    """Return all other processes that were started with this ROOST_RUNTIME_DIR."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(RUNTIME) == runtime_dir:
                found.append(process)
        except (psutil.Error, OSError):  # ended, a zombie, or another user's
            continue
    return found


def name_part(command: Sequence[str]) -> str:
    """Return `service`, `agent` or `zygote` if the command line starts one, else the line's end."""
    line = " ".join(command)
    match = _OWN.search(line)
    return match[1] if match else line[-40:]


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of one process; `ProcessLookupError` if it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except FileNotFoundError as error:
        raise ProcessLookupError(pid) from error
    match = re.search(r"^Pss:\s+(\d+) kB$", text, re.MULTILINE)
    if match is None:
        raise ProcessLookupError(pid)
    return int(match[1]) * 1024


def fixed_pss_bytes() -> int:
    """Return the PSS of roost's own processes in the current runtime folder: service, agents, zygotes and spares."""
    used = 0
    for process in processes(os.environ[RUNTIME]):
        try:
            if name_part(process.cmdline()) in OWN_PARTS:
                used += pss_bytes(process.pid)
        except (psutil.Error, ProcessLookupError):  # the process has just ended
            continue
    return used


def end_processes(runtime_dir: str, *, grace_s: float = 5.0) -> None:
    """Send SIGTERM to all of `processes(runtime_dir)`, and SIGKILL after `grace_s`."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        left = processes(runtime_dir)
        for process in left:
            try:
                process.send_signal(signum)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=grace_s)


async def start(manager: AsyncKernelManager, **options: Any) -> None:
    """Call start_kernel(). A plain kernel would print to this terminal, so its output is dropped.

    Another provisioner decides itself where the output goes, and may refuse `stdout`.
    """
    assert manager.kernel_spec is not None
    if read_provisioner(manager.kernel_spec) == PLAIN:
        options |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    await manager.start_kernel(**options)


@asynccontextmanager
async def open_client(
    manager: AsyncKernelManager, *, iopub: bool = False
) -> AsyncIterator[AsyncKernelClient]:
    """Open a client with the shell channel, and IOPub if `iopub`. Close it at the end."""
    client = manager.client()
    client.start_channels(shell=True, iopub=iopub, stdin=False, hb=False, control=False)
    try:
        yield client
    finally:
        client.stop_channels()


async def execute(client: AsyncKernelClient, code: str = "1+1", **options: Any) -> dict[str, Any]:
    """Send one execute_request and return the content of its reply; `RuntimeError` if the cell failed."""
    wanted = client.execute(code, **options)
    content = await reply_to(client, wanted)
    if content["status"] != "ok":
        raise RuntimeError(f"{code!r} failed in the kernel: {content}")
    return content


async def reply_to(client: AsyncKernelClient, message_id: str) -> dict[str, Any]:
    """Return the content of the reply to one message on the shell channel."""

    async def wait() -> dict[str, Any]:
        while True:
            message = await client.get_shell_msg(timeout=REPLY_TIMEOUT_S)
            if message["parent_header"].get("msg_id") == message_id:
                content: dict[str, Any] = message["content"]
                return content

    return await asyncio.wait_for(wait(), REPLY_TIMEOUT_S)


def make_manager(name: str, options: Mapping[str, Any], **traits: Any) -> AsyncKernelManager:
    """Return a manager of a kernelspec. `options` are settings of roost's backend, which a kernelspec cannot have."""
    config = Config(RoostProvisioner={"backend_options": dict(options)}) if options else Config()
    return AsyncKernelManager(kernel_name=name, config=config, **traits)


async def wait_until_forked(
    name: str, *, backend: str = "local", within_s: float = 60.0, options: Mapping[str, Any] | None = None
) -> bool:
    """Start and stop kernels until one is forked, which shows that a zygote is warm. Return False after `within_s`."""
    import roost

    options = options or {}
    client = roost.connect(backend, **options)
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        manager = make_manager(name, options)
        await start(manager)
        try:
            async with open_client(manager) as channel:
                await execute(channel)
            if (await client.kernel(manager.kernel_id)).how == "forked":
                return True
        finally:
            await manager.shutdown_kernel(now=True)
    return False


def elapsed_ms(since: float) -> float:
    """Return milliseconds since a `time.perf_counter()`."""
    return (time.perf_counter() - since) * 1000
