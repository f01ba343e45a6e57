"""Whose kernels they are, and whether those applications still live.

An application's process is named by its pid and start time, both of which are in the agent's records: so a
scheduler that was restarted watches the same processes again. All clients come over a Unix socket, so that they are
on this machine, whatever its name is on today's network. An owner without a pid cannot be watched and counts as alive.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from roost.launchers.daemon.process import Watch
from roost.launchers.protocol.messages import Owner

log = logging.getLogger(__name__)

OwnerKey = tuple[str, int, float]


@dataclass(slots=True, kw_only=True)
class _Watched:
    watch: Watch
    is_alive: bool = True


def owner_key(owner: Owner) -> OwnerKey:
    """What tells one application process from all others."""
    return owner.host, owner.pid, owner.process_started_at


class Owners:
    """Watches owners; `on_death` is called once for each that ends, with its key."""

    def __init__(self, *, on_death: Callable[[OwnerKey], None]) -> None:
        self._on_death = on_death
        self._watched: dict[OwnerKey, _Watched] = {}

    def watch(self, owner: Owner) -> None:
        """Watch this owner from now on. May be repeated."""
        key = owner_key(owner)
        if key in self._watched or not owner.pid:
            return

        def ended() -> None:
            self._watched[key].is_alive = False
            log.info("owner=%s pid=%d has ended", owner.application or owner.user, owner.pid)
            self._on_death(key)

        self._watched[key] = _Watched(watch=Watch(owner.pid, owner.process_started_at, ended))

    def is_alive(self, owner: Owner) -> bool:
        watched = self._watched.get(owner_key(owner))
        return watched is None or watched.is_alive

    def forget(self, key: OwnerKey) -> None:
        """Stop watching: nothing of this owner's is left. May be repeated."""
        watched = self._watched.pop(key, None)
        if watched is not None:
            watched.watch.close()

    def close(self) -> None:
        for key in list(self._watched):
            self.forget(key)
