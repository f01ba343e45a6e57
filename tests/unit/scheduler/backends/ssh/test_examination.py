"""The checks that follow from the steps and the facts of a host."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from roost.scheduler.backends.ssh.examination import HostReport, examine_host
from roost.scheduler.backends.ssh.far_examination import listen_once
from roost.scheduler.backends.ssh.host import Host
from roost.scheduler.backends.ssh.open_ssh import HostProblem
from roost.scheduler.backends.ssh.problems import Kind
from roost.scheduler.backends.ssh.settings import RoostSshBackend
from roost.testing.deadlines import allow_s

STEPS = ("shell", "python", "archive", "imports", "amounts", "rules")
FACTS = {
    "python": "3.12.1",
    "executable": "/usr/bin/python3",
    "user": "ada",
    "was_there": False,
    "node": {"cpus": 8, "memory_bytes": 1 << 34, "devices": [{}, {}]},
    "home": {"type": "ext4", "options": "rw"},
    "logout": ["KillUserProcesses=no\n", "Linger=no\n"],
    "address": "127.0.0.1",
    "address_problem": "",
}


class FarHost:
    """A host that says its steps, then its facts or a problem. Its port sends `token`, if that is set."""

    def __init__(
        self, steps: tuple[str, ...] = STEPS, problem: tuple[str, Kind] | None = None, **facts: Any
    ) -> None:
        self.steps, self.problem, self.facts = steps, problem, {**FACTS, **facts}
        self.token: str | None = ""
        self.options: dict[str, Any] = {}

    async def contact(
        self,
        host: str,
        program: str,
        arguments: Mapping[str, Any],
        /,
        *,
        report: Callable[[str], object],
        **options: Any,
    ) -> dict[str, Any]:
        self.options = options
        compile(program, "far", "exec")
        for step in self.steps:
            report(step)
        if self.problem is not None:
            raise HostProblem(self.problem[0], kind=self.problem[1])
        if self.token is None:
            return self.facts
        token = (self.token or arguments["token"]).encode()
        reached = asyncio.Event()

        def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(token)
            writer.close()
            reached.set()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        report(f"listens {server.sockets[0].getsockname()[1]} 127.0.0.1")
        await reached.wait()
        server.close()
        return self.facts


async def examine(far: FarHost, **settings: Any) -> HostReport:
    own = RoostSshBackend(ssh=["/none/ssh"], **settings)
    return await examine_host(Host(name="n1"), own, far.contact)


def levels_of(report: HostReport) -> dict[str, str]:
    return {check.step: check.level for check in report.checks}


async def test_a_good_host(runtime_dir: object) -> None:
    far = FarHost(("master", *STEPS))
    report = await examine(far, connect_timeout_s=2.5)
    assert report.can_run_kernels
    found = {check.step: check.what for check in report.checks}
    assert found == {
        "settings": "ssh cannot say how it reaches this host",
        "login": "by a connection that is open",
        "python": "3.12.1, /usr/bin/python3",
        "archive": "roost's code is sent",
        "imports": "done",
        "amounts": "8 CPU, 16 GiB, 2 GPU",
        "logout": "systemd lets processes live after a logout",
        "address": "its ports are reached at 127.0.0.1",
    }
    assert far.options["ssh"] == ("/none/ssh", "-o", "ConnectTimeout=3")


@pytest.mark.parametrize(
    ("steps", "kind", "failed"),
    [
        ((), "authentication", "login"),
        (("shell",), "python", "python"),
        (("shell", "python"), "answer", "archive"),
        (("shell", "python"), "python", "imports"),
        (("shell", "python", "prologue"), "answer", "archive"),
        (("shell", "python", "archive"), "answer", "imports"),
        (("shell", "python", "archive", "imports"), "answer", "amounts"),
    ],
)
async def test_the_step_that_fails(
    runtime_dir: object, steps: tuple[str, ...], kind: Kind, failed: str
) -> None:
    report = await examine(FarHost(steps, ("n1: why", kind)))
    assert not report.can_run_kernels
    assert report.problem is not None
    assert (report.checks[-1].step, report.checks[-1].what) == (failed, "n1: why")
    assert [level for step, level in levels_of(report).items() if level == "error"] == ["error"]


async def test_a_prologue_that_fails(runtime_dir: object) -> None:
    report = await examine(FarHost(("shell", "python"), ("n1: why", "answer")), prologue=["false"])
    assert (report.checks[-1].step, report.checks[-1].what) == ("prologue", "n1: why")


async def test_a_host_that_ends_processes_at_logout(runtime_dir: object) -> None:
    report = await examine(FarHost(logout=["KillUserProcesses=yes\n", "Linger=yes\n"]))
    assert not report.can_run_kernels
    (check,) = (check for check in report.checks if check.step == "logout")
    assert check.level == "error"
    assert "KillUserProcesses" in check.what
    assert "add ada to KillExcludeUsers" in check.do


@pytest.mark.parametrize(
    ("home", "has_note"),
    [
        ({"type": "nfs4", "options": "rw,vers=4.2,sec=krb5p,addr=10.0.0.1"}, True),
        ({"type": "nfs4", "options": "rw,vers=4.2,sec=sys,addr=10.0.0.1"}, False),
        ({"type": "afs", "options": "rw"}, True),
        ({}, False),
    ],
)
async def test_a_home_that_needs_tickets_is_noted(
    runtime_dir: object, home: dict[str, str], has_note: bool
) -> None:
    report = await examine(FarHost(home=home))
    assert report.can_run_kernels
    assert ("home" in levels_of(report)) == has_note


async def test_an_address_that_is_another_machine(runtime_dir: object) -> None:
    far = FarHost()
    far.token = "other"
    report = await examine(far)
    assert not report.can_run_kernels
    assert report.checks[-1].what == "127.0.0.1 is another machine, seen from here"


async def test_an_address_that_is_not_reached(runtime_dir: object) -> None:
    far = FarHost((*STEPS, "listens 1 127.0.0.1"))
    far.token = None
    report = await examine(far)
    assert report.checks[-1].what == "its ports cannot be reached at 127.0.0.1: Connection refused"
    assert "label address" in report.checks[-1].do


async def test_facts_that_are_none(runtime_dir: object) -> None:
    far = FarHost()
    far.facts = {"node": 1, "logout": "x", "address": ["\x1b[2J"], "home": {"type": 1}}
    report = await examine(far)
    assert all(check.what.isprintable() for check in report.checks)


def test_the_far_end_listens_on_a_port_that_kernels_may_have() -> None:
    said: list[str] = []

    def connect(found: dict[str, str]) -> None:
        _, port, address = found["step"].split()
        said.append(port)
        with socket.create_connection((address, int(port)), timeout=allow_s(10)):
            pass

    arguments = {"ports": (21_300, 21_301), "token": "t", "reach_s": allow_s(10)}
    with socket.create_server(("127.0.0.1", 21_300)):
        assert listen_once("127.0.0.1", arguments, connect) == ""
        assert said == ["21301"]
        with socket.create_server(("127.0.0.1", 21_301)):
            problem = listen_once("127.0.0.1", arguments, connect)
    assert problem == "nothing can listen on 127.0.0.1 there: no port of kernel_ports is free"
    assert listen_once("127.0.0.1", {**arguments, "ports": ()}, connect) == ""
