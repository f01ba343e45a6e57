"""One test for all values of a table, if they never fail apart. Its message names each wrong value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import pytest

Case = TypeVar("Case")


def find_wrong(cases: Iterable[Case], check: Callable[[Case], object]) -> list[str]:
    """Return a line for each case for which `check` raises. Raise AssertionError if there is no case."""
    wrong, all_cases = [], list(cases)
    assert all_cases, "there is no case"
    for case in all_cases:
        try:
            check(case)
        except (Exception, SystemExit, pytest.fail.Exception) as error:  # noqa: BLE001 - any error names its case
            wrong.append(f"{case!r}: {type(error).__name__}: {error}")
    return wrong
