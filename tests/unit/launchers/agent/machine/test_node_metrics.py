"""The size and use of a machine or container, from files as Linux writes them. GPUs, from an NVML that may hang."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from roost.launchers.agent.leases.ledger import LeaseLedger
from roost.launchers.agent.machine.gpus import WAIT_S, DeviceReader
from roost.launchers.agent.machine.node_metrics import NodeMetrics, find_cgroups, measure_used_memory
from roost.launchers.machine_book.rules import MachineRules
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.testing.deadlines import allow_s

FILES = {
    "v2": {
        "cpu.max": "50000 100000",
        "memory.max": "1000000",
        "memory.current": "700000",
        "memory.stat": "anon 5\ninactive_file 300000\n",
    },
    "v1": {
        "cpu/cpu.cfs_quota_us": "50000",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "1000000",
        "memory/memory.usage_in_bytes": "700000",
        "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 300000\n",
    },
}
OWN = {
    "v2": "0::/docker/abc\n",
    "v1": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n3:pids:/docker/abc\n",
}


def write_cgroups(folder: Path, own: str, files: dict[str, str]) -> list[Path]:
    """Write the files of cgroups, and return the cgroups of `own`, a text like that of /proc/self/cgroup."""
    (folder / "own").write_text(own)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    return find_cgroups(folder / "own", folder)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_container_is_as_large_as_its_limits(version: str, tmp_path: Path) -> None:
    cgroups = write_cgroups(tmp_path, OWN[version], FILES[version])
    measured = NodeMetrics(AgentSettings(gpus=0), cgroups=cgroups)
    assert (measured.cpus, measured.memory_bytes) == (0.5, 1_000_000)
    ledger = LeaseLedger(tmp_path / "l", cpus=1, memory_bytes=1, devices=())
    assert measured.status(ledger).memory_used_bytes == 400_000


def test_without_limits_the_machine_counts(tmp_path: Path) -> None:
    free = {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000", "memory.max": "max"}
    measured = NodeMetrics(
        AgentSettings(gpus=0), cgroups=write_cgroups(tmp_path, OWN["v1"] + OWN["v2"], free)
    )
    assert measured.cpus >= 1
    assert measured.memory_bytes == psutil.virtual_memory().total
    assert measure_used_memory(None) > 1_000_000


class Nvml:
    """A stand-in for `pynvml`, with one GPU for each UUID. No call returns while `answers` is clear."""

    NVML_DEVICE_MIG_ENABLE = 1
    NVMLError = RuntimeError

    def __init__(self, *uuids: str | None) -> None:
        self.uuids = list(uuids)
        self.answers = threading.Event()
        self.answers.set()

    def nvmlInit(self) -> None:  # noqa: N802
        self.answers.wait()

    def nvmlShutdown(self) -> None:  # noqa: N802
        assert self.answers.is_set()

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self.answers.wait()
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetMigMode(self, gpu: int) -> tuple[int, int]:  # noqa: N802
        raise self.NVMLError("not supported")

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=100, used=10)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: int) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=7, usedGpuMemory=5), SimpleNamespace(pid=8 + gpu, usedGpuMemory=None)]

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpu=50)

    def nvmlDeviceGetUUID(self, gpu: int) -> str:  # noqa: N802
        uuid = self.uuids[gpu]
        if uuid is None:
            raise self.NVMLError("not supported")
        return uuid

    def nvmlDeviceGetName(self, gpu: int) -> bytes:  # noqa: N802
        return b"T4"


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nvml]:
    fake = Nvml("GPU-a", "GPU-b")
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
    yield fake
    fake.answers.set()


def test_gpus_that_hang_keep_their_last_state(nvml: Nvml, tmp_path: Path) -> None:
    measured = NodeMetrics(AgentSettings(cpus=1, memory_bytes=1), max_age_s=0.0)
    ledger = LeaseLedger(tmp_path, cpus=1, memory_bytes=1, devices=measured.devices.read())
    before = measured.status(ledger)
    assert [(device.id, device.used) for device in before.devices] == [("GPU-a", 0.5), ("GPU-b", 0.5)]
    for reading in [thread for thread in threading.enumerate() if thread.name == "nvml"]:
        reading.join(allow_s(60))  # of the first status, which waits for a while only
    nvml.answers.clear()
    read_at = measured.devices.read_at
    after = measured.status(ledger)
    assert after.devices == before.devices
    assert measured.devices.read_at == read_at
    assert after.metrics_age_s is not None
    assert after.metrics_age_s >= WAIT_S
    measured.devices.close()  # does not wait, either
    nvml.answers.set()


def test_the_gpu_memory_of_processes_is_summed(nvml: Nvml) -> None:
    reader = DeviceReader()
    assert reader.memory_by_pid == {7: 10, 8: 0, 9: 0}
    reader.close()


def test_gpus_that_answer_too_late_are_not_used(nvml: Nvml, tmp_path: Path) -> None:
    nvml.answers.clear()
    measured = NodeMetrics(AgentSettings(), devices=DeviceReader(first_wait_s=0.05))
    ledger = LeaseLedger(tmp_path, cpus=1, memory_bytes=1, devices=measured.devices.read())
    nvml.answers.set()
    for thread in threading.enumerate():
        if thread.name == "nvml":
            thread.join(allow_s(60))
    assert len(measured.devices.read()) == 2
    assert measured.status(ledger).devices == (), "devices that the ledger does not know are not offered"
    measured.devices.close()


def test_gpus_without_a_unique_id_are_named_by_index(nvml: Nvml) -> None:
    nvml.uuids = ["GPU-a", None, "", "GPU-a"]
    found = DeviceReader()
    assert [device.id for device in found.read()] == ["GPU-a", "1", "2", "3"]
    found.close()


def test_declared_gpus_are_not_measured(nvml: Nvml) -> None:
    nvml.answers.clear()
    declared = DeviceReader(2, "T4")
    assert [(device.id, device.model, device.used) for device in declared.read()] == [
        ("0", "T4", None),
        ("1", "T4", None),
    ]


def test_users_of_one_machine_call_a_gpu_by_the_name_that_nvml_gives_it(nvml: Nvml) -> None:
    """A user's configuration lowers their number, and names none."""
    for declared, expected in ((None, ["GPU-a", "GPU-b"]), (1, ["GPU-a"]), (7, ["GPU-a", "GPU-b"]), (0, [])):
        reader = DeviceReader(declared, is_shared=True)
        assert [device.id for device in reader.read()] == expected
        assert [device.used for device in reader.read()] == [0.5] * len(expected)
        reader.close()


