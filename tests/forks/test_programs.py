"""A comparison of the agent's kernels with fresh ones: small programs must print the same.

The programs are in `tests/conformance/programs/`; `kit.programs` runs them. `differences.toml` beside them lists the
known differences. It is exact: a listed program that prints the same fails, too.

`ROOST_TEST_PYTHON` names another Python with ipykernel.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator

import pytest

from kit.programs.differences import read_differences
from kit.programs.kinds import KINDS, Kinds, open_kinds
from kit.programs.program import Program, explain_no_standby, load_programs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")

PYTHON = os.environ.get("ROOST_TEST_PYTHON", sys.executable)
IN_CI = ("fork", "standby")


@pytest.fixture(scope="module")
def kinds() -> Iterator[Kinds]:
    with open_kinds(PYTHON) as opened:
        yield opened


def list_cases() -> Iterator[pytest.param]:
    for program in load_programs():
        for kind in KINDS:
            marks = () if program.is_in_ci and kind in IN_CI else (pytest.mark.long,)
            yield pytest.param(program, kind, marks=marks, id=f"{program.name}-{kind}")


@pytest.mark.parametrize(("program", "kind"), list(list_cases()))
def test_a_program_prints_the_same(kinds: Kinds, program: Program, kind: str) -> None:
    if missing := program.explain_missing(PYTHON) or explain_no_standby(PYTHON, program, kind):
        pytest.skip(missing)
    fresh, forked = kinds.run_fresh(program), kinds.run(program, kind)
    reason = read_differences().get((program.name, kind))
    if reason is not None:
        is_same = forked == fresh and not reason.startswith("sometimes:")
        assert not is_same, f"this program is listed as different, but prints the same: {reason}"
        pytest.skip(f"known: {reason}")
    assert forked == fresh, "\n".join(
        ["", *difflib.unified_diff(fresh, forked, "fresh", kind, lineterm="", n=1)]
    )


def test_a_third_of_the_programs_runs_for_each_change() -> None:
    programs = load_programs()
    assert len(programs) >= 120
    assert sum(program.is_in_ci for program in programs) >= len(programs) / 3


def test_the_differences_name_programs_and_kinds() -> None:
    names = {program.name for program in load_programs()}
    assert all(name in names and kind in KINDS for name, kind in read_differences())
