"""The process of one foreign policy, which roost does not ship: `python -m roost.scheduler.policies.policy_process FD`.

The policy has an interpreter of its own here, with its own locks, threads and memory. The service (`sandbox`) is at the
other end of the socket FD: it sends pickles, and gets frames. A frame is a length of 4 bytes and as many bytes. The
service also holds the other end of the pipe that is the standard input here, and writes nothing to it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pickle
import resource
import select
import signal
import socket
import sys
from contextlib import suppress
from typing import BinaryIO

import numpy as np

from roost.launchers.protocol.process_log import set_up_log
from roost.placement import Policy, Snapshot, Workload
from roost.placement.shipped_policies import build_policy
from roost.scheduler.errors import ConfigError

from .decision_check import write_decision
from .loader import find_policy, format_error, load_policy
from .pickling import unpack_policy
from .policy_messages import PolicySource, Question, Setup

log = logging.getLogger(f"{__package__}.policy_process")  # `__name__` is `__main__`


class _Answerer:
    """The policy, which answers questions."""

    def __init__(self, source: PolicySource) -> None:
        self._name = source.name
        self._found = (
            unpack_policy(source.pickled) if source.pickled else find_policy(source.name, source.named)
        )
        self._policy: Policy = build_policy(self._found, self._name)
        self._learns = not isinstance(self._found, (type, Policy))
        self._workload = Workload()
        self._last_error = ""

    def answer(self, question: Question) -> bytes:
        """Return the checked decision as JSON, or the description of the policy's error."""
        snapshot = Snapshot.of(question.nodes, question.version).with_ages(np.frombuffer(question.ages))
        try:
            if self._learns and question.workload != self._workload:
                self._policy = build_policy(self._found, self._name, question.workload)
                self._workload = question.workload
            decision = self._policy.place(question.request, snapshot, avoid=question.avoid)
            return write_decision(decision, question.request, snapshot, question.avoid)
        except BaseException as problem:  # the policy's code may even raise SystemExit
            text = format_error(problem)
            if text != self._last_error:  # the policy's author needs the traceback, once
                log.exception("policy=%s failed", self._name)
            else:
                log.error("policy=%s failed again: %s", self._name, text)
            self._last_error = text
            return json.dumps({"problem": text}).encode()


def main(descriptor: int) -> None:
    """Load a policy and answer questions about it until the service closes the socket."""
    _end_group_with_service()
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
        _send(connection, json.dumps({"problem": problem.user_message}).encode())
        return
    _send(connection, b"{}")
    while isinstance(question := _receive(messages), Question):
        _send(connection, answerer.answer(question))


def _receive(messages: BinaryIO) -> Setup | Question | None:
    """Return the next message, or None if the service has closed the socket."""
    try:
        message: Setup | Question = pickle.load(messages)
    except EOFError:
        return None
    return message


def _send(connection: socket.socket, content: bytes) -> None:
    connection.sendall(len(content).to_bytes(4, "big") + content)


def _end_group_with_service() -> None:
    """Have the system end this process group when the service ends, however it ends. Linux only.

    The group's processes may be stopped, or hold their interpreters, so that they could not notice it. The system sends
    SIGKILL to the whole group once the service's end of the pipe is closed. All processes of the group inherit our end.
    """
    if not hasattr(fcntl, "F_SETSIG"):
        return
    pipe = sys.stdin.fileno()
    fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([pipe], [], [], 0)[0]:  # the service has ended before
        sys.exit()


def _limit_memory(most_bytes: int) -> None:
    """Let this process take so much more memory than it has now. Linux only.

    If the machine has less, the system ends this process before others.
    """
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    with suppress(OSError, ValueError), open("/proc/self/statm") as file:
        data_bytes = int(file.read().split()[5]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        most = data_bytes + most_bytes
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))


if __name__ == "__main__":
    main(int(sys.argv[1]))
