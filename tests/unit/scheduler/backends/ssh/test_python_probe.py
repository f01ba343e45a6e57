"""Hosts test a kernelspec's Python: one of them, or all, few at once. Their answers are pretended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from roost.launchers.agent.interpreter_probe import ProbeResult
from roost.placement import Request
from roost.placement.model.json_codec import encode
from roost.scheduler.backends.spec import MachineAnswer, PythonQuestion
from roost.scheduler.backends.ssh import python_probe
from roost.scheduler.backends.ssh.open_ssh import HostProblem
from roost.scheduler.backends.ssh.settings import RoostSshBackend
from roost.scheduler.errors import ConfigError

FINE = ProbeResult(
    executable="/x/python", is_ipykernel=True, python="3.11.7", ipykernel="7.4.0", has_curve=True
)
ARGV = ("/x/python", "-m", "ipykernel_launcher", "-f", "{connection_file}")
ANY = Request()


class Hosts:
    """Pretended hosts. `answers` has what each one answers, or its problem; `slow` those that take a minute."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.slow: set[str] = set()
        self.asked: list[tuple[str, Any]] = []
        self.now = self.most = 0

    async def ask(self, contacts: object, settings: object, host: str, **task: Any) -> Any:
        self.asked.append((host, task))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(60 if host in self.slow else 0)
        finally:
            self.now -= 1
        answer = self.answers.get(host, {"result": encode(FINE)})
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Hosts:
    found = Hosts()
    monkeypatch.setattr(python_probe, "ask_host", found.ask)
    monkeypatch.setattr(python_probe, "_NEXT_S", 0.01)
    return found


@pytest.fixture
def probe(hosts: Hosts) -> Callable[..., dict[str, MachineAnswer]]:
    """Return a function that tests a Python on the hosts n0 to n19, and returns the answers by host."""

    def probe(request: Request = ANY, **asked: Any) -> dict[str, MachineAnswer]:
        settings = RoostSshBackend(hosts={f"n{n}": {"rack": str(n % 2)} for n in range(20)})
        question = PythonQuestion(argv=ARGV, env={"A": "1"}, request=request, **asked)
        found: list[MachineAnswer] = []
        python_probe.probe(settings, question, found.append)
        assert len({answer.machine for answer in found}) == len(found)
        return {answer.machine: answer for answer in found}

    return probe


def test_one_host_is_enough(hosts: Hosts, probe: Any) -> None:
    found = probe(Request(options={"prologue": "true", "cwd": "~/a"}))
    assert list(found) == ["n0"]
    assert found["n0"].result == FINE
    ((_, task),) = hosts.asked
    assert task["kernel_python"] == {"argv": list(ARGV), "env": {"A": "1"}, "cwd": "~/a"}
    assert task["kernel_prologue"] == "true"


def test_the_next_host_is_asked_if_one_is_down_or_slow(hosts: Hosts, probe: Any) -> None:
    hosts.answers["n0"] = HostProblem("ssh cannot reach n0: check it", kind="unreachable")
    hosts.slow.add("n1")
    found = probe()
    assert {name: (answer.result is not None, answer.problem) for name, answer in found.items()} == {
        "n0": (False, "ssh cannot reach n0: check it"),
        "n2": (True, ""),
    }
    assert hosts.now == 0, "the slow contact has ended"


def test_all_hosts_are_asked_eight_at_once(hosts: Hosts, probe: Any) -> None:
    assert len(probe(asks_all=True)) == 20
    assert hosts.most == 8


def test_only_hosts_with_the_labels_are_asked(hosts: Hosts, probe: Any) -> None:
    assert set(probe(Request(labels={"rack": "1"}), asks_all=True)) == {f"n{n}" for n in range(1, 20, 2)}
    with pytest.raises(
        ConfigError, match=r"no host of the backend ssh has the labels rack=7: correct them\."
    ):
        probe(Request(labels={"rack": "7"}))
    assert set(probe(Request(labels={"rack": "1"}), machines=("n2", "n4"))) == {"n2", "n4"}
    assert set(probe(Request(labels={"node": "n7"}), asks_all=True)) == {"n7"}


def test_a_name_that_is_no_host_is_refused(hosts: Hosts, probe: Any) -> None:
    with pytest.raises(ConfigError, match="'n99' is no host of the backend ssh: name one of n0"):
        probe(machines=("n1", "n99"))
    assert hosts.asked == []


@pytest.mark.parametrize(
    ("answer", "is_reached", "said"),
    [
        ({"failed": "there is no folder /a: make it"}, True, "there is no folder /a: make it."),
        ({"result": encode(ProbeResult(problem="It fails."))}, True, "It fails."),
        (HostProblem("n0: no Python: install one", kind="python"), True, "no Python: install one"),
        (HostProblem("n0 answers nonsense", kind="answer"), True, "n0 answers nonsense"),
        (HostProblem("ssh cannot log in to n0", kind="authentication"), False, "ssh cannot log in to n0"),
        ({}, True, "its answer cannot be read"),
        ({"result": {"python": 7}}, True, "its answer cannot be read"),
    ],
)
def test_a_host_that_answers_with_a_problem_is_reached(
    hosts: Hosts, probe: Any, answer: Any, is_reached: bool, said: str
) -> None:
    hosts.answers["n0"] = answer
    found = probe(machines=("n0",))["n0"]
    assert (found.result is not None) == is_reached
    assert found.problem.startswith(said)
    assert found.result is None or found.result.problem


def test_wrong_options_are_refused_before_a_contact(hosts: Hosts, probe: Any) -> None:
    with pytest.raises(ConfigError, match="no whole path"):
        probe(Request(options={"cwd": "a"}))
    assert hosts.asked == []
