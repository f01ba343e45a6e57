"""Real kernels through AsyncKernelManager: their environment, their channels, and starts that fail.

The lifecycle suite (`test_kernel_lifecycle.py`) tests interrupts, restarts, exits and a killed service.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio
from jupyter_client.ioloop import AsyncIOLoopKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from traitlets.config import Config

from kit.clusters.own_machines import HOMES, kernel_pid
from kit.machine.daemons import daemon_pids, kill, wait_gone
from roost.scheduler.client.client import connect
from roost.scheduler.errors import ConfigError, KernelDied, LaunchError
from roost.testing.deadlines import allow_s, until

Specs = Callable[..., KernelSpecManager]
of_the_client = pytest.mark.backends("local", "ray", why="the same client and service on every backend")
on_both_agents = pytest.mark.backends("local", "ray", "docker", why="an agent has one node, or one kernel")


async def run(kc: Any, code: str, timeout_s: float = 180) -> dict[str, Any]:
    """Execute code and return its status, text and reply. The client must be ready."""
    texts: list[str] = []
    reply = await kc.execute_interactive(
        code,
        timeout=allow_s(timeout_s),
        output_hook=lambda message: texts.append(message["content"].get("text", "")),
        allow_stdin=False,
    )
    return {"status": reply["content"]["status"], "text": "".join(texts).strip(), "reply": reply["content"]}


@asynccontextmanager
async def kernel(
    specs: KernelSpecManager, kind: type[AsyncKernelManager] = AsyncKernelManager, **options: Any
) -> AsyncIterator[tuple[Any, Any]]:
    km = kind(kernel_name="roosted", kernel_spec_manager=specs, **options.pop("manager", {}))
    await km.start_kernel(**options)
    kc = km.client()
    kc.start_channels()
    try:
        await kc.wait_for_ready(allow_s(30))
        yield km, kc
    finally:
        kc.stop_channels()
        await km.shutdown_kernel(now=True)


async def pid_of(km: AsyncKernelManager) -> int:
    """Return the kernel's pid on this machine. On some clusters the provisioner knows only the pid on the node."""
    if km.provisioner.backend in HOMES:  # type: ignore[union-attr]
        return kernel_pid(km.kernel_id)
    info = await km.provisioner.get_provisioner_info()  # type: ignore[union-attr]
    return int(info["pid"])


async def test_start_execute_shut_down(specs_of: Specs, backend: str, tmp_path: Path) -> None:
    specs = specs_of(config={"environment": ["MINE"]})
    async with kernel(specs, cwd=str(tmp_path), env={**os.environ, "MINE": "yes"}) as (km, kc):
        found = await run(
            kc, "import os; print(os.getcwd(), os.environ['MINE'], os.environ.get('JPY_PARENT_PID'))"
        )
        folder = HOMES.get(backend, tmp_path)
        assert found["text"] == f"{folder} yes 1"
        pid = await pid_of(km)
        inner_pid = int((await run(kc, "print(os.getpid())"))["text"])
        assert inner_pid == (await km.provisioner.get_provisioner_info())["pid"]
        assert not wait_gone(pid, 0)
        assert [one.id for one in await connect(backend).kernels()] == [km.kernel_id]
        await km.shutdown_kernel()
        assert wait_gone(pid, 0)


@on_both_agents
async def test_the_connection_file_has_the_kernels_id(specs: KernelSpecManager) -> None:
    """Notebooks find their kernel's id in its name, as with plain Jupyter. So do packages such as ipynbname."""
    async with kernel(specs) as (km, kc):
        found = await run(
            kc, "import ipykernel, os; print(os.path.basename(ipykernel.get_connection_file()))"
        )
        assert found["text"] == f"kernel-{km.kernel_id}.json"


async def test_a_killed_kernel_is_restarted_by_jupyters_restarter(specs: KernelSpecManager) -> None:
    """Its client finds the new process on the old ports, as with plain Jupyter."""
    config = Config({"KernelRestarter": {"time_to_dead": 0.2}})
    async with kernel(specs, AsyncIOLoopKernelManager, manager={"config": config}) as (km, kc):
        restarted = asyncio.Event()
        km.add_restart_callback(restarted.set)
        pid = await pid_of(km)
        os.kill(pid, signal.SIGKILL)
        await asyncio.wait_for(restarted.wait(), allow_s(60))

        async def is_back() -> bool:  # the restarter reports no more
            return await pid_of(km) != pid and await km.is_alive()

        await until(is_back, "the kernel has another process", 60, 0.02)
        await asyncio.wait_for(asyncio.shield(km.ready), allow_s(60))
        await kc.wait_for_ready(allow_s(30))
        assert (await run(kc, "print(1)"))["text"] == "1"


@on_both_agents
async def test_a_plain_subscriber_receives_nothing_from_encrypted_channels(specs: KernelSpecManager) -> None:
    async with kernel(specs) as (km, kc):
        assert km.curve_publickey
        context = zmq.asyncio.Context()
        plain = context.socket(zmq.SUB)
        plain.subscribe(b"")
        plain.connect(f"tcp://{km.ip}:{km.iopub_port}")
        try:
            for _ in range(5):
                assert (await run(kc, "print('secret')"))["text"] == "secret"
            assert not await plain.poll(300)
        finally:
            plain.close(0)
            context.term()


