"""The Pythons of a backend's machines, as one result or one sentence. The backend is pretended."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from roost.launchers.agent.interpreter_probe import ProbeResult
from roost.placement.model import Request
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.backends.spec import MachineAnswer, PythonQuestion
from roost.scheduler.client import interpreter_probe
from roost.scheduler.client.interpreter_probe import probe_elsewhere
from roost.scheduler.errors import BackendUnavailable, ConfigError

FINE = ProbeResult(
    executable="/x/python",
    is_ipykernel=True,
    python="3.11.7",
    ipykernel="7.4.0",
    can_fork=True,
    has_curve=True,
)
OLD = replace(FINE, ipykernel="6.29.5", has_curve=False)
OTHER = ProbeResult(executable="/usr/bin/R")


@pytest.fixture
def asked() -> list[PythonQuestion]:
    """Return the list of questions to the pretended backend."""
    return []


@pytest.fixture
def probe(asked: list[PythonQuestion], monkeypatch: pytest.MonkeyPatch) -> Callable[..., ProbeResult]:
    """Return a function that asks machines with these results, or with the reason why they are out of reach."""

    def probe(*results: ProbeResult | str, wants_encryption: bool = True, **options: Any) -> ProbeResult:
        def answer(settings: object, question: PythonQuestion, report: Callable[..., object]) -> None:
            asked.append(question)
            for number, result in enumerate(results):
                is_reached = isinstance(result, ProbeResult)
                report(
                    MachineAnswer(
                        machine=f"n{number}",
                        took_s=1.0,
                        result=result if is_reached else None,
                        problem=result.problem if is_reached else result,
                    )
                )

        monkeypatch.setitem(sys.modules, "a_lab", SimpleNamespace(probe=answer))
        spec = replace(get_spec("local"), probe="a_lab:probe", requires_encryption=wants_encryption)
        monkeypatch.setattr(interpreter_probe, "get_spec", lambda _: spec)
        return probe_elsewhere(["/x/python"], {"A": "1"}, Request(), "local", {}, **options)

    return probe


def test_the_machines_together_can_do_what_each_can(probe: Any) -> None:
    assert probe(FINE) == FINE
    assert probe("out of reach", FINE, FINE) == FINE
    assert probe(FINE, replace(FINE, can_fork=False, why_not_forked="Why.")) == replace(
        FINE, can_fork=False, why_not_forked="Why."
    )
    assert probe(FINE, OLD, wants_encryption=False) == replace(FINE, has_curve=False)
    assert probe(OTHER) == OTHER, "nothing is known about its encryption"


def test_a_python_without_encryption_is_a_problem_where_kernels_must_encrypt(probe: Any) -> None:
    answers: list[MachineAnswer] = []
    said = "ipykernel 6.29.5 of /x/python cannot encrypt its channels, and the backend local wants encrypted kernels"
    with pytest.raises(ConfigError, match=f"^n1: {said}: install ipykernel 7.3 or newer there.$"):
        probe(FINE, OLD, report=answers.append)
    assert [answer.problem[:7] for answer in answers] == ["", "ipykern"]


def test_machines_that_fail_are_named(probe: Any) -> None:
    bad = ProbeResult(problem="/x/python is no executable here: install it.")
    with pytest.raises(ConfigError, match=r"^n1: /x/python is no executable here: install it\.$"):
        probe(FINE, bad)
    with pytest.raises(ConfigError, match=r"^these kernels cannot start on n0, n2: mend that, or test"):
        probe(bad, "out of reach", bad, FINE)


def test_it_is_an_error_if_none_answers(probe: Any) -> None:
    with pytest.raises(BackendUnavailable, match=r"tested the Python: ssh cannot reach n0: try it\.$"):
        probe("ssh cannot reach n0: try it")
    with pytest.raises(BackendUnavailable, match=r"cannot reach n0: try it \(2 more are out of reach\)\.$"):
        probe("ssh cannot reach n0: try it.", "b", "c")


def test_the_question_names_the_machines(probe: Any, asked: list[PythonQuestion]) -> None:
    probe(FINE)
    probe(FINE, machines=["all"])
    probe(FINE, machines=["n1", "n2"])
    assert [(each.machines, each.asks_all) for each in asked] == [
        ((), False),
        ((), True),
        (("n1", "n2"), False),
    ]
    assert (asked[0].argv, asked[0].env, asked[0].request) == (("/x/python",), {"A": "1"}, Request())
