"""`roost top`, with a stub client."""

from __future__ import annotations

import io
import sys
import time
from dataclasses import replace

import pytest

from kit.fakes.client import QUEUED, RUNNING, SECOND, StubClient, document, run
from roost.launchers.protocol.shared_values import KernelUse
from roost.placement.model import Request
from roost.scheduler.cli import main

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
IDLE = KernelUse(
    kernel_id=RUNNING.id,
    processes=2,
    cpu_percent=1.0,
    memory_bytes=950 << 20,
    read_bytes=7,
    execution_state="idle",
)
BUSY = KernelUse(
    kernel_id=SECOND.id, processes=1, cpu_percent=150.0, memory_bytes=9, gpu_memory_bytes=3 << 30
)


@pytest.fixture(autouse=True)
def _kernels(client: StubClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    limited = replace(RUNNING, use=IDLE, request=Request(cpus=2, memory_bytes=1 << 30))
    client.known = [limited, replace(SECOND, use=BUSY), QUEUED]


def test_the_busiest_kernel_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "top")
    assert code == 0
    lines = out.splitlines()
    columns = "KERNEL USER NODE CPUS MEMORY GPU MEMORY READ WRITTEN PROCESSES STATE"
    assert " ".join(lines[0].split()) == columns
    first, second = (" ".join(line.split()[2:]) for line in lines[1:3])
    assert first == "small 1.50 9 bytes 3 GiB 0 bytes 0 bytes 1 running"
    assert second == "big 0.01 of 2 950 MiB of 1 GiB - 7 bytes 0 bytes 2 idle"
    assert len(lines) == 3, "a queued kernel uses nothing"


def test_a_narrow_terminal_has_fewer_columns(
    client: StubClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    del client.known[1]  # nobody uses a GPU now
    lines = run(capsys, "top")[1].splitlines()
    assert " ".join(lines[0].split()) == "KERNEL USER NODE CPUS MEMORY STATE"
    assert len(lines) == 2


def test_a_kernel_of_a_silent_agent_comes_last(
    client: StubClient, capsys: pytest.CaptureFixture[str]
) -> None:
    client.known[1] = replace(SECOND, use=None)
    assert "?" in run(capsys, "top")[1].splitlines()[2]


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
