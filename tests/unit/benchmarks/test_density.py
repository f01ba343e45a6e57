"""The loads of `roost bench density`: they end where memory would run out, and its starts are compared."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

import pytest

from roost.bench import density
from roost.bench.density import FIRST, Filled, Limits
from roost.bench.kernel import BenchKernel, Memory, NoAnswer
from roost.bench.report import Report
from roost.bench.runs import run
from roost.bench.sides import Side

PLAIN = Side(name="plain", kernelspec="plain")
LOADS = {FIRST: "1+1", "import pandas": "import pandas"}
NO_LIMIT = Limits(kernels=100, free=0.0, latency_s=1.0)
EVERYTHING = Limits(kernels=100, free=1.0, latency_s=1.0)
"""All of the machine's memory must stay free, so it is short from the beginning."""


class FakeKernel(BenchKernel):
    """A kernel without a process. It answers at once, except to `fails_at`."""

    def __init__(self, fails_at: str = "") -> None:
        super().__init__(PLAIN)
        self.ran: list[str] = []
        self._fails_at = fails_at

    async def execute(self, code: str) -> float:
        if code == self._fails_at:
            raise NoAnswer("a kernel of plain did not answer")
        self.ran.append(code)
        return 1.0

    async def read_memory(self) -> Memory:
        return Memory(pss=10.0, uss=9.0, dirty=8.0, swap=0.0)


@pytest.mark.parametrize(("limits", "count"), [(NO_LIMIT, 35), (EVERYTHING, 10)])
async def test_a_load_ends_before_memory_runs_out(limits: Limits, count: int) -> None:
    kernels = [FakeKernel() for _ in range(35)]
    report = Report("density")
    filled = Filled(kernels=list(kernels))
    memory = await density._measure_loads(report, PLAIN, filled, limits, LOADS)
    assert [len(memory[load]) for load in LOADS] == [35, count]
    assert sum("import pandas" in kernel.ran for kernel in kernels) == count
    said = "Only 10 of 35 kernels of plain ran import pandas, because then less than 100% of the memory was free."
    assert report.notes == ([said] if limits is EVERYTHING else [])


def test_a_kernel_that_does_not_answer_ends_the_run_with_the_results_so_far(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = Report("density")

    async def measure() -> None:
        report.add("start/plain", 100.0, "ms")
        filled = Filled(kernels=[FakeKernel(), FakeKernel(fails_at="import pandas")])
        await density._measure_loads(report, PLAIN, filled, NO_LIMIT, LOADS)

    arguments = argparse.Namespace(json=None, plot=None, check=False)
    assert run(arguments, report, nullcontext(measure)) == 1
    shown: Any = " ".join(capsys.readouterr().out.split())
    assert "Ended early, because a kernel of plain did not answer: these are the results until then." in shown
    assert "start/plain" in shown


@pytest.mark.parametrize(("count", "ratio"), [(99, None), (150, 2.0)])
def test_the_last_starts_are_compared_with_the_first(count: int, ratio: float | None) -> None:
    report = Report("density")
    density._compare_ends(report, PLAIN, [10.0] * (count - 50) + [20.0] * 50)
    found = report.ratios.get("start: the last 50 kernels ÷ the first 50")
    assert (found.of_medians if found else None) == ratio
