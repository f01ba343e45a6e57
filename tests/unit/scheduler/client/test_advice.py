"""The commands in texts name the scheduler that they are about."""

from __future__ import annotations

import pytest

from kit.fakes.service import fake_service
from roost.placement.model import Request
from roost.scheduler.client.advice import Advice
from roost.scheduler.client.client import Client
from roost.scheduler.errors import NoNodeEver, from_remote
from roost.scheduler.messages import Event
from roost.testing.deadlines import allow_s

DRAIN = "run `roost drain n --off` to use it again"


def test_the_default_scheduler_needs_no_options() -> None:
    assert Advice("local", {}).complete(DRAIN) == DRAIN


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        (DRAIN, "run `roost drain n --off --backend ray` to use it again"),
        (
            "`roost kernels` and `roost nodes`",
            "`roost kernels --backend ray` and `roost nodes --backend ray`",
        ),
        ("`roost kernels --backend dask`", "`roost kernels --backend dask`"),
        ("`roost kernelspec remove a`", "`roost kernelspec remove a`"),
        ("roost drains `n`", "roost drains `n`"),
    ],
)
def test_each_command_names_the_backend_once(text: str, complete: str) -> None:
    advice = Advice("ray", {})
    assert advice.complete(text) == complete
    assert advice.complete(complete) == complete


def test_options_are_words_of_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    advice = Advice("ray", {"address": "h:1", "python": "/a b", "number": 7, "text": "7"})
    words = "--backend-option address=h:1 --backend-option 'python=/a b' --backend-option number=7"
    wanted = f"`roost nodes --backend ray {words} --backend-option 'text=\"7\"'`"
    assert advice.write("nodes") == wanted
    monkeypatch.setenv("RAY_ADDRESS", "h:1")
    assert Advice("ray", {"address": "h:1"}).write("nodes") == "`roost nodes --backend ray`"


def test_an_id_of_many_words_stays_one_word() -> None:
    assert Advice("ray", {}).write("stop", "my kernel; rm") == "`roost stop 'my kernel; rm' --backend ray`"


def test_an_error_and_its_decision_are_complete() -> None:
    error = NoNodeEver("see `roost nodes`.", decision={"remedies": [DRAIN], "is_never": True})
    done = Advice("ray", {}).complete_error(from_remote(error.to_remote()))
    assert type(done) is NoNodeEver
    assert str(done) == done.args[0] == "see `roost nodes --backend ray`."
    assert done.fields["decision"]["remedies"] == [Advice("ray", {}).complete(DRAIN)]


@pytest.mark.usefixtures("runtime_dir")
def test_all_texts_of_a_service_are_complete() -> None:
    """The client of another backend completes what the service says: findings, remedies, errors, events."""
    client = Client("local")
    client.advice = Advice("yarn", {})
    complete = client.advice.complete(DRAIN)
    with fake_service() as service:
        service.answers["doctor"] = lambda _: {"findings": [{"level": "warning", "what": "x", "do": DRAIN}]}
        service.answers["explain"] = lambda _: {"decision": {"remedies": [DRAIN], "is_never": False}}
        service.answers["events"] = lambda _: {"events": [{"kind": "nodes", "at": 1.0, "detail": DRAIN}]}
        service.answers["drain"] = NoNodeEver(DRAIN)
        assert client.doctor().result(allow_s(10))[0]["do"] == complete
        assert client.explain(Request()).result(allow_s(10))["remedies"] == [complete]
        assert client.events().result(allow_s(10)) == [Event(kind="nodes", at=1.0, detail=complete)]
        with pytest.raises(NoNodeEver, match="--backend yarn"):
            client.drain("n").result(allow_s(10))
        client.close()
