"""A hundred SSH hosts: the first ones are shown soon, and none is refused while it has not been reached."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.clusters.faults import say, show_logs
from kit.clusters.ssh.faults import SshWorld, on_host
from kit.clusters.ssh_hosts import SshHosts, leftovers, why_not
from kit.machine.daemons import settle
from roost.placement.model import Request
from roost.scheduler.client.client import disconnect
from roost.testing.deadlines import allow_s

COUNT = 100
FIRST_S = 2.0
"""How long the first hosts may take after the service runs, on a quiet machine."""
ALL_S = 60.0
OFF, OFF_S = 20, 20.0
"""How many hosts are off, and how long ssh waits for each."""
UNREACHED = "roost has not reached it yet"

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


class ManyHosts(SshWorld):
    """A hundred hosts. At the end their own books are read alone: the service would measure all hosts to answer."""

    async def promised(self) -> list[str]:
        return []


@pytest.fixture(scope="module")
def many_hosts(private_environment: None) -> Iterator[SshHosts]:
    if reason := why_not(COUNT):
        pytest.skip(reason)
    began = time.monotonic()
    with SshHosts(COUNT, accounts=["ada"]) as hosts:
        say("all hosts started after", began)
        yield hosts
    assert not leftovers(hosts.folder)


async def test_a_hundred_hosts(
    many_hosts: SshHosts, runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = ManyHosts(many_hosts, runtime_dir, tmp_path, monkeypatch)
    last = on_host(many_hosts.names[-1])
    try:
        with show_logs(runtime_dir):
            began = time.monotonic()
            await world.service().service()
            say("the service answers after", began)
            first_s, reached = 0.0, 0
            while reached < COUNT:
                problems = [node["drains_because"] for node in await world.service().nodes()]
                assert len(problems) == COUNT
                assert not [each for each in problems if each and UNREACHED not in each]
                reached = problems.count("")
                first_s = first_s or (time.monotonic() - began if reached else 0.0)
                if reached < COUNT:
                    assert not (await world.service().explain(Request(**last)))["is_never"]
                assert time.monotonic() - began < allow_s(ALL_S), problems
                await asyncio.sleep(0.05)
            all_s = time.monotonic() - began
            say(f"the first hosts were shown after {first_s:.1f} s, all after {all_s:.1f} s")
            assert first_s < allow_s(2 * FIRST_S)
            notebook = await world.open(**last)
            await world.lives(notebook)
            await world.close()
    finally:
        disconnect()
        settle(runtime_dir)


async def test_hosts_that_are_off_delay_no_other(
    many_hosts: SshHosts, runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More hosts are off than roost contacts at once, and they come first in the list."""
    world = ManyHosts(many_hosts, runtime_dir, tmp_path, monkeypatch)
    world.configure(connect_timeout_s=OFF_S)
    off = many_hosts.names[:OFF]
    for name in off:
        many_hosts.off(name)
    try:
        with show_logs(runtime_dir):
            began = time.monotonic()
            while True:
                problems = {node["id"]: node["drains_because"] for node in await world.service().nodes()}
                if any(not problem for problem in problems.values()):
                    break
                assert all(UNREACHED in problems[name] for name in off), (
                    "the others wait for hosts that are off"
                )
                await asyncio.sleep(0.05)
            say("the first other host was shown after", began)
            notebook = await world.open(**on_host(many_hosts.names[-1]))
            say("a kernel runs on the last host after", began)
            await world.lives(notebook)
            await world.close()
    finally:
        for name in off:
            many_hosts.on(name)
        disconnect()
        settle(runtime_dir)
