"""Which failures of a whole run are forgiven."""

from __future__ import annotations

import pytest

from kit.machine.failure_labels import judge

FLAKY = "FLAKY\ttest_it.py::test_late\tE TimeoutError"
WRONG = "FAILED\ttest_it.py::test_wrong\tE assert False"


@pytest.mark.parametrize(
    ("lines", "is_green"),
    [([], True), ([FLAKY] * 3, True), ([FLAKY] * 4, False), ([WRONG], False), ([FLAKY, WRONG], False)],
)
def test_three_flaky_tests_are_forgiven(lines: list[str], is_green: bool) -> None:
    assert judge(lines) == is_green
