"""`KernelPrologues`: what the prologues of kernelspecs change in the environment of their hosts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from roost.launchers.daemon.tasks import join_shared, start_shared
from roost.placement.model.last_entries import LastEntries
from roost.scheduler.errors import BackendUnavailable, LaunchError

log = logging.getLogger(__name__)

_FRESH_S = 300.0
"""How long the result of a prologue is used, before it runs again on its host."""
_MOST = 1_000

Answer = Mapping[str, object]
Read = Callable[[str, str], Awaitable[Answer]]
"""A function of a host and a prologue. It returns {"variables": …}, or {"failed": a clause}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """The variables that a prologue has changed, when it began, and the machine since its last start."""

    variables: Mapping[str, str]
    read_at: float
    machine: str


class KernelPrologues:
    """The variables by host and prologue. They are kept in memory alone, because they may be secret.

    >>> prologues = KernelPrologues(read)                                               # doctest: +SKIP
    >>> await prologues.prepare("n1", "module load cuda", machine="m1")                 # doctest: +SKIP
    """

    def __init__(self, read: Read, clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._known: LastEntries[tuple[str, str], _Known] = LastEntries(_MOST)
        self._reading: dict[tuple[str, str], asyncio.Task[None]] = {}

    def variables(self, host: str, prologue: str) -> Mapping[str, str]:
        """Return the variables that were read last; none before the first reading."""
        known = self._known.get((host, prologue))
        return {} if known is None else known.variables

    async def prepare(self, host: str, prologue: str, machine: str) -> None:
        """Read the variables, unless they are known and fresh. `machine` changes when the host starts again.

        Variables that are only old stay in use if the host is out of reach. Raises `LaunchError` if the prologue fails,
        and `HostProblem`.
        """
        key = host, prologue
        known = self._known.get(key)
        if known is not None and known.machine == machine and self._clock() < known.read_at + _FRESH_S:
            return
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = start_shared(self._note(host, prologue, machine))
            reading.add_done_callback(lambda _: self._reading.pop(key))
        try:
            await join_shared(reading)
        except BackendUnavailable as problem:
            if known is None or known.machine != machine:
                raise
            log.info("node=%s its prologue has not run again: %s", host, problem)

    async def _note(self, host: str, prologue: str, machine: str) -> None:
        began = self._clock()
        answer = await self._read(host, prologue)
        variables = answer.get("variables")
        if not isinstance(variables, dict) or not all(
            isinstance(text, str) for item in variables.items() for text in item
        ):
            raise LaunchError(f"{host}: {answer.get('failed', 'its answer to the prologue cannot be read')}.")
        self._known.pop((host, prologue), None)  # the newest entries are kept
        self._known[host, prologue] = _Known(variables=variables, read_at=began, machine=machine)
