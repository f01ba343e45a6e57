"""The reports about a waiting start, and the text that names the kernels whose end it needs."""

from __future__ import annotations

import asyncio
import logging

import pytest

from roost.placement.model import Request
from roost.provisioners.server_extension import waiting_report
from roost.provisioners.server_extension.pending_start import PendingStart
from roost.provisioners.server_extension.waiting_report import (
    WaitingReport,
    describe_holders,
    describe_soonest,
)
from roost.scheduler.client.this_owner import this_owner
from roost.scheduler.messages import Kernel
from roost.testing.deadlines import allow_s


class Start(PendingStart):
    """A start whose place the test chooses."""

    waiting = None

    def place(self, node_id: str) -> None:
        self.waiting = Kernel(
            id="k", launch_id="1", state="starting", owner=this_owner(), request=Request(), node_id=node_id
        )
        self.note_change()


async def test_a_change_during_a_report_is_reported_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_FIRST_AFTER_S", 0.0), ("_PAUSE_S", 0.01), ("_AGAIN_S", 600.0)):
        monkeypatch.setattr(waiting_report, name, value)
    start = Start("k", {}, logging.getLogger())
    start.task = asyncio.create_task(asyncio.sleep(600, "k"))
    texts: list[str] = []
    is_complete = asyncio.Event()

    def show(text: str) -> None:
        texts.append(text)
        match len(texts):
            case 1:
                start.place("a")
            case 2:
                start.place("b")
            case 3:
                is_complete.set()

    reporting = asyncio.create_task(WaitingReport(start, show).run())
    await asyncio.wait_for(is_complete.wait(), allow_s(60))
    reporting.cancel()
    start.task.cancel()
    assert texts == ["Waiting for a place to run.", "Starting on a.", "Starting on b."]


def a_kernel(kernel_id: str, since: float | None) -> dict[str, object]:
    return {"id": kernel_id, "user": "ada", "since": since}


def test_one_kernel_whose_end_makes_room() -> None:
    soonest = {"node_id": "gpu-3", "kernels": [a_kernel("50fe0e35-35df", 1_000.0)]}
    expected = "There is room on gpu-3 when kernel 50fe0e35 of ada (running for 12 min) ends."
    assert describe_soonest(soonest, 1_720.0) == expected
    soonest["kernels"] = [a_kernel("50fe0e35-35df", None)]
    assert describe_soonest(soonest, 0.0) == "There is room on gpu-3 when kernel 50fe0e35 of ada ends."


def test_many_kernels_whose_end_makes_room() -> None:
    kernels = [a_kernel(f"{number}aaaaaaaa", 0.0) for number in range(5)]
    text = describe_soonest({"node_id": "n", "kernels": kernels}, 7_200.0)
    named = ", ".join(f"{number}aaaaaaa of ada (running for 2 h)" for number in range(3))
    assert text == f"There is room on n when these kernels end: {named} and 2 more."


def test_others_than_roost_are_named_before_the_kernels() -> None:
    """Without them the text would let a user end a kernel while actors of the same user hold the GPUs."""
    others = {"text": "3 of 4 GPUs are held by Ray actors and tasks that roost did not start"}
    soonest = {"node_id": "n", "kernels": [a_kernel("50fe0e35-35df", None)]}
    ends = "There is room on n when kernel 50fe0e35 of ada ends."
    assert describe_holders({"others": others, "soonest": None}, 0.0) == [f"{others['text']}."]
    assert describe_holders({"others": others, "soonest": soonest}, 0.0) == [f"{others['text']}.", ends]
    assert describe_holders({"soonest": soonest}, 0.0) == [ends]
    assert describe_holders({"soonest": None}, 0.0) == []


def test_a_server_for_many_people_names_nobody() -> None:
    others = {"text": "1 GPU is held by other kernels of this machine"}
    soonest = {"node_id": "n", "kernels": [a_kernel("50fe0e35-35df", None)]}
    told = describe_holders({"others": others, "soonest": soonest}, 0.0, names_kernels=False)
    assert told == ["There is room on n when another kernel ends."]
    assert describe_holders({"others": others, "soonest": None}, 0.0, names_kernels=False) == []
