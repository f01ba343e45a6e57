"""A process that ends with this one, also when this one is killed."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from roost.testing.deadlines import allow_s

from . import first_process

_STEP_S = 60.0


class HeldProcess:
    """A process that reads its standard input to its end, and then ends. Its parent's death ends the input too.

    It begins in steps. It prints a line when a step is done, and `go` lets it begin the next one. Its error output is
    appended to `log`.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self._log, self._name = log, command[0]
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                command, env=environment, cwd="/", bufsize=0, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def await_step(self) -> None:
        """Wait until a step is done. Raise RuntimeError with the log's end if the process ends or hangs."""
        assert self._process.stdout is not None
        is_readable = select.select([self._process.stdout], [], [], allow_s(_STEP_S))[0]
        if not is_readable or not os.read(self._process.stdout.fileno(), 1000):
            tail = self._log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self._name} {'ended' if is_readable else 'hangs'}:\n{tail}")

    def go(self, word: str = "") -> None:
        """Begin the next step. The process reads `word` as a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())

    def end(self) -> None:
        """End the process and wait for that. May be repeated."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(allow_s(_STEP_S))
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


def first_command(*sshd: str) -> list[str]:
    """Return the command of a host's first process, which runs this command of sshd. Its only step is the start."""
    return [sys.executable, "-IS", first_process.__file__, *sshd]
