"""The end of a run that is interrupted."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress

import pytest

from roost.bench.report import Report
from roost.bench.runs import INTERRUPTED, run


@pytest.fixture(autouse=True)
def _heeds_signals() -> Iterator[None]:
    """Heed Ctrl-C also if the tests run in the background of a script, whose shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_run_ends_although_its_cancellation_is_lost(
    signum: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """`asyncio.wait_for` on Python <= 3.11 loses a cancellation that meets its result."""
    report = Report("start")

    async def measure() -> None:
        for n in range(5):
            report.add("start/roost", float(n), "ms")
            os.kill(os.getpid(), signum)
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    arguments = argparse.Namespace(json=None)
    assert run(arguments, report, nullcontext(measure)) == INTERRUPTED
    assert report.samples["start/roost"] == [0.0]
    assert "Interrupted: these are the results until then." in capsys.readouterr().out


@pytest.mark.parametrize("when", ["before", "after"])
def test_sigterm_ends_a_run_outside_its_measurement(when: str) -> None:
    """The folders and processes of the run must be cleaned up then, too."""
    left: list[str] = []

    @contextmanager
    def prepare() -> Iterator[Callable[[], Awaitable[None]]]:
        left.append("folder")
        try:
            if when == "before":
                os.kill(os.getpid(), signal.SIGTERM)
            yield measure
            if when == "after":
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            left.clear()

    async def measure() -> None:
        await asyncio.sleep(0)

    arguments = argparse.Namespace(json=None)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(arguments, Report("start"), prepare())
    assert not left
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
