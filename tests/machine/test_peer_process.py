"""The benchmark's process for another provisioner's kernels: its calls, failures, and what remains at its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.provisioning import KernelProvisionerFactory

from roost.bench.peer_process import open_processes
from roost.bench.report import Report
from roost.bench.sides import Side
from roost.bench.world import PLAIN, private_world, processes, write_kernelspec

TURNS = """
import json, os, subprocess, sys
from roost.bench.peer_process import serve
from roost.bench.sides import Side

async def add(report, side, first, second):
    print("the kernels' output")
    return first + second

async def read(report, side, name):
    return os.environ.get(name)

async def fail(report, side, count):
    for number in range(count):
        report.count_failure(side.name, f"number {number}")

async def leave(report, side):
    return subprocess.Popen(["sleep", "600"], start_new_session=True).pid

async def end(report, side):
    os._exit(0)

async def raise_error(report, side):
    raise KeyError("port")

serve(Side(**json.loads(sys.argv[1])), {
    "add": add, "read": read, "fail": fail, "leave": leave, "end": end, "raise": raise_error
})
"""
PEER = Side(name="peer, fast", kernelspec="peer", variables={"POLL": "0.05"})


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a benchmark's folder with a kernelspec of another provisioner. The module `turns` can be imported."""
    (tmp_path / "turns.py").write_text(TURNS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("POLL", raising=False)
    monkeypatch.setattr(KernelProvisionerFactory, "is_provisioner_available", lambda self, spec: True)
    with private_world({"plain": PLAIN}) as folder:
        write_kernelspec(folder / "jupyter_path" / "kernels" / "peer", "another-provisioner")
        yield folder


async def test_a_peer_has_a_process_of_its_own(root: Path) -> None:
    plain, other = Side(name="plain", kernelspec="plain"), Side(name="peer", kernelspec="peer")
    runtime_dirs = [f"{root}/r/{side.name}" for side in (PEER, other)]
    report = Report("start")
    async with open_processes([plain, PEER, other], "turns") as peers:
        assert list(peers) == ["peer, fast", "peer"]
        fast, slow = peers.values()
        assert await fast.run(report, "add", 2, 0.5) == 2.5
        assert [await peer.run(report, "read", "POLL") for peer in (fast, slow)] == ["0.05", None]
        await fast.run(report, "fail", 2)
        assert report.failures == {"peer, fast": 2}
        with pytest.raises(RuntimeError, match="peer, fast: KeyError: 'port'"):
            await fast.run(report, "raise")
        assert await fast.run(report, "add", 1, 1) == 2
        with pytest.raises(RuntimeError, match="the process for the kernels of peer has ended"):
            await slow.run(report, "end")
        assert [len(processes(name)) for name in runtime_dirs] == [1, 0]
    assert [processes(name) for name in runtime_dirs] == [[], []]


async def test_processes_that_a_turn_leaves_are_ended(root: Path) -> None:
    async with open_processes([PEER], "turns") as peers:
        left = await peers[PEER.name].run(Report("start"), "leave")
        (own,) = processes(f"{root}/r/{PEER.name}")
        assert own.pid != left


@pytest.mark.usefixtures("root")
async def test_too_many_failures_end_the_run() -> None:
    async with open_processes([PEER], "turns") as peers:
        with pytest.raises(RuntimeError, match="21 kernels of peer, fast failed; the last one: number 20"):
            await peers[PEER.name].run(Report("start"), "fail", 100)
