"""What an agent does about the cluster manager on whose node it runs: it watches the manager's daemons there.

The last one ends while the manager answers: the node has left the cluster, and its leases are gone. It ends because
the manager is gone: the kernels live on for a grace, in which the same cluster may come back.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from roost.launchers.daemon.private_files import read_json, write_private_json
from roost.launchers.daemon.process import Watch
from roost.launchers.protocol.json_codec import WireError, decode, encode
from roost.launchers.protocol.messages import Manager

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What `ManagerWatch` remembers."""

    managers: tuple[Manager, ...]


_SETTLE_S = 1.0
"""A manager and its daemon that are ended together end in any order."""
_CONNECT_S = 2.0
_PROBE_S = 6.0

Lost = Callable[[str], Awaitable[None]]
"""Called with a sentence when all leases of this node are lost."""
CutOff = Callable[[str], None]
"""Called with a sentence at once when the daemon ends: whatever becomes of leases, there is no new one here."""


class ManagerWatch:
    """Watches the daemons that `watch` was called with, which `file` remembers for the next agent.

    `is_cut_off` while all of them have ended, unless there never was one.
    """

    def __init__(self, file: Path, on_lost: Lost, on_cut_off: CutOff) -> None:
        self.is_cut_off = False
        self._file = file
        self._on_lost = on_lost
        self._on_cut_off = on_cut_off
        self._watches: dict[tuple[int, float], tuple[Manager, Watch]] = {}
        self._losing: asyncio.Task[None] | None = None

    def resume(self) -> None:
        """Watch again what an earlier agent of this folder watched."""
        known = read_json(self._file)
        if known is not None:
            try:
                for manager in decode(_Known, known, ignore_unknown=True).managers:
                    self._begin(manager)
            except WireError as problem:
                log.error("%s cannot be read: %s", self._file, problem)

    def watch(self, manager: Manager) -> None:
        """Watch this daemon as well; a grace that runs because of those before is over. Who `has_left` has ended."""
        key = (manager.pid, manager.process_started_at)
        if not manager.has_left:
            self._begin(manager)
        elif key in self._watches:
            self._ended(key)
        managers = tuple(known for known, _ in self._watches.values())
        write_private_json(self._file, encode(_Known(managers=managers)))

    def close(self) -> None:
        """Stop watching. May be repeated."""
        for _, watch in self._watches.values():
            watch.close()
        if self._losing is not None:
            self._losing.cancel()

    def _begin(self, manager: Manager) -> None:
        key = (manager.pid, manager.process_started_at)
        if key in self._watches:
            self._watches[key][1].close()
        if self._losing is not None:
            self._losing.cancel()
        self.is_cut_off = False
        self._watches[key] = (manager, Watch(*key, lambda: self._ended(key)))

    def _ended(self, key: tuple[int, float]) -> None:
        manager, watch = self._watches.pop(key)
        watch.close()
        if self._watches:
            return
        self.is_cut_off = True
        self._on_cut_off(f"{manager.name}'s last daemon here has ended")
        self._losing = asyncio.get_running_loop().create_task(self._lose(manager))

    async def _lose(self, manager: Manager) -> None:
        await asyncio.sleep(_SETTLE_S)
        if await _is_there(manager):
            reason = f"its node has left the {manager.name} cluster"
        else:
            log.warning("the %s cluster is gone; kernels stay for %g s", manager.name, manager.grace_s)
            await asyncio.sleep(manager.grace_s)
            reason = f"the {manager.name} cluster did not come back within {manager.grace_s:g} s"
        log.warning("all leases are lost: %s", reason)
        await self._on_lost(reason)


async def _is_there(manager: Manager) -> bool:
    """Whether the cluster that the daemon was of is still there; one that cannot be told from another is."""
    if manager.is_gone or not await _answers(manager.address):
        return False
    return not manager.probe or await asyncio.to_thread(_found, manager) in ("", manager.cluster_id)


def _found(manager: Manager) -> str:
    """The id of the cluster that is there now; empty where it does not say."""
    try:
        done = subprocess.run(
            manager.probe, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PROBE_S
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        log.warning("which cluster of %s is there now is not known: %s", manager.name, problem)
        return ""
    return done.stdout.strip()


async def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host.strip("[]"), int(port)), _CONNECT_S)
    except (OSError, ValueError, asyncio.TimeoutError):  # ValueError: that is no address
        return False
    writer.close()
    return True
