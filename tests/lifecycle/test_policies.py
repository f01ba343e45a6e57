"""Policies from a file and from a program decide real starts. A policy that fails harms no start."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kit.jupyter.kernelspecs import kernelspecs
from kit.jupyter.notebook import Notebook
from kit.machine.daemons import daemon_pids, kill, settle
from kit.machine.tiny_kernel import tiny
from roost.placement import Decision, Request, Snapshot, get_policy
from roost.scheduler.client.client import connect, disconnect
from roost.scheduler.errors import ConfigError
from roost.scheduler.messages import StartKernel
from roost.testing.deadlines import allow_s

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "first_gpu_last.py"
CONFIG = """
c.RoostLocalBackend.gpus = 2
c.RoostLocalBackend.gpu_model = "T4"
c.RoostScheduler.policies = {"mine": "policies/first_gpu_last.py:FIRST_GPU_LAST"}
c.RoostScheduler.policy_timeout_s = 20.0  # a busy machine is no failure here
"""


@pytest.fixture
def two_gpus(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Configure two GPUs, and the documentation's example as the policy `mine`. Return the runtime folder."""
    home = tmp_path / "etc"
    (home / "policies").mkdir(parents=True)
    (home / "policies" / EXAMPLE.name).write_text(EXAMPLE.read_text())
    (home / "jupyter_roost_config.py").write_text(CONFIG)
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(home))
    yield runtime_dir
    disconnect()
    settle(runtime_dir)


async def test_a_policy_from_a_file_decides_a_start(two_gpus: Path, tmp_path: Path) -> None:
    specs = kernelspecs(tmp_path, config={"gpus": 0.5, "policy": "mine"})
    notebook = Notebook("roosted")
    notebook.manager.kernel_spec_manager = specs
    await notebook.open()
    try:
        assert await notebook.value("__import__('os').environ['CUDA_VISIBLE_DEVICES']") == "'1'"
        kernel = await connect().kernel(notebook.manager.kernel_id)
        assert kernel.device_ids == ("1",)
        assert kernel.decision is not None
        assert (kernel.decision["policy"], kernel.decision["fallback"]) == ("mine", None)
        assert kernel.decision["placement"]["terms"] == {"not_the_first": 1.0}
        other = await connect().explain(Request(gpus=1, policy="balanced"))
        assert (other["policy"], other["placement"]["device_ids"]) == ("balanced", ["0"])
        # a restart stays within its lease: it needs no policy, so that none can be missing
        (tmp_path / "etc" / "policies" / EXAMPLE.name).unlink()
        kill(*daemon_pids(two_gpus, "scheduler"))
        await notebook.restart()
        assert await notebook.value("__import__('os').environ['CUDA_VISIBLE_DEVICES']") == "'1'"
    finally:
        await notebook.close()


class SecondOnly:
    """A policy that a program defines and sends to the service. It uses only the second GPU."""

    name = "second_only"

    def place(self, request: Request, snapshot: Snapshot, *, avoid: object = None) -> Decision:
        decision = get_policy("pack").place(request, snapshot)
        return _on_the_second(decision)


def _on_the_second(decision: Decision) -> Decision:
    assert decision.placement is not None, "no room"
    return replace(decision, placement=replace(decision.placement, device_ids=("1",)))


def asks(name: str) -> StartKernel:
    start = tiny(uuid.uuid4().hex)
    return replace(start, request=Request(gpus=0.5, policy=name))


def test_a_policy_of_a_program_outlives_the_service(two_gpus: Path) -> None:
    client = connect()
    with pytest.raises(ConfigError, match="unknown policy 'second'"):
        client.start(asks("second")).result(allow_s(60))
    client.add_policy("second", SecondOnly()).result(allow_s(60))
    first = client.start(asks("second")).result(allow_s(60))
    assert first.device_ids == ("1",)
    (pid,) = daemon_pids(two_gpus, "scheduler")
    kill(pid)
    second = client.start(asks("second")).result(allow_s(60))
    assert second.device_ids == ("1",)
    third = client.start(asks("second")).result(allow_s(60))  # its device is full, and it insists
    assert third.device_ids == ("0",)
    assert third.decision is not None
    assert third.decision["policy"] == "second"
    assert "it chose device '1' of" in third.decision["fallback"]
    assert "ranked by balanced, since policy second failed" in third.decision["reason"]
    for kernel in (first, second, third):
        client.stop(kernel.id).result(allow_s(60))
