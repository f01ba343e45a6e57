"""The programs notice a spoilt fork: for each spoil, at least one program prints something else.

This shows that `test_programs.py` can fail. `kit.programs.spoils` has the spoils.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.programs.kinds import Kinds, open_kinds
from kit.programs.program import explain_no_standby, load
from kit.programs.spoils import SPOILS, VARIABLE, Spoil, write_spoilt_script

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only"),
]

PYTHON = os.environ.get("ROOST_TEST_PYTHON", sys.executable)


@pytest.fixture(scope="module")
def spoilt_kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kinds]:
    script = write_spoilt_script(tmp_path_factory.mktemp("zygote") / "zygote")
    with open_kinds(PYTHON, script=script) as kinds:
        yield kinds


def list_cases() -> list[object]:
    return [
        pytest.param(
            spoil, id=spoil.state.replace(" ", "-"), marks=() if spoil.is_in_ci else pytest.mark.long
        )
        for spoil in SPOILS
    ]


@pytest.mark.parametrize("kind", ["fork", "standby"])
@pytest.mark.parametrize("spoil", list_cases())
def test_a_program_notices_the_spoil(spoilt_kinds: Kinds, spoil: Spoil, kind: str) -> None:
    program = load(spoil.program)
    if missing := program.explain_missing(PYTHON) or explain_no_standby(PYTHON, program, kind):
        pytest.skip(missing)
    unspoilt = spoilt_kinds.run(program, kind)
    spoilt = spoilt_kinds.run(program, kind, env={VARIABLE: spoil.code})
    assert spoilt != unspoilt, f"{program.name} does not notice {spoil.state}"


def test_a_kernel_without_a_spoil_is_like_a_fresh_one(spoilt_kinds: Kinds) -> None:
    """The hook itself changes nothing."""
    program = load("hooks_of_tracing")
    assert spoilt_kinds.run(program, "fork", env={VARIABLE: ""}) == spoilt_kinds.run_fresh(program)


def test_at_least_fifteen_states_are_spoilt() -> None:
    assert len({spoil.state for spoil in SPOILS}) >= 15
    assert all(Path(spoil.program).name == spoil.program for spoil in SPOILS)
