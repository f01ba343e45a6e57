"""The end of a run that is interrupted."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from contextlib import nullcontext, suppress

import pytest

from roost.bench.report import Report
from roost.bench.runs import INTERRUPTED, run


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

    arguments = argparse.Namespace(json=None, plot=None, check=False)
    assert run(arguments, report, nullcontext(measure)) == INTERRUPTED
    assert report.samples["start/roost"] == [0.0]
    assert "Interrupted: these are the results until then." in capsys.readouterr().out
