"""The variables that this process sends to the service of a backend that wants them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from roost.scheduler.backends.registry import get_spec
from roost.scheduler.client import caller_variables
from roost.scheduler.client.caller_variables import MOST_CALLER_CHARACTERS, read_caller, send_caller


class Calls:
    """A connection that keeps the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    async def call(self, op: str, arguments: Any, *, timeout_s: float) -> None:
        self.calls.append((op, arguments))


@pytest.fixture(autouse=True)
def wanting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the backend `demo` want two variables."""
    wanted = ("DEMO_AGENT", "DEMO_TICKETS")
    demo = replace(get_spec("local"), name="demo", caller_variables=wanted)
    monkeypatch.setattr(caller_variables, "get_spec", lambda name: demo if name == "demo" else get_spec(name))
    for name in wanted:
        monkeypatch.delenv(name, raising=False)


async def test_a_variable_that_is_not_set_is_sent_as_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    connection: Any = Calls()
    monkeypatch.setenv("DEMO_AGENT", "/tmp/my agent")
    await send_caller(connection, "demo", timeout_s=1.0)
    assert connection.calls == [
        ("note_caller", {"variables": {"DEMO_AGENT": "/tmp/my agent", "DEMO_TICKETS": ""}})
    ]


async def test_a_backend_that_wants_none_gets_no_call() -> None:
    connection: Any = Calls()
    await send_caller(connection, "local", timeout_s=1.0)
    assert connection.calls == []


@pytest.mark.parametrize("value", ["/a\nb", "/a\udcff", "x" * (MOST_CALLER_CHARACTERS + 1)])
def test_a_value_that_the_service_refuses_counts_as_not_set(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("DEMO_AGENT", value)
    assert read_caller("demo") == {"DEMO_AGENT": "", "DEMO_TICKETS": ""}
