"""Kernels on a real NVIDIA GPU: what roost reads from the driver, and how kernels share the GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import roost
from kit.machine.daemons import daemon_pids
from kit.machine.real_gpus import CUDA, ask, why_not
from roost.launchers.agent.machine.gpus import DeviceReader
from roost.launchers.agent.machine.nvml import list_gpus
from roost.provisioners.kernel_object import BlockingKernel
from roost.scheduler.client.client import connect
from roost.scheduler.errors import RoostError
from roost.testing.deadlines import allow_s, until_blocking

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
MIB = 1 << 20


@pytest.fixture
def burning() -> Iterator[subprocess.Popen[str]]:
    """Run a program, which roost knows nothing of, that keeps the first GPU busy."""
    program = CUDA + "burn(1024)\nprint('burns', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "burns\n"
        yield process
        process.kill()


def configure(folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, dict[str, Any]]) -> None:
    """Give the service that starts next these settings."""
    config = folder / "config" / "jupyter_roost_config.json"
    config.parent.mkdir()
    config.write_text(json.dumps(settings))
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(config.parent))


def start(gpus: float, **options: Any) -> BlockingKernel:
    kernel = roost.start_kernel("python3", backend="local", gpus=gpus, **options)
    run(kernel, CUDA)
    return kernel


def run(kernel: BlockingKernel, code: str) -> str:
    answer = kernel.execute(code, timeout_s=120)
    assert answer.error is None, answer.error
    return answer.text


def devices() -> list[dict[str, Any]]:
    (node,) = connect("local").nodes().result(allow_s(20))
    return list(node["devices"])


def test_the_driver_and_roost_agree(burning: subprocess.Popen[str]) -> None:
    reader = DeviceReader()
    assert reader.read_at < time.monotonic()
    (uuid, name, total), *_ = ask("uuid,name,memory.total")
    first, *_ = reader.read(10)
    assert (first.id, first.model) == (uuid, name)
    assert first.memory_bytes == pytest.approx(int(total) * MIB, rel=0.01)
    assert first.memory_used_bytes is not None
    assert first.memory_used_bytes >= 1024 * MIB
    until_blocking(lambda: (reader.read(10)[0].used or 0) > 0.5, "the GPU looks busy")
    assert reader.memory_by_pid[burning.pid] >= 1024 * MIB
    reader.close()


async def test_the_ids_are_the_same_without_pynvml() -> None:
    assert [[device.id] for device in await list_gpus()] == ask("uuid")


def test_a_kernel_sees_the_gpus_that_it_was_given_and_no_others(settled_runtime_dir: Path) -> None:
    with start(1) as one, start(0) as none:
        assert run(one, "count()") == "1"
        assert run(one, "import os; os.environ['CUDA_VISIBLE_DEVICES']") == repr(ask("uuid")[0][0])
        assert "cuInit: 100" in str(none.execute("count()").error), "100 is CUDA_ERROR_NO_DEVICE"


def test_kernels_share_a_gpu_and_roost_knows_who_uses_it(settled_runtime_dir: Path) -> None:
    with start(0.5) as small, start(0.5) as large:
        run(small, "held = hold(1000)")
        run(large, "held = hold(4000)")
        client = connect("local")

        def memory(kernel: BlockingKernel) -> int:
            use = client.kernel(kernel.id, with_use=True).result(allow_s(20)).use
            return use.gpu_memory_bytes if use is not None else 0

        until_blocking(lambda: memory(large) >= 4000 * MIB, "the memory of a kernel on the GPU is known")
        assert 1000 * MIB <= memory(small) < 2500 * MIB
        assert devices()[0]["promised"] == 1.0
        if len(ask("uuid")) == 1:
            with pytest.raises(RoostError, match=r"needs 0\.5 GPU, 0 free"):
                start(0.5, timeout_s=2)


def test_the_memory_of_a_killed_kernel_is_free(settled_runtime_dir: Path) -> None:
    (before,), *_ = ask("memory.used")
    with start(1) as kernel:
        run(kernel, "held = hold(8000)")
        assert int(ask("memory.used")[0][0]) >= int(before) + 8000
        process = connect("local").kernel(kernel.id).result(allow_s(20)).process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        until_blocking(lambda: int(ask("memory.used")[0][0]) < int(before) + 1000, "the GPU's memory is free")


def test_no_process_of_roost_uses_the_gpu(settled_runtime_dir: Path) -> None:
    with start(1) as kernel:
        run(kernel, "held = hold(100)")
        process = connect("local").kernel(kernel.id).result(allow_s(20)).process
        assert process is not None
        users = {int(pid) for (pid,) in ask("pid", of="compute-apps")}
        assert process.pid in users
        assert not users & {
            *daemon_pids(settled_runtime_dir, "agent"),
            *daemon_pids(settled_runtime_dir, "scheduler"),
        }


def test_explain_says_that_others_keep_the_gpu_busy(
    settled_runtime_dir: Path, burning: subprocess.Popen[str]
) -> None:
    until_blocking(
        lambda: (connect("local").up().result(allow_s(60)), devices()[0]["used"])[1],
        "the GPU looks busy",
    )
    command = [sys.executable, "-m", "roost", "explain", "--gpus", "1", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=allow_s(60))
    assert json.loads(done.stdout)["decision"]["placement"]["terms"]["not_busy"] < 5


def test_a_kernel_whose_gpu_works_is_not_idle(
    settled_runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(settled_runtime_dir, monkeypatch, {"RoostScheduler": {"idle_gpu_after_s": 5}})
    with start(1) as kernel:
        run(kernel, "is_over = burn(1024)")
        time.sleep(15)
        client = connect("local")
        assert client.kernel(kernel.id).result(allow_s(20)).state == "running"
        run(kernel, "is_over.set()")
        until_blocking(
            lambda: client.kernel(kernel.id).result(allow_s(20)).state == "exited",
            "the idle kernel ends",
        )
        assert client.kernel(kernel.id).result(allow_s(20)).reason == "culled: idle for longer than 5 s"


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed here")
@pytest.mark.timeout(900)
def test_torch_is_loaded_before_the_fork_and_cuda_after_it(
    settled_runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(settled_runtime_dir, monkeypatch, {"RoostLocalBackend": {"preload": ["torch"]}})

    def is_forked_with_torch() -> bool:
        with start(0.5) as kernel:
            loaded = run(kernel, "import sys; 'torch' in sys.modules")
            how = connect("local").kernel(kernel.id).result(allow_s(20)).how
        return (loaded, how) == ("True", "forked")

    until_blocking(is_forked_with_torch, "a kernel is forked with torch", 300, 0.1)
    with start(0.5) as first, start(0.5) as second:
        for kernel in (first, second):
            began = time.monotonic()
            run(kernel, "import torch; x = torch.ones(1000, 1000, device='cuda')")
            assert run(kernel, "float((x @ x).sum())") == "1000000000.0"
            print(f"first product on the GPU after {time.monotonic() - began:.2f} s")
            assert run(kernel, "torch.cuda.device_count()") == "1"
