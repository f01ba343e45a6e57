"""Stops and continues a policy's processes in turn while it computes for long.

Stopped processes leave the processors to others, whatever the system's scheduler does. The stops reach the process
group, as the end of a late policy does. A low priority of the whole session is no substitute: on a busy machine, an
honest policy that needs 0.1 s then took up to 4 s. Many processes are stopped for longer, so that all together take
about as much as one would.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

from roost.launchers.daemon.tasks import Timers

RUNS_S = 0.002
"""How long the processes run in each turn."""
STOPS_S = 0.008
"""How long one process is stopped then, and how much longer for each further process of the group.

The service wakes up twice in each turn, so shorter turns would cost it more.
"""
_COUNT_EACH = 10
"""The processes of the group are counted once in so many turns."""


class DutyCycle:
    """The turns of one policy. `send` sends a signal to all processes of its group, and `count` counts them.

    Its processes must run at `begin`. They may be stopped at `end`.
    """

    def __init__(
        self, send: Callable[[int], object], count: Callable[[], int], timers: Timers | None = None
    ) -> None:
        self._send = send
        self._count = count
        self._timers = timers or Timers()
        self._turns = 0
        self._processes = 1

    def begin(self, free_s: float) -> None:
        """Let the policy compute without stops for `free_s`, and then in turns."""
        self._timers.later(free_s, self._stop, key="turn")

    def end(self) -> None:
        """The policy has answered, or its process is about to end."""
        self._timers.close()

    def _stop(self) -> None:
        self._send(signal.SIGSTOP)
        if self._turns % _COUNT_EACH == 0:
            self._processes = max(1, self._count())
        self._turns += 1
        self._timers.later(STOPS_S * self._processes, self._run, key="turn")

    def _run(self) -> None:
        self._send(signal.SIGCONT)
        self._timers.later(RUNS_S, self._stop, key="turn")