def test_root_declares_the_gpus_of_all_users(nvml: Nvml) -> None:
    reader = DeviceReader(None, "H100", ids=["GPU-b", "GPU-z"], is_shared=True)
    found = [(device.id, device.model, device.used) for device in reader.read()]
    assert found == [("GPU-b", "T4", 0.5), ("GPU-z", "H100", None)]
    reader.close()


def test_a_user_declares_gpus_by_index_only_where_nvml_has_none(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.answers.clear()
    reader = DeviceReader(2, is_shared=True, first_wait_s=0.05)
    assert reader.read() == (), "they may have other names"
    nvml.answers.set()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert [device.id for device in DeviceReader(2, is_shared=True).read()] == ["0", "1"]


@pytest.mark.parametrize(
    ("visible", "changes", "expected"),
    [
        ("1", {}, ["GPU-b"]),
        ("GPU-a", {}, ["GPU-a"]),
        ("", {}, []),
        ("1", {"divides_machine": False, "gpu_visibility": "locks"}, ["GPU-b"]),
        ("1", {"is_remote": False}, ["GPU-a", "GPU-b"]),  # the request has the application's own
        ("1", {"gpu_visibility": "inherit"}, ["GPU-a", "GPU-b"]),
        ("1", {"gpu_visibility": "manager"}, ["GPU-a", "GPU-b"]),
    ],
)
def test_an_agent_on_another_machine_has_the_gpus_that_its_login_may_use(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch, visible: str, changes: dict[str, Any], expected: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    settings = AgentSettings(**{"is_remote": True, "divides_machine": True, **changes})
    reader = NodeMetrics(settings).devices
    assert [device.id for device in reader.read()] == expected
    reader.close()


class MigNvml(Nvml):
    """A stand-in with two GPUs, of which the first has two slices."""

    def nvmlDeviceGetMigMode(self, gpu: Any) -> tuple[int, int]:  # noqa: N802
        return (int(gpu == 0), 0)

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: Any) -> int:  # noqa: N802
        return 3

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: Any, slot: int) -> str:  # noqa: N802
        if slot == 2:
            raise self.NVMLError("not found")
        return f"MIG-{slot}"

    def nvmlDeviceGetUUID(self, gpu: Any) -> str:  # noqa: N802
        return gpu if isinstance(gpu, str) else super().nvmlDeviceGetUUID(gpu)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: Any) -> list[SimpleNamespace]:  # noqa: N802
        return []


def test_the_gpu_of_each_slice_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", MigNvml("GPU-a", "GPU-b"))  # type: ignore[arg-type]
    reader = DeviceReader(is_shared=True)
    assert [device.id for device in reader.read()] == ["MIG-0", "MIG-1", "GPU-b"]
    assert [device.names for device in reader.read()] == [("0", "GPU-a"), ("0", "GPU-a"), ("1",)]
    assert reader.parents == {"MIG-0": "GPU-a", "MIG-1": "GPU-a"}
    reader.close()


@pytest.mark.parametrize(("own", "expected"), [(None, 8), (64, 8), (3, 3)])
def test_a_user_can_only_lower_the_totals_of_root(
    monkeypatch: pytest.MonkeyPatch, own: float | None, expected: float
) -> None:
    rules = MachineRules(cpus=8, memory=100)
    monkeypatch.setattr("roost.launchers.agent.machine.node_metrics.read_rules", lambda: rules)
    measured = NodeMetrics(AgentSettings(cpus=own, memory_bytes=1000, gpus=0, divides_machine=True))
    assert (measured.cpus, measured.memory_bytes) == (expected, 100)
