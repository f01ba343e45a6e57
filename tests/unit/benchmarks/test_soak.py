"""The conditions under which the soak run reports growth."""

from __future__ import annotations

import pytest
from soak import is_growing, measure_growth

from roost.bench.world import name_part, pss_bytes


def test_growth_is_measured_over_the_second_half() -> None:
    assert measure_growth([0, 50, 100, 100, 100, 100]) == 0
    assert measure_growth([0, 0, 0, 10, 20, 30]) == pytest.approx(20)
    assert measure_growth([1]) == 0


@pytest.mark.parametrize(
    ("name", "samples", "grows"),
    [
        ("agent fds", [20, 30, 30, 30, 30, 30, 30, 30], False),
        ("agent fds", [20, 30, 31, 32, 33, 34, 35, 36], True),
        ("agent fds", [30, 30, 30, 30, 30, 31, 30, 30], False),
        ("agent RSS", [60, 60, 60, 60, 60.0, 60.3, 60.6, 60.9], False),
        ("agent RSS", [60, 60, 60, 60, 60, 61, 62, 63], True),
        ("service RSS", [400, 400, 400, 400, 400, 402, 404, 406], False),
        ("agent threads", [4, 4, 4, 4, 4, 5, 5, 6], True),
        ("runtime folder files", [9, 9, 9, 9, 10, 11, 12, 13], True),
    ],
)
def test_noise_is_not_growth(name: str, samples: list[float], grows: bool) -> None:
    assert is_growing(name, samples) is grows


def test_parts_of_roost_are_named_by_their_command_line() -> None:
    assert name_part(["python", "-m", "roost.scheduler.service.server", "/tmp/agent"]) == "service"
    assert name_part(["python", "-m", "roost.launchers.agent.main"]) == "agent"
    assert name_part(["python", "/lib/roost/launchers/zygote/main.py", "/tmp/agent"]) == "zygote"


def test_an_ended_process_has_no_memory() -> None:
    with pytest.raises(ProcessLookupError):
        pss_bytes(2**22 + 1)
