"""The report of a benchmark: figures, ratios, claims, the order of the cases in each round, and the written files."""

from __future__ import annotations

import json
import random
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import pytest
from claims import Bound, Report, interleave, parser

from roost.bench.interval import Interval
from roost.bench.report import Figure


def report_of(plain: list[float], roost: list[float]) -> Report:
    report = Report("start", rounds=len(plain))
    for value in plain:
        report.add("start/plain", value, "ms")
    for value in roost:
        report.add("start/roost", value, "ms")
    return report


def test_a_figure_is_the_median_with_its_extremes() -> None:
    assert Figure.of([3.0, 1.0, 10.0], "ms") == Figure(median=3.0, min=1.0, max=10.0, n=3, unit="ms")


def test_the_ratio_of_medians_is_not_the_median_of_ratios() -> None:
    ratio = report_of([100.0, 200.0, 400.0], [50.0, 20.0, 200.0]).ratio("r", "start/roost", "start/plain")
    assert (ratio.of_medians, ratio.median, ratio.min, ratio.max, ratio.n) == (0.25, 0.5, 0.1, 0.5, 3)


def test_samples_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        report_of([1.0, 2.0], [1.0]).ratio("r", "start/roost", "start/plain")


def test_a_figure_keeps_its_unit() -> None:
    report = report_of([1.0], [1.0])
    with pytest.raises(ValueError, match="measured in ms, not in s"):
        report.add("start/plain", 1.0, "s")


@pytest.mark.parametrize(("value", "verdict"), [(0.19, "kept"), (0.2, "kept"), (0.21, "missed")])
def test_a_value_without_an_interval_is_judged_alone(value: float, verdict: str) -> None:
    report = Report("start")
    report.claim("at most", value, at_most=0.2)
    report.claim("at least", -value, at_least=-0.2)
    assert [claim.verdict for claim in report.claims] == [verdict, verdict]


@pytest.mark.parametrize(
    ("at_most", "verdict", "said"),
    [
        (0.3, "kept", "0.200 [0.180, 0.220] (expected ≤ 0.3)"),
        (0.15, "missed", "0.200 [0.180, 0.220] (expected ≤ 0.15)"),
        (0.212, "open", "0.200 [0.180, 0.220] (expected ≤ 0.212); about 11 more rounds would tell"),
        (0.2, "open", "0.200 [0.180, 0.220] (expected ≤ 0.2); too close for 1,000 more rounds to tell"),
    ],
)
def test_an_interval_decides_about_a_bound(at_most: float, verdict: str, said: str) -> None:
    bound = Bound(
        text="a", value=0.2, at_most=at_most, at_least=None, interval=Interval(0.18, 0.22), rounds=6
    )
    assert (bound.verdict, bound.describe("")) == (verdict, said)


def test_the_interval_of_a_ratio_is_paired() -> None:
    """A moment at which the machine is slow counts for both sides, so it does not widen the interval."""
    speeds = [100.0, 300.0, 150.0, 250.0, 120.0, 280.0, 200.0, 180.0]
    ratio = report_of(speeds, [speed / 4 for speed in speeds]).ratio("r", "start/roost", "start/plain")
    assert ratio.interval == Interval(0.25, 0.25)
    report = report_of(speeds, [speed / 4 for speed in reversed(speeds)])
    found = report.ratio("r", "start/roost", "start/plain").interval
    assert found is not None
    assert found.low < 0.2
    assert found.high > 0.3


def test_few_rounds_have_no_interval() -> None:
    ratio = report_of([1.0] * 4, [2.0] * 4).ratio("r", "start/roost", "start/plain")
    assert ratio.interval is None


def test_intervals_contain_the_true_ratio_as_often_as_they_say() -> None:
    dice = random.Random(5)
    hits = 0
    for _ in range(200):
        slow = [dice.lognormvariate(0, 0.3) for _ in range(20)]
        plain = [100.0 * each * dice.lognormvariate(0, 0.1) for each in slow]
        roost = [20.0 * each * dice.lognormvariate(0, 0.1) for each in slow]
        found = report_of(plain, roost).ratio("r", "start/roost", "start/plain").interval
        assert found is not None
        hits += found.low <= 0.2 <= found.high
    assert 180 <= hits <= 200


async def test_rounds_rotate_and_the_warm_up_is_dropped() -> None:
    order: list[str] = []

    def case(name: str) -> dict[str, float]:
        order.append(name)
        return {"start": float(len(order)), "stop": 0.5}

    async def first() -> Mapping[str, float]:
        return case("a")

    async def second() -> Mapping[str, float]:
        return case("b")

    report = Report("start")
    await interleave(report, {"a": first, "b": second}, rounds=2, warm_up=1)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert report.samples["start/a"] == [4.0, 5.0]
    assert report.samples["start/b"] == [3.0, 6.0]
    assert report.samples["stop/a"] == [0.5, 0.5]


@pytest.mark.parametrize(("check", "status"), [(True, 1), (False, 0)])
def test_the_written_report(tmp_path: Path, check: bool, status: int) -> None:
    report = report_of([200.0, 100.0], [30.0, 25.0])
    report.claim("start", report.ratio("start", "start/roost", "start/plain").of_medians, at_most=0.1)
    arguments = parser("x").parse_args(
        ["--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")]
    )
    assert report.finish(Namespace(**{**vars(arguments), "check": check})) == status
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["figures"]["start/roost"] == {
        "median": 27.5,
        "min": 25.0,
        "max": 30.0,
        "n": 2,
        "unit": "ms",
    }
    assert written["ratios"]["start"]["pairing"] == "by round"
    assert written["claims"][0]["verdict"] == "missed"
    assert written["machine"].keys() >= {"cpu", "cores", "memory_bytes", "kernel", "load_1min"}
    assert written["versions"].keys() >= {"python", "jupyter_client", "pyzmq"}
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_results_that_cannot_be_written_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"
    assert parser("what").parse_args(["--json", str(file)]).json == file
    assert not file.exists()  # nothing is written yet
    with pytest.raises(SystemExit):
        parser("what").parse_args(["--json", str(tmp_path / "missing" / "report.json")])
    assert "report.json cannot be written: No such file or directory." in capsys.readouterr().err
