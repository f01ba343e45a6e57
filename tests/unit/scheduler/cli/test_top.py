"""`roost top`, with a stub client."""

from __future__ import annotations

import io
import sys
import time
from dataclasses import replace

import pytest

from kit.fakes.client import QUEUED, RUNNING, SECOND, StubClient, document
from roost.launchers.protocol.shared_values import KernelUse
from roost.scheduler.cli import main

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
IDLE = KernelUse(kernel_id=RUNNING.id, execution_state="idle")
BUSY = KernelUse(kernel_id=SECOND.id, cpu_percent=150.0, gpu_memory_bytes=3 << 30)


@pytest.fixture(autouse=True)
def _kernels(client: StubClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    client.known = [replace(RUNNING, use=IDLE), replace(SECOND, use=BUSY), QUEUED]


def test_the_kernels_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    uses = [kernel["use"] for kernel in document(capsys, "top")["kernels"]]
    assert [use["gpu_memory_bytes"] for use in uses] == [0, 3 << 30]


class Terminal(io.StringIO):
    """A terminal that keeps all written text."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_is_drawn_again_until_the_interrupt(
    client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    client.known[1] = replace(SECOND, use=BUSY, node_id="evil\x1b[2J")
    pauses: list[float] = []

    def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    assert main.main(["top", "--interval", "0.5"]) == 0
    assert pauses == [0.5] * 3
    drawn = terminal.getvalue()
    assert drawn.count(HIDE_CURSOR) == drawn.count(SHOW_CURSOR) == 1
    assert drawn.count("evil\\u001b[2J") == drawn.count("\\u00") >= 3, (
        "cells are clean, and nothing else is cleaned"
    )
