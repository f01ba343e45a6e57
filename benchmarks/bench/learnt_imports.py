"""Kernels that import the packages of `roost bench density`, so that the agent learns to preload these packages."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .kernel import BenchKernel
from .report import Report
from .sides import Side

_LEARNT_S = 120.0
"""How long to wait until a zygote has imported the packages."""


async def teach(report: Report, side: Side, packages: Sequence[str]) -> None:
    """Import the packages in one kernel after another, until a new kernel has some of them from its zygote.

    A note in the report names the packages that the last kernel did not have.
    """
    deadline = time.monotonic() + _LEARNT_S
    missing = list(packages)
    while missing == list(packages) and time.monotonic() < deadline:
        kernel = BenchKernel(side)
        try:
            await kernel.start()
            missing = await kernel.evaluate(
                f"[name for name in {list(packages)} if name not in __import__('sys').modules]"
            )
            await kernel.execute(f"import {', '.join(packages)}")
        finally:
            await kernel.stop(is_polite=True)
    if missing:
        report.notes.append(f"{side.name}: not learnt: {', '.join(missing)}. The agent's log says why.")
