"""What prologues have changed is remembered for each host, and read again when it may be others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from roost.scheduler.backends.ssh.open_ssh import HostProblem
from roost.scheduler.backends.ssh.prologues import KernelPrologues
from roost.scheduler.errors import LaunchError


class Hosts:
    """Pretended hosts. `answer` is that of all of them; `gate` holds it back."""

    def __init__(self) -> None:
        self.answer: Any = {"variables": {"A": "1"}}
        self.asked: list[tuple[str, str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.now = 0.0

    async def read(self, host: str, prologue: str) -> Any:
        self.asked.append((host, prologue))
        await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
async def hosts() -> Hosts:
    return Hosts()


@pytest.fixture
def prologues(hosts: Hosts) -> KernelPrologues:
    return KernelPrologues(hosts.read, clock=lambda: hosts.now)


async def test_each_host_runs_each_prologue_once(hosts: Hosts, prologues: KernelPrologues) -> None:
    assert prologues.variables("n1", "one") == {}
    for host, lines in (("n1", "one"), ("n1", "one"), ("n2", "one"), ("n1", "two")):
        await prologues.prepare(host, lines, "m")
        assert prologues.variables(host, lines) == {"A": "1"}
    assert hosts.asked == [("n1", "one"), ("n2", "one"), ("n1", "two")]


async def test_it_runs_again_when_it_is_old_or_the_host_has_started_again(
    hosts: Hosts, prologues: KernelPrologues
) -> None:
    await prologues.prepare("n1", "one", "m")
    hosts.now = 299.0
    await prologues.prepare("n1", "one", "m")
    assert len(hosts.asked) == 1
    hosts.now, hosts.answer = 301.0, {"variables": {"A": "2"}}
    await prologues.prepare("n1", "one", "m")
    assert (len(hosts.asked), prologues.variables("n1", "one")) == (2, {"A": "2"})
    await prologues.prepare("n1", "one", "m since its next start")
    assert len(hosts.asked) == 3


async def test_starts_at_once_share_one_run(hosts: Hosts, prologues: KernelPrologues) -> None:
    hosts.gate.clear()
    starts = [asyncio.ensure_future(prologues.prepare("n1", "one", "m")) for _ in range(3)]
    await asyncio.sleep(0)
    starts[0].cancel()
    await asyncio.sleep(0)
    hosts.gate.set()
    await asyncio.gather(*starts[1:])
    assert len(hosts.asked) == 1
    assert starts[0].cancelled()


async def test_a_failure_is_not_remembered(hosts: Hosts, prologues: KernelPrologues) -> None:
    hosts.answer = {"failed": "the prologue failed with code 1: correct its lines"}
    with pytest.raises(LaunchError, match=r"^n1: the prologue failed with code 1: correct its lines\.$"):
        await prologues.prepare("n1", "one", "m")
    hosts.answer = {"variables": {}}
    await prologues.prepare("n1", "one", "m")
    assert len(hosts.asked) == 2


@pytest.mark.parametrize("answer", [{}, {"variables": 7}, {"variables": {"A": 1}}, {"variables": ["A"]}])
async def test_an_answer_of_any_form_is_one_sentence(
    hosts: Hosts, prologues: KernelPrologues, answer: Any
) -> None:
    hosts.answer = answer
    with pytest.raises(LaunchError, match=r"^n1: its answer to the prologue cannot be read\.$"):
        await prologues.prepare("n1", "one", "m")


async def test_old_variables_serve_while_the_host_is_out_of_reach(
    hosts: Hosts, prologues: KernelPrologues
) -> None:
    await prologues.prepare("n1", "one", "m")
    hosts.now, hosts.answer = 1_000.0, HostProblem("ssh cannot reach n1", kind="unreachable")
    await prologues.prepare("n1", "one", "m")
    assert prologues.variables("n1", "one") == {"A": "1"}
    with pytest.raises(HostProblem):
        await prologues.prepare("n1", "one", "m since its next start")
    with pytest.raises(HostProblem):
        await prologues.prepare("n1", "two", "m")
