"""The failed tests of a part, from the junit file that pytest has written."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

Label = Literal["FLAKY", "UNSTABLE", "FAILED"]
NEVER_FLAKY = ("tests/property/", "tests/packaging/")
"""The tests in these folders get the same inputs in each run, and wait for nothing."""
GROUP = "on:"
"""How the name of a worker's group of tests begins. pytest-xdist adds `@` and the name to the ids of tests."""
_SHOWN = 300
_NO_REASONS = ("", "Skipped", "unconditional skip")
"""What pytest writes for a skip without a reason."""
_HANG = re.compile(r"^E .*Timeout \(>", re.MULTILINE)
_CRASH = re.compile(r"^worker '\w+' crashed", re.MULTILINE)
_LEFT = re.compile(r"^E .*left behind", re.MULTILINE)
_LEFT_BEHIND = "something was left"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failed test: its id, its error in one line, and why it is never forgiven; empty if it may be."""

    test: str
    error: str
    never: str = ""
    label: Label = "FAILED"

    @property
    def is_race(self) -> bool:
        """True unless the test only waited too long: a wrong value, an event that never came, something left."""
        return "TooLate" not in self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class PartResult:
    """What a part has shown. `is_broken`: it has failed, and no test says why."""

    part: str
    minutes: float
    tests: int = 0
    failures: tuple[Failure, ...] = ()
    reasonless: tuple[str, ...] = ()
    """The tests that were skipped without a reason."""
    is_broken: bool = False


def read_junit(path: Path, root: Path = Path()) -> tuple[int, list[Failure], list[str]]:
    """Return the number of tests, the failed ones, and those that were skipped without a reason.

    `root` is the folder in which pytest has run.
    """
    failures: dict[str, Failure] = {}
    reasonless = []
    cases = list(ElementTree.parse(path).iter("testcase"))
    for case in cases:
        test = _name(case, root)
        for problem in (*case.iter("failure"), *case.iter("error")):
            error = " ".join(problem.get("message", "").split())[:_SHOWN]
            never = _why_never(test, problem.get("message", ""), problem.text or "")
            if (first := failures.get(test)) is None:
                failures[test] = Failure(test=test, error=error, never=never)
            elif never != _LEFT_BEHIND:  # what a test leaves behind because it has failed does not count
                failures[test] = replace(first, never=first.never or never)
        if any(skipped.get("message", "").strip() in _NO_REASONS for skipped in case.iter("skipped")):
            reasonless.append(test)
    return len(cases), list(failures.values()), reasonless


def _name(case: ElementTree.Element, root: Path) -> str:
    """Return the id of a test, as pytest takes it.

    The attribute `file` is where its function is: for an inherited test, the file of the base class.
    """
    parts = case.get("classname", "").split(".")
    name = case.get("name", "").partition(f"@{GROUP}")[0]  # pytest-xdist adds the group
    for count in range(len(parts), 0, -1):
        file = "/".join(parts[:count]) + ".py"
        if (root / file).is_file():
            return "::".join([file, *parts[count:], name])
    return f"{case.get('file', '')}::{name}"  # it could not be collected: it fails again


def _why_never(test: str, message: str, text: str) -> str:
    if _CRASH.search(text) or _CRASH.search(message):
        return "a worker crashed"
    if _HANG.search(text):
        return "it hung"
    if message.startswith("failed on teardown") or _LEFT.search(text):
        return _LEFT_BEHIND
    return "it is never flaky" if test.startswith(NEVER_FLAKY) else ""
