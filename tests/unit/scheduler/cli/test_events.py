"""`roost events`, with a stub client."""

from __future__ import annotations

import json
import queue
from dataclasses import replace

import pytest

from kit.fakes.client import QUEUED, RUNNING, StubClient, document, run
from roost.scheduler.cli import events
from roost.scheduler.messages import Event

QUEUE = Event(kind="queued", at=0.0, kernel=QUEUED)
END = Event(kind="exited", at=1.0, kernel=RUNNING)
NODES = Event(kind="nodes", at=2.0, detail="the nodes have changed")


@pytest.fixture(autouse=True)
def _events(client: StubClient) -> None:
    client.happened = [QUEUE, END, NODES]


def test_the_last_events_only(capsys: pytest.CaptureFixture[str], client: StubClient) -> None:
    assert len(run(capsys, "events", "--limit", "1")[1].splitlines()) == 1
    assert client.asked == [("events", 1)]
    assert run_refused(capsys, "--limit", "0")


def run_refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit):
        run(capsys, "events", *argv)
    return capsys.readouterr().err


def test_one_json_document_without_keys(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "events")["events"]
    assert [event["kind"] for event in found] == ["queued", "exited", "nodes"]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_following_goes_on_with_what_is_new(
    capsys: pytest.CaptureFixture[str],
    client: StubClient,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
) -> None:
    class Coming(queue.SimpleQueue[Event]):
        def get(self, block: bool = True, timeout: float | None = None) -> Event:
            if self.empty():
                raise KeyboardInterrupt
            return super().get()

    monkeypatch.setattr(events.queue, "SimpleQueue", Coming)
    client.coming = [END, replace(QUEUE, at=3.0)]
    code, out, _ = run(capsys, "events", "--follow", *options)
    assert code == 0
    kinds = [json.loads(line)["kind"] if options else line.split()[2] for line in out.splitlines()]
    assert kinds == ["queued", "exited", "nodes", "queued"]
