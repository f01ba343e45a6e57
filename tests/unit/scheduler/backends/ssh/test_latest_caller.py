"""The variables for new connections: those of the latest caller that has an agent, or tickets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from roost.scheduler.backends.ssh import SPEC
from roost.scheduler.backends.ssh.latest_caller import LatestCaller, is_there


class Agents:
    """Sockets that listen like an ssh-agent, by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sockets: dict[str, socket.socket] = {}

    def start(self, name: str, backlog: int = 1) -> str:
        agent = self._sockets[name] = socket.socket(socket.AF_UNIX)
        agent.bind(str(self._folder / name))
        agent.listen(backlog)
        return str(self._folder / name)

    def end(self, name: str) -> None:
        self._sockets.pop(name).close()

    def close(self) -> None:
        for agent in self._sockets.values():
            agent.close()


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Agents]:
    with ExitStack() as stack:
        agents = Agents(tmp_path)
        stack.callback(agents.close)
        yield agents


def test_the_latest_caller_counts(agents: Agents) -> None:
    one, two = agents.start("one"), agents.start("two")
    caller = LatestCaller({"SSH_AUTH_SOCK": one, "HOME": "/x"})
    assert caller.variables() == {"SSH_AUTH_SOCK": one, "KRB5CCNAME": ""}
    assert not caller.note({"SSH_AUTH_SOCK": one, "KRB5CCNAME": ""})
    assert caller.note({"SSH_AUTH_SOCK": two, "KRB5CCNAME": "KEYRING:persistent:7"})
    assert caller.variables() == {"SSH_AUTH_SOCK": two, "KRB5CCNAME": "KEYRING:persistent:7"}
    assert caller.note({"SSH_AUTH_SOCK": one})
    assert caller.variables()["SSH_AUTH_SOCK"] == one
    assert not caller.note({"LD_PRELOAD": "x"})
    assert set(caller.variables()) == set(SPEC.caller_variables)


def test_the_same_caller_counts_as_another_once_its_agent_is_back(agents: Agents) -> None:
    one = agents.start("one")
    caller = LatestCaller({"SSH_AUTH_SOCK": one})
    agents.end("one")
    assert caller.variables()["SSH_AUTH_SOCK"] == ""  # for a connection that fails
    assert not caller.note({"SSH_AUTH_SOCK": one})
    Path(one).unlink()
    agents.start("one")
    assert caller.note({"SSH_AUTH_SOCK": one})


def test_an_agent_that_has_ended_takes_nobodys_place(agents: Agents) -> None:
    one, two = agents.start("one"), agents.start("two")
    caller = LatestCaller({})
    caller.note({"SSH_AUTH_SOCK": one})
    agents.end("one")  # its file stays
    assert caller.variables()["SSH_AUTH_SOCK"] == ""
    assert caller.note({"SSH_AUTH_SOCK": two})
    caller.variables()
    for value in (one, "", str(Path(one).with_name("none"))):
        assert not caller.note({"SSH_AUTH_SOCK": value})
        assert caller.variables()["SSH_AUTH_SOCK"] == two


def test_a_busy_agent_is_there(agents: Agents) -> None:
    path = agents.start("busy", backlog=0)
    waiting = []
    try:
        for _ in range(4):
            connection = socket.socket(socket.AF_UNIX)
            connection.setblocking(False)
            waiting.append(connection)
            connection.connect_ex(path)
        assert is_there("SSH_AUTH_SOCK", path)
    finally:
        for connection in waiting:
            connection.close()


def test_tickets_are_looked_for_where_they_are_files(tmp_path: Path) -> None:
    cache = tmp_path / "krb5cc_7"
    for value in (f"FILE:{cache}", str(cache)):
        assert not is_there("KRB5CCNAME", value)
    cache.touch()
    for value in (f"FILE:{cache}", str(cache), "KCM:7", "KEYRING:persistent:7", "API:x"):
        assert is_there("KRB5CCNAME", value)


@pytest.mark.parametrize("value", ["x" * 300, "/a\0b", "relative", "/"])
def test_a_value_that_names_no_socket_is_left_out(value: str) -> None:
    caller = LatestCaller({"SSH_AUTH_SOCK": value})
    assert caller.variables()["SSH_AUTH_SOCK"] == ""


def test_few_values_are_remembered_and_none_is_shown() -> None:
    caller = LatestCaller({})
    for number in range(100):
        caller.note({"SSH_AUTH_SOCK": f"/secret/{number}"})
    assert [len(values) for values in caller._values.values()] == [16, 0]
    assert "secret" not in repr(caller)
