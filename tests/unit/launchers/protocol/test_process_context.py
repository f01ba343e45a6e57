"""The context of a process: read here, and set in a child before it starts a program."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from roost.launchers.protocol import process_context
from roost.launchers.protocol.process_context import (
    UNKNOWN,
    ProcessContext,
    find_obstacle,
    read_context,
    select_at_start,
    set_context,
)
from roost.placement.model.json_codec import decode, encode, encode_message

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="contexts are known on Linux only")

SHOW = """
import json
from roost.launchers.protocol.process_context import read_context
from roost.placement.model.json_codec import encode
print(json.dumps(encode(read_context())))
"""


def read_child(before: Callable[[], None]) -> ProcessContext:
    """Return the context of a program that a child starts after it has called `before`."""
    command = [sys.executable, "-c", SHOW]
    done = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=before)
    return decode(ProcessContext, json.loads(done.stdout))


def test_a_child_program_gets_the_context() -> None:
    own = read_context()
    limits = {**own.limits, "CORE": (0, own.limits["CORE"][1]), "STACK": (16 << 20, own.limits["STACK"][1])}
    wanted = replace(
        own, cpus=own.cpus[:1], niceness=(own.niceness or 0) + 2, policy=(os.SCHED_BATCH, 0), limits=limits
    )
    if own.io_priority is not None:
        wanted = replace(wanted, io_priority=2 << 13 | 6)  # best effort, level 6
    assert encode(read_child(lambda: set_context(wanted))) == encode(wanted)
    assert encode(read_child(lambda: set_context(UNKNOWN))) == encode(own)
    assert encode(read_context()) == encode(own)


def test_it_crosses_a_socket() -> None:
    own = read_context()
    assert encode(decode(ProcessContext, json.loads(json.dumps(encode_message(own))))) == encode(own)
    assert encode_message(UNKNOWN) == {}


def test_what_a_zygote_must_have_at_its_start() -> None:
    own = select_at_start(UNKNOWN)
    assert own == select_at_start(read_context())
    assert own.cpus == tuple(sorted(os.sched_getaffinity(0)))
    other = select_at_start(ProcessContext(limits={"STACK": (1 << 20, -1), "FSIZE": (1, 1)}, niceness=3))
    assert other == ProcessContext(cpus=own.cpus, limits={"STACK": (1 << 20, -1)})


def test_a_hard_limit_that_cannot_be_raised_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_obstacle(read_context()) == ""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = ProcessContext(limits={"NOFILE": (1, hard + 1)})
    for is_privileged in (False, True):
        monkeypatch.setattr(process_context, "is_privileged", lambda *_, answer=is_privileged: answer)
        problem = find_obstacle(wanted)
        assert problem.startswith(f"its hard limit RLIMIT_NOFILE would be {hard + 1}, but") != is_privileged
        assert find_obstacle(ProcessContext(limits={"NOFILE": (1, 1)})) == ""
