"""The process of one foreign policy, which roost does not ship: `python -m roost.scheduler.policies.policy_process FD`.

The policy has an interpreter of its own here, with its own locks, threads and memory. The service (`sandbox`) is at the
other end of the socket FD: it sends pickles, and gets frames. A frame is a length of 4 bytes and as many bytes. Each
question gets an empty frame when the snapshot is up to date, and a frame of JSON with the answer.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import resource
import socket
import sys
from contextlib import suppress
from typing import BinaryIO

import numpy as np

from roost.launchers.daemon.process import end_with_parent
from roost.launchers.protocol.process_log import set_up_log
from roost.placement import Policy, Snapshot
from roost.placement.shipped_policies import build_policy
from roost.scheduler.errors import ConfigError

from .decision_check import write_decision
from .loader import find_policy, format_error, load_policy
from .pickling import unpack_policy
from .policy_messages import PolicySource, Question, Setup

log = logging.getLogger(f"{__package__}.policy_process")  # `__name__` is `__main__`

_NICENESS = 10
"""With this niceness, a policy that computes without end leaves nine tenths of a contended core to kernel starts."""


class _Answerer:
    """The policy, and the snapshot that it is asked about."""

    def __init__(self, source: PolicySource) -> None:
        self._name = source.name
        self._found = (
            unpack_policy(source.pickled) if source.pickled else find_policy(source.name, source.named)
        )
        self._policy: Policy = build_policy(self._found, self._name)
        self._learns = not isinstance(self._found, (type, Policy))
        self._snapshot: Snapshot | None = None
        self._last_error = ""

    def update(self, question: Question) -> None:
        """Bring the snapshot up to date. None of the policy's code runs."""
        if self._snapshot is None:
            self._snapshot = Snapshot.of(question.nodes, question.version)
        elif question.nodes or question.removed:
            self._snapshot = self._snapshot.apply(question.nodes, question.removed)
        self._snapshot = self._snapshot.with_ages(np.frombuffer(question.ages))

    def answer(self, question: Question) -> dict[str, str] | bytes:
        """Return the checked decision as JSON, or the description of the policy's error."""
        assert self._snapshot is not None
        try:
            if self._learns and question.workload is not None:
                self._policy = build_policy(self._found, self._name, question.workload)
            decision = self._policy.place(question.request, self._snapshot, avoid=question.avoid)
            return write_decision(decision, question.request, self._snapshot, question.avoid)
        except BaseException as problem:  # the policy's code may even raise SystemExit
            text = format_error(problem)
            if text != self._last_error:  # the policy's author needs the traceback, once
                log.exception("policy=%s failed", self._name)
            else:
                log.error("policy=%s failed again: %s", self._name, text)
            self._last_error = text
            return {"problem": text}


def main(descriptor: int) -> None:
    """Load a policy and answer questions about it until the service closes the socket."""
    _stand_back()
    connection = socket.socket(fileno=descriptor)
    messages = connection.makefile("rb")
    setup = _receive(messages)
    if not isinstance(setup, Setup):
        return
    if setup.has_log:
        set_up_log()
    else:
        logging.getLogger("roost").addHandler(logging.NullHandler())
    sys.path[:] = setup.path
    with suppress(OSError):  # it was removed
        os.chdir(setup.folder)
    _limit_memory(setup.memory_bytes)
    try:
        answerer = load_policy(setup.source.name, lambda: _Answerer(setup.source))
    except ConfigError as problem:
        _send(connection, {"problem": problem.user_message})
        return
    _send(connection, {})
    while isinstance(question := _receive(messages), Question):
        answerer.update(question)
        _send(connection, b"")
        _send(connection, answerer.answer(question))


def _receive(messages: BinaryIO) -> Setup | Question | None:
    """Return the next message, or None if the service has closed the socket."""
    try:
        message: Setup | Question = pickle.load(messages)
    except EOFError:
        return None
    return message


def _send(connection: socket.socket, content: dict[str, str] | bytes) -> None:
    if isinstance(content, dict):
        content = json.dumps(content).encode()
    connection.sendall(len(content).to_bytes(4, "big") + content)


def _stand_back() -> None:
    """Let everything else come first. Have the system end this process with the service."""
    end_with_parent()
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    os.nice(_NICENESS)


def _limit_memory(most_bytes: int) -> None:
    """Let this process take so much more memory than it has now. Linux only."""
    with suppress(OSError, ValueError), open("/proc/self/statm") as file:
        data_bytes = int(file.read().split()[5]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        most = data_bytes + most_bytes
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))


if __name__ == "__main__":
    main(int(sys.argv[1]))
