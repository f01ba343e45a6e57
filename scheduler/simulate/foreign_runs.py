"""Runs streams under a foreign policy, which roost does not ship, in a process of its own.

A policy that ends its process does not end the command: the command names the policy. The process and the command send
each other pickles through a socket. Each message of the command gets an answer: an error, a `PolicyRun`, or None when
the policy is loaded.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from roost.launchers.daemon.process import describe_exit, end_with_parent
from roost.scheduler.errors import ConfigError

from .policy_runs import PolicyRuns, Streams
from .report import PolicyRun

_PROGRESS = "progress"
_CLOSED_S = 1.0
"""How long after the end of its socket a process may take to end. Else its policy has closed the socket."""


class ForeignRuns:
    """The runs of one foreign policy in another process. The parameters and errors are those of `PolicyRuns`."""

    def __init__(self, name: str, named: Mapping[str, str], streams: Streams) -> None:
        self._name = name
        self._setup = (name, dict(named), streams)
        self._connection, theirs = Pipe()
        with theirs:
            descriptor = theirs.fileno()
            # with our path, because a module of the working directory must not replace one of roost
            code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main({descriptor})"
            self._process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[descriptor])

    def __enter__(self) -> ForeignRuns:
        """Load the policy."""
        try:
            self._ask(self._setup)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, seed: int, on_progress: Callable[[], object]) -> PolicyRun:
        """Run the stream of this seed under a new policy. Raises `ConfigError` if the policy fails."""
        answer = self._ask(seed, on_progress)
        assert isinstance(answer, PolicyRun)
        return answer

    def _ask(self, message: object, on_progress: Callable[[], object] = lambda: None) -> PolicyRun | None:
        try:
            self._connection.send(message)
            while (answer := self._connection.recv()) == _PROGRESS:
                on_progress()
        except (EOFError, OSError):
            how = "closed the socket to the command"
            with suppress(subprocess.TimeoutExpired):
                how = describe_exit(self._process.wait(_CLOSED_S))
            raise ConfigError(f"policy {self._name} failed (its process {how}).") from None
        if isinstance(answer, ConfigError):
            raise answer
        assert answer is None or isinstance(answer, PolicyRun)
        return answer

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()


def main(descriptor: int) -> None:
    """Load a policy and run the streams that the command asks for, in its process, until the command ends it."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    try:
        runs = PolicyRuns(*connection.recv())
        connection.send(None)
        while True:
            connection.send(runs.run(connection.recv(), lambda: connection.send(_PROGRESS)))
    except ConfigError as problem:
        connection.send(problem)
