"""The loads of `roost bench density`: they end where memory would run out, and its starts are compared."""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import pytest

from roost.bench import density
from roost.bench.density import FIRST, Filled, Limits, find_limit
from roost.bench.kernel import BenchKernel, Memory, NoAnswer
from roost.bench.report import Report
from roost.bench.runs import run
from roost.bench.sides import Side
from roost.scheduler.cli.main import main

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


async def test_a_kernel_that_does_not_answer_a_load_is_left_out() -> None:
    report = Report("density")
    kernels = [FakeKernel(), FakeKernel(fails_at="import pandas"), FakeKernel()]
    filled = Filled(kernels=list(kernels), nodes=dict.fromkeys(kernels, "a"))
    memory = await density._measure_loads(report, PLAIN, filled, NO_LIMIT, LOADS)
    assert [len(memory[load]) for load in LOADS] == [3, 2]
    assert report.failures == {"plain": 1}
    assert filled.kernels == list(filled.nodes) == [kernels[0], kernels[2]]


async def test_a_kernel_that_dies_between_the_starts_is_left_out() -> None:
    """It must not be asked again and again, and not be taken for the kernel that starts next."""
    report = Report("density")
    kernels = [FakeKernel(fails_at="1+1" if number == 3 else "") for number in range(10)]
    filled = Filled(kernels=list(kernels), nodes=dict.fromkeys(kernels, "a"), starts_ms=[1.0] * 10)
    assert await find_limit(report, PLAIN, filled, NO_LIMIT) == ("", "")
    assert report.failures == {"plain": 1}
    assert filled.kernels == list(filled.nodes) == [*kernels[:3], *kernels[4:]]


@pytest.mark.parametrize("failures", [1, 30])
def test_a_run_with_too_many_failures_ends_with_the_results_so_far(
    failures: int, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report("density")

    async def measure() -> None:
        report.add("start/plain", 100.0, "ms")
        for _ in range(failures):
            report.count_failure("plain", "it did not answer")

    arguments = argparse.Namespace(json=None)
    assert run(arguments, report, nullcontext(measure)) == (1 if failures == 30 else 0)
    shown = " ".join(capsys.readouterr().out.split())
    said = "Ended early, because 21 kernels of plain failed; the last one: it did not answer. These are the results"
    assert (said in shown) == (failures == 30)
    assert "start/plain" in shown


@pytest.mark.parametrize("name", ["numpy;import os", "numpy pandas", "a-b", "1+1"])
def test_a_package_must_be_a_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "density", "--packages", name]) == 2
    assert f"--packages {name}: give names as in an import" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "ratio"), [(99, None), (150, 2.0)])
def test_the_last_starts_are_compared_with_the_first(count: int, ratio: float | None) -> None:
    report = Report("density")
    density._compare_ends(report, PLAIN, [10.0] * (count - 50) + [20.0] * 50)
    found = report.ratios.get("start: the last 50 kernels ÷ the first 50")
    assert (found.of_medians if found else None) == ratio
