"""Policies from a file and from a program decide real starts. A policy that fails harms no start."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from kit.jupyter.kernelspecs import kernelspecs
from kit.jupyter.notebook import Notebook
from kit.machine.daemons import daemon_pids, kill, settle, wait_gone
from kit.machine.tiny_kernel import tiny
from roost.placement import Decision, Request, Snapshot, get_policy
from roost.scheduler.client.client import connect, disconnect
from roost.scheduler.errors import ConfigError
from roost.scheduler.messages import Kernel, StartKernel
from roost.testing.deadlines import allow_s

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
CONFIG = """
c.RoostLocalBackend.gpus = 2
c.RoostLocalBackend.gpu_model = "T4"
c.RoostScheduler.policies = {
    "mine": "policies/first_gpu_last.py:FIRST_GPU_LAST", "few": "policies/few_of_one_user.py:few_of_one_user"
}
c.RoostScheduler.policy_timeout_s = 20.0  # a busy machine is no failure here
"""


@pytest.fixture
def two_gpus(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Configure two GPUs, and the documentation's examples as policies. Return the runtime folder."""
    home = tmp_path / "etc"
    (home / "policies").mkdir(parents=True)
    for name in ("first_gpu_last.py", "few_of_one_user.py"):
        (home / "policies" / name).write_text((EXAMPLES / name).read_text())
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
        (tmp_path / "etc" / "policies" / "first_gpu_last.py").unlink()
        kill(*daemon_pids(two_gpus, "scheduler"))
        await notebook.restart()
        assert await notebook.value("__import__('os').environ['CUDA_VISIBLE_DEVICES']") == "'1'"
    finally:
        await notebook.close()


HOLDS = """
import ctypes
import numpy as np
from roost.placement import Pipeline

class HoldsThenHolds:
    name, needs_metrics = "holds", False
    calls = 0
    def score(self, request, snapshot):
        self.calls += 1
        if self.calls > 1:  # the reasons behind the decision
            ctypes.PyDLL(None).sleep(1_000)  # a C call that never lets go of the interpreter
        return np.zeros(len(snapshot))

HOLDS = Pipeline(name="holds", scorers=((HoldsThenHolds(), 1.0),))
"""


def test_a_policy_that_never_returns_delays_nobody(two_gpus: Path, tmp_path: Path) -> None:
    (tmp_path / "etc" / "policies" / "holds.py").write_text(HOLDS)
    (tmp_path / "etc" / "jupyter_roost_config.py").write_text(
        'c.RoostScheduler.policies = {"late": "policies/holds.py:HOLDS"}\nc.RoostScheduler.policy_timeout_s = 3.0\n'
    )
    client = connect()
    late = client.explain(Request(policy="late"))
    kernel = client.start(tiny("k")).result(allow_s(60))
    assert client.explain(Request(policy="pack")).result(allow_s(60))["fallback"] is None
    assert "policy late did not answer within 3 s" in late.result(allow_s(60))["fallback"]
    client.stop(kernel.id).result(allow_s(60))
    again = client.explain(Request(policy="late"))
    (pid,) = daemon_pids(two_gpus, "scheduler")
    children = psutil.Process(pid).children(recursive=True)
    os.kill(pid, signal.SIGTERM)
    assert wait_gone(pid, 5), "the service does not end while a policy holds its interpreter"
    assert not [child for child in children if not wait_gone(child.pid, 5)]
    # If the service has ended before it read the question, the client starts the next one, which must be there to end.
    assert again.result(allow_s(60))["fallback"]


@pytest.mark.parametrize("amounts", [{}, {"cpus": 0.01}])
async def test_at_most_three_kernels_of_one_user_run_on_a_node(
    two_gpus: Path, amounts: dict[str, float]
) -> None:
    """The starts of one user come at once. Those of another user do not wait behind them."""
    client, request = connect(), Request(policy="few", **amounts)  # type: ignore[arg-type]

    async def start(user: str) -> Kernel:
        one = tiny()
        return await client.start(replace(one, request=request, owner=replace(one.owner, user=user)))

    async def wait_for(count: int) -> list[Kernel]:
        """Wait until that many kernels of Ada run."""
        while sum(each.done() for each in ada) < count:
            pending = [each for each in ada if not each.done()]
            done, _ = await asyncio.wait(pending, timeout=allow_s(60), return_when=asyncio.FIRST_COMPLETED)
            assert done
        return [each.result() for each in ada if each.done()]

    ada = [asyncio.ensure_future(start("ada")) for _ in range(5)]
    running = await wait_for(3)
    bob = await start("bob")
    assert bob.decision is not None
    assert "policy few" not in (bob.decision["fallback"] or "")
    (node,) = await client.nodes()
    assert node["owners"] == {"ada": 3, "bob": 1}
    waiting = [kernel for kernel in await client.kernels() if kernel.state == "queued"]
    assert {kernel.position for kernel in waiting} == {1, 2}
    assert all("runs 3 kernels of ada" in kernel.waits_for for kernel in waiting)
    await client.stop(running[0].id)
    await wait_for(4)
    (node,) = await client.nodes()
    assert node["owners"] == {"ada": 3, "bob": 1}
    for kernel in await client.kernels():
        await client.stop(kernel.id)
    await asyncio.gather(*ada, return_exceptions=True)


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
