"""Kernels get GPUs out of those that their application may use. A stand-in for the driver has four GPUs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import roost
from kit.machine.daemons import settle
from roost.scheduler.cli.main import main
from roost.scheduler.client.client import disconnect
from roost.scheduler.errors import NoNodeEver

CUDA, ROCR = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"
NVML = """
from types import SimpleNamespace

NVML_DEVICE_MIG_ENABLE = 1
class NVMLError(Exception):
    pass
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return 4
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetMigMode(gpu): raise NVMLError()
def nvmlDeviceGetComputeRunningProcesses(gpu): return []
def nvmlDeviceGetMemoryInfo(gpu): return SimpleNamespace(total=80 << 30, used=0)
def nvmlDeviceGetUtilizationRates(gpu): return SimpleNamespace(gpu=0)
def nvmlDeviceGetUUID(gpu): return f"GPU-{gpu}0000000-aaaa"
def nvmlDeviceGetName(gpu): return "NVIDIA A100"
"""
SHOW = "{name: value[:5] for name, value in __import__('os').environ.items() if name.endswith('_VISIBLE_DEVICES')}"
EXPLAIN = """
import json, subprocess, sys
shown = subprocess.run([sys.executable, "-m", "roost", "explain", "--gpus", "1", "--json"], capture_output=True)
json.loads(shown.stdout)["decision"]["placement"]["device_ids"][0][:5]
"""


@pytest.fixture
def four_gpus(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.MonkeyPatch]:
    """Let roost find four GPUs. Return a patch of the application's variables."""
    (tmp_path / "pynvml.py").write_text(NVML)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    for name in (CUDA, ROCR):
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    disconnect()
    settle(runtime_dir)


def show(**options: object) -> dict[str, str]:
    with roost.start_kernel(gpus=1, backend="local", **options) as kernel:
        return dict(eval(kernel.execute(SHOW).text))


def test_each_application_has_its_own_gpus(
    four_gpus: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show() == {CUDA: "GPU-0"}
    for visible, given in (
        ("2,3", "GPU-2"),
        ("GPU-30000000-aaaa", "GPU-3"),
        ("GPU-1,0", "GPU-0"),
        ("1,-1,0", "GPU-1"),
    ):
        four_gpus.setenv(CUDA, visible)
        assert show() == {CUDA: given}, visible
    assert show(env={CUDA: "3"}) == {CUDA: "GPU-3"}, "its kernelspec says so"
    four_gpus.setenv(CUDA, "")
    with pytest.raises(NoNodeEver, match=r"1 GPU of the application's \(none\)"):
        show()
    assert main(["explain", "--gpus", "1"]) == 1
    assert main(["nodes"]) == 0
    shown = capsys.readouterr().out
    assert "needs 1 GPU of the application's (none), has none" in shown
    assert f"{CUDA} lets kernels use these GPUs alone: none." in " ".join(shown.split())
    four_gpus.delenv(CUDA)
    four_gpus.setenv(ROCR, "2")
    assert show() == {ROCR: "GPU-2"}


def test_a_kernel_that_starts_a_kernel_lets_it_use_the_gpus_of_their_application(
    four_gpus: pytest.MonkeyPatch,
) -> None:
    four_gpus.setenv(CUDA, "2,3")
    with (
        roost.start_kernel(gpus=1, backend="local") as outer,
        roost.start_kernel(backend="local") as without,
    ):
        assert outer.device_ids == ("GPU-20000000-aaaa",)
        for kernel in (outer, without):
            assert json.loads(kernel.execute(EXPLAIN, check=True).text.replace("'", '"')) == "GPU-3"
        code = f"import os; os.environ[{CUDA!r}] = '0'\n{EXPLAIN}"
        assert "GPU-0" in outer.execute(code, check=True).text
