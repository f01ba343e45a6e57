"""Several ResourceManagers: some are dead, on standby, or of another cluster."""

from __future__ import annotations

from typing import Any

import pytest

from roost.scheduler.backends.yarn.master import resource_manager
from roost.scheduler.backends.yarn.master.hadoop_rpc import CallRefused, ConnectionLost
from roost.scheduler.backends.yarn.master.resource_manager import Away, ResourceManager
from roost.scheduler.backends.yarn.master.schema import AllocateRequest, AllocateResponse, Token

OLD, NEW = (Token(identifier=name, password=b"", kind="", service="") for name in (b"old", b"new"))
STANDBY = CallRefused("org.apache.hadoop.ipc.StandbyException", "on standby")
FORGED = CallRefused("org.apache.hadoop.security.token.SecretManager$InvalidToken", "not known")
DEAD = ConnectionLost("refused")
REFUSED = CallRefused("org.apache.hadoop.yarn.exceptions.InvalidResourceRequestException", "no")
BEAT = AllocateRequest(response_id=0)


class FakeConnections:
    """Connections with a scripted result or exception for each host. `calls` lists the called hosts."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.calls: list[str] = []
        self.tokens: list[Token] = []

    def connect(self, host: str, port: int, *, protocol: str, token: Token) -> FakeConnection:
        assert port == 8030
        self.tokens.append(token)
        return FakeConnection(self, host)


class FakeConnection:
    def __init__(self, connections: FakeConnections, host: str) -> None:
        self._connections, self._host = connections, host

    async def call(self, method: str, request: object, answer: type, *, timeout_s: float) -> Any:
        self._connections.calls.append(self._host)
        result = self._connections.answers[self._host]
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        pass


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> FakeConnections:
    fake = FakeConnections()
    monkeypatch.setattr(resource_manager, "HadoopConnection", fake.connect)
    return fake


@pytest.mark.parametrize("problem", [STANDBY, DEAD, FORGED])
async def test_the_active_one_is_found_and_kept(connections: FakeConnections, problem: Exception) -> None:
    connections.answers = {"a": problem, "b": AllocateResponse(response_id=1)}
    manager = ResourceManager(["a:8030", "b:8030"], OLD)
    for _ in range(2):
        assert (await manager.allocate(BEAT)).response_id == 1
    assert connections.calls == ["a", "b", "b"]
    connections.answers = {"b": problem, "a": AllocateResponse(response_id=2)}
    assert (await manager.allocate(BEAT)).response_id == 2
    assert connections.calls[3:] == ["b", "a"]


@pytest.mark.parametrize(
    ("problems", "is_trusted"),
    [((DEAD, STANDBY), True), ((STANDBY, FORGED), False), ((FORGED, DEAD), False)],
)
async def test_none_is_active(
    connections: FakeConnections, problems: tuple[Exception, ...], is_trusted: bool
) -> None:
    connections.answers = dict(zip("ab", problems, strict=True))
    with pytest.raises(Away) as caught:
        await ResourceManager(["a:8030", "b:8030"], OLD).allocate(BEAT)
    assert caught.value.is_trusted == is_trusted
    assert connections.calls == ["a", "b"]


async def test_a_refusal_is_no_failover(connections: FakeConnections) -> None:
    connections.answers = {"a": REFUSED, "b": AllocateResponse()}
    manager = ResourceManager(["a:8030", "b:8030"], OLD)
    for _ in range(2):
        with pytest.raises(CallRefused):
            await manager.allocate(BEAT)
    assert connections.calls == ["a", "a"]


async def test_a_new_token_is_used_at_once(connections: FakeConnections) -> None:
    connections.answers = {"a": AllocateResponse(am_rm_token=NEW)}
    manager = ResourceManager(["a:8030"], OLD)
    for _ in range(3):
        await manager.allocate(BEAT)
    assert connections.tokens == [OLD, NEW]
