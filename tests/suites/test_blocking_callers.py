"""Real kernels for callers without an event loop, with several loops, in threads and in Papermill."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager, MultiKernelManager
from jupyter_core.utils import ensure_event_loop

from kit.jupyter.notebook_runs import run_papermill
from roost.scheduler.client.client import connect
from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.backends("local", "ray", why="the same client on every backend")


def blocking(specs: KernelSpecManager) -> KernelManager:
    return KernelManager(kernel_name="roosted", kernel_spec_manager=specs)


def compute(km: KernelManager) -> str:
    """Return 1 + 1, computed by the manager's kernel."""
    kc = km.client()
    kc.start_channels()
    try:
        kc.wait_for_ready(allow_s(30))
        reply = kc.execute("", user_expressions={"it": "1 + 1"}, reply=True, timeout=allow_s(30))
        return str(reply["content"]["user_expressions"]["it"]["data"]["text/plain"])
    finally:
        kc.stop_channels()


def test_the_blocking_manager(specs: KernelSpecManager) -> None:
    km = blocking(specs)
    km.start_kernel()
    assert compute(km) == "2"
    km.restart_kernel()
    assert compute(km) == "2"
    km.shutdown_kernel()
    assert not km.is_alive()


def test_the_blocking_manager_within_a_running_loop(specs: KernelSpecManager) -> None:
    async def as_in_a_notebook() -> str:
        km = blocking(specs)
        km.start_kernel()
        try:
            return await asyncio.to_thread(compute, km)
        finally:
            km.shutdown_kernel(now=True)

    assert asyncio.run(as_in_a_notebook()) == "2"


def test_several_threads(specs: KernelSpecManager) -> None:
    found: list[str] = []

    def one() -> None:
        km = blocking(specs)
        km.start_kernel()
        found.append(compute(km))
        km.shutdown_kernel(now=True)
        ensure_event_loop().close()  # jupyter_core keeps a loop for each thread and never closes it

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(allow_s(60))
    assert found == ["2"] * 3


def test_one_manager_in_several_loops(specs: KernelSpecManager) -> None:
    km = AsyncKernelManager(kernel_name="roosted", kernel_spec_manager=specs)
    asyncio.run(km.start_kernel())
    assert asyncio.run(km.is_alive())
    asyncio.run(km.shutdown_kernel(now=True))


def test_many_kernels_of_one_multi_kernel_manager(specs: KernelSpecManager, tmp_path: Path) -> None:
    kernels = MultiKernelManager(kernel_spec_manager=specs, connection_dir=str(tmp_path))
    ids = [kernels.start_kernel(kernel_name="roosted") for _ in range(2)]
    assert all(kernels.is_alive(kernel_id) for kernel_id in ids)
    kernels.shutdown_all(now=True)
    assert len(kernels) == 0


async def test_many_kernels_of_one_async_multi_kernel_manager(
    specs: KernelSpecManager, backend: str, tmp_path: Path
) -> None:
    kernels = AsyncMultiKernelManager(kernel_spec_manager=specs, connection_dir=str(tmp_path))
    ids = await asyncio.gather(*(kernels.start_kernel(kernel_name="roosted") for _ in range(3)))
    assert len(set(ids)) == 3
    assert {kernel.id for kernel in await connect(backend).kernels()} == set(ids)
    await kernels.shutdown_all()


def test_papermill(specs: KernelSpecManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert run_papermill("print(6 * 7)", tmp_path) == "42\n"


def test_an_interpreter_that_ends_does_not_hang(specs: KernelSpecManager, backend: str) -> None:
    code = "import logging; logging.getLogger('asyncio').setLevel('ERROR'); "  # it logs what takes more than 0.1 s
    code += f"import roost; print(len(roost.connect({backend!r}).nodes().result(60)) > 0)"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=allow_s(20),
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)