@pytest.mark.backends(
    "local", "ray", "kubernetes", why="SSH hosts refuse it; an agent has one node, or one kernel"
)
async def test_encryption_can_be_switched_off(specs_of: Specs) -> None:
    async with kernel(specs_of(config={"encrypt": "never"})) as (km, kc):
        assert km.curve_publickey is None
        assert (await run(kc, "print(1)"))["text"] == "1"


@pytest.mark.backends("ssh")
async def test_a_kernel_without_encryption_is_refused_where_others_could_read_it(specs_of: Specs) -> None:
    with pytest.raises(ConfigError, match="encrypt"):
        async with kernel(specs_of(config={"encrypt": "never"})):
            pass


@pytest.mark.backends("local", why="sockets of this machine are out of reach on another")
async def test_ipc(specs: KernelSpecManager) -> None:
    async with kernel(specs, manager={"transport": "ipc"}) as (km, kc):
        assert (await run(kc, "print(1)"))["text"] == "1"
        await km.restart_kernel(now=True)
        await kc.wait_for_ready(allow_s(30))
        assert (await run(kc, "print(2)"))["text"] == "2"


@pytest.mark.backends("local", why="elsewhere such a kernel can only be warned of")
async def test_other_users_cannot_reach_an_ipykernel_without_curve(
    backend_runtime_dir: Path, specs_of: Specs, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.provisioners.encryption.find_ipykernel_version", lambda _: (6, 29))
    specs = specs_of(metadata={"supported_encryption": []})
    async with kernel(specs) as (km, kc):
        for number in (1, 2):
            assert (await run(kc, f"print({number})"))["text"] == str(number)
            connection = (await connect(backend).kernel(km.kernel_id)).connection
            assert (connection.transport, connection.curve_publickey) == ("ipc", None)
            folder = Path(connection.ip).parent
            assert backend_runtime_dir in folder.parents
            assert folder.stat().st_mode & 0o777 == 0o700
            await km.restart_kernel(now=True)
            await kc.wait_for_ready(allow_s(30))


@on_both_agents
async def test_a_kernelspec_that_is_not_forked(specs_of: Specs, backend: str) -> None:
    async with kernel(specs_of(config={"fork": False, "cpus": 0.5, "memory": "64MiB"})) as (
        km,
        kc,
    ):
        found = await connect(backend).kernel(km.kernel_id)
        assert found.how == "exec"
        assert found.request.cpus == 0.5
        assert (await run(kc, "print(1)"))["text"] == "1"
        assert "Ctrl-C" not in await connect(backend).logs(km.kernel_id)


async def test_an_exit_while_no_service_lives_is_found(
    backend_runtime_dir: Path, specs: KernelSpecManager
) -> None:
    async with kernel(specs) as (km, _):
        (pid,) = daemon_pids(backend_runtime_dir, "scheduler")
        kill(pid)
        os.kill(await pid_of(km), signal.SIGKILL)
        assert await asyncio.wait_for(km.provisioner.wait(), allow_s(60)) in (-signal.SIGKILL, 255)


@of_the_client
async def test_a_refused_start_does_not_harm_the_kernel_of_that_id(specs: KernelSpecManager) -> None:
    async with kernel(specs) as (km, kc):
        other = AsyncKernelManager(kernel_name="roosted", kernel_spec_manager=specs)
        with pytest.raises(LaunchError, match="still runs"):
            await other.start_kernel(kernel_id=km.kernel_id)
        assert (await run(kc, "print('still here')"))["text"] == "still here"


async def test_a_kernel_that_dies_while_starting(specs_of: Specs) -> None:
    argv = ["/bin/sh", "-c", "echo 'no such thing' >&2; exit 3", "{connection_file}"]
    broken = specs_of(argv=argv)
    km = AsyncKernelManager(kernel_name="roosted", kernel_spec_manager=broken)
    with pytest.raises(KernelDied, match="no such thing") as caught:
        await asyncio.wait_for(km.start_kernel(), allow_s(60))
    assert caught.value.fields["exit_code"] == 3
    assert not km.has_kernel


@on_both_agents
async def test_a_missing_command(specs_of: Specs, backend: str) -> None:
    broken = specs_of(argv=["/no/such/kernel", "{connection_file}"])
    km = AsyncKernelManager(kernel_name="roosted", kernel_spec_manager=broken)
    with pytest.raises(LaunchError, match="/no/such/kernel") as caught:
        await asyncio.wait_for(km.start_kernel(), allow_s(60))
    assert isinstance(caught.value, FileNotFoundError) == (backend == "local")


async def test_a_start_cancelled_half_way_leaves_nothing(specs: KernelSpecManager, backend: str) -> None:
    for delay_s in (0.0, 0.005, 0.02, 0.05, 0.1, 0.2):
        km = AsyncKernelManager(kernel_name="roosted", kernel_spec_manager=specs)
        try:
            await asyncio.wait_for(km.start_kernel(), delay_s)
        except asyncio.TimeoutError:
            pass
        if (
            km.has_kernel
        ):  # it was quicker, or jupyter_client was cancelled after the provisioner had finished
            await km.shutdown_kernel(now=True)
        # A withdrawal may return before its kernel's record has gone.
        end = time.monotonic() + min(allow_s(2), 8)
        while left := await connect(backend).kernels():
            assert time.monotonic() < end, left
            await asyncio.sleep(0.05)
