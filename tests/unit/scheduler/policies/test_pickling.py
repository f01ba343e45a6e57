"""A policy is pickled, so that a program can send it to the service."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import cloudpickle
import pytest

from kit.fakes.service import FakeService, fake_service
from roost.placement import Node, Pipeline, Request, Snapshot, get_policy
from roost.scheduler.client.client import Client
from roost.scheduler.errors import ConfigError
from roost.scheduler.policies.pickling import pack_policy, unpack_policy
from roost.testing.deadlines import allow_s

MINE = """
from roost.placement import Pipeline

class Flat:
    name = "flat"
    needs_metrics = False
    def score(self, request, snapshot):
        return helper(snapshot)

def helper(snapshot):
    return snapshot.columns.cpus * 0

MINE = Pipeline(name="mine", scorers=((Flat(), 1.0),))
"""

ELSEWHERE = """
import sys
from roost.placement import Node, Request, Snapshot
from roost.scheduler.policies.pickling import unpack_policy
mine = unpack_policy(sys.stdin.read())
assert "not_installed" not in sys.modules
print(mine.place(Request(), Snapshot.of([Node(id="a", cpus=2)])).placement.node_id)
"""


def test_code_that_is_not_installed_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "not_installed.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import not_installed  # type: ignore[import-not-found]

    text = pack_policy("mine", not_installed.MINE)
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=text,
        capture_output=True,
        text=True,
        timeout=allow_s(60),
        check=False,
    )
    assert (done.stdout, done.stderr) == ("a\n", "")
    assert cloudpickle.list_registry_pickle_by_value() == set()
    del sys.modules["not_installed"]


def test_installed_code_is_sent_by_name() -> None:
    assert len(pack_policy("pack", get_policy("pack"))) < 2_000
    again = unpack_policy(pack_policy("pack", get_policy("pack")))
    assert isinstance(again, Pipeline)
    snapshot = Snapshot.of([Node(id="a", cpus=4), Node(id="b", cpus=2)])
    assert again.place(Request(cpus=1), snapshot) == get_policy("pack").place(Request(cpus=1), snapshot)


def test_a_policy_that_cannot_be_pickled() -> None:
    with pytest.raises(ConfigError, match=r"policy mine cannot be sent .*TypeError.*locks"):
        pack_policy("mine", {"lock": threading.Lock()})
    with pytest.raises(ConfigError, match=r"at most 4194304 can be sent"):
        pack_policy("mine", bytes(5 << 20))

    class Odd:
        scorers = 7

    with pytest.raises(ConfigError, match="policy odd cannot be sent"):
        pack_policy("odd", Odd())


@pytest.fixture
def service(runtime_dir: Path) -> object:
    with fake_service() as service:
        yield service


def test_a_new_service_gets_the_policy_before_the_first_call_that_needs_it(
    service: FakeService, runtime_dir: Path
) -> None:
    client = Client()
    asks = Request(policy="mine")
    client.add_policy("mine", get_policy("pack")).result(allow_s(10))
    client.explain(asks).result(allow_s(10))
    client.explain(asks).result(allow_s(10))
    client.explain(Request()).result(allow_s(10))
    tokens = {given.token for given in service.called("add_policy")}
    before = len(service.called("add_policy"))
    assert (len(tokens), before) == (1, 2)
    service.close()
    service.serve()
    client.nodes().result(allow_s(10))
    client.explain(Request()).result(allow_s(10))
    assert len(service.called("add_policy")) == before
    client.explain(asks).result(allow_s(10))
    assert len(service.called("add_policy")) == before + 1
    client.add_policy("mine", get_policy("spread")).result(allow_s(10))
    client.explain(asks).result(allow_s(10))
    assert len({given.token for given in service.called("add_policy")}) == 2
    service.answers["add_policy"] = ConfigError("not that one")
    service.close()
    service.serve()
    with pytest.raises(ConfigError, match="not that one"):
        client.explain(asks).result(allow_s(10))
    client.close()
