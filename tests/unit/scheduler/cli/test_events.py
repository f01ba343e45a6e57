"""`roost events`, with a stub client."""

from __future__ import annotations

import json
import queue
from dataclasses import replace

import pytest

from kit.fakes.client import PROCESS, QUEUED, RUNNING, StubClient, document, run
from roost.scheduler.cli import events
from roost.scheduler.messages import Event

WORDS = "the kernel was killed: it used 4 GiB of its 4 GiB of memory"
ENDED = replace(RUNNING, state="exited", process=replace(PROCESS, peak_bytes=4 << 30, cpu_s=90.0))
QUEUE = Event(kind="queued", at=0.0, kernel=QUEUED)
END = Event(kind="exited", at=1.0, kernel=ENDED, detail=WORDS)
NODES = Event(kind="nodes", at=2.0, detail="the nodes have \x1b[2Jchanged")


@pytest.fixture(autouse=True)
def _events(client: StubClient) -> None:
    client.happened = [QUEUE, END, NODES]


def lines(out: str) -> list[str]:
    """Return the lines of the output, without the time at the head of each line."""
    return [" ".join(line.split()[2:]) for line in out.splitlines()]


def test_an_event_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "events")
    assert code == 0
    assert lines(out) == [
        "queued bbbb-1 ada -",
        f"exited aaaaaaaa ada big {WORDS}; used 90 s of CPU time and at most 4 GiB",
        "nodes the nodes have \\u001b[2Jchanged",
    ]


def test_the_last_events_only(capsys: pytest.CaptureFixture[str], client: StubClient) -> None:
    assert len(lines(run(capsys, "events", "--limit", "1")[1])) == 1
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
    kinds = [json.loads(line)["kind"] for line in out.splitlines()] if options else None
    assert (kinds or [line.split()[0] for line in lines(out)]) == ["queued", "exited", "nodes", "queued"]


def test_little_cpu_time_is_shown_with_tenths_of_a_second(
    capsys: pytest.CaptureFixture[str], client: StubClient
) -> None:
    assert ENDED.process is not None
    short = replace(ENDED, process=replace(ENDED.process, cpu_s=1.62))
    unknown = replace(ENDED, process=replace(ENDED.process, cpu_s=0.0))
    client.happened = [replace(END, kernel=each) for each in (short, unknown)]
    first, second = run(capsys, "events")[1].splitlines()
    assert first.endswith("used 1.6 s of CPU time and at most 4 GiB")
    assert second.endswith("of memory; used at most 4 GiB")
