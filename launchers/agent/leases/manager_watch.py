"""The agent's watch on the cluster manager's daemons on this node, such as a raylet.

If the manager answers both when the last daemon ends and a second later, the node has left the cluster. Its leases are
lost. Otherwise nobody else can be granted what they hold. So the kernels live on until another cluster begins here, or
until the same one is back and has not claimed their leases again within a grace. If the agent cannot see which daemons
begin, the grace counts from the end of the last one.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from roost.launchers.daemon.file_input import put_aside, take_json
from roost.launchers.daemon.private_files import write_private_json
from roost.launchers.daemon.process import Watch, current_start_time, is_later, is_running, start_time
from roost.launchers.protocol.messages import DaemonCommand, Manager
from roost.placement.model.json_codec import WireError, decode, encode

log = logging.getLogger(__name__)

SETTLE_S = 1.0
"""How long to wait before asking again after a daemon's end: a manager that ends too may end a little later."""
_CONNECT_S = 2.0
_PROBE_S = 6.0
LOOK_S = 1.0
"""How often an agent looks for another daemon while its own ones are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Managers:
    """The content of the file of a `ManagerWatch`."""

    managers: tuple[Manager, ...]


@dataclass
class ManagerWatch:
    """A watch on the daemons given to `watch`."""

    file: Path
    """The next agent reads the daemons from this file."""
    on_lost: Callable[[str], Awaitable[None]]
    """Gets the reason when all leases of this node are lost."""
    on_cut_off: Callable[[str], None]
    """Gets the reason as soon as the last daemon ends: the node gets no new leases."""
    promised_s: Callable[[], float] = lambda: 0.0
    """The longest grace with which a lease here was reserved. The next service may have a shorter one."""
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    is_cut_off: bool = False
    """True from then until another daemon is watched."""
    ends_at: float | None = None
    """When all leases here are lost if nobody claims them again, as `time.time`; None if that is not known."""
    _watches: dict[tuple[int, float], tuple[Manager, Watch]] = field(default_factory=dict)
    _seen: set[tuple[int, float]] = field(default_factory=set)
    """The daemons that ran when their watch began."""
    _losing: asyncio.Task[None] | None = None

    def resume(self) -> None:
        """Watch the daemons that an earlier agent of this folder watched."""
        try:
            known = decode(_Managers, take_json(self.file, log) or {"managers": ()}, ignore_unknown=True)
        except WireError as problem:
            put_aside(self.file, f"cannot be read: {problem}", log)
        else:
            for manager in known.managers:
                self._begin(manager)

    def watch(self, manager: Manager) -> None:
        """Watch another daemon and end a running grace, or note the end of a daemon that `has_left`."""
        key = (manager.pid, manager.process_started_at)
        if not manager.has_left:
            self._begin(manager)
        elif key in self._watches:
            self._ended(key)
        # For the next agent.
        write_private_json(self.file, {"managers": [encode(known) for known, _ in self._watches.values()]})

    def close(self) -> None:
        for _, watch in self._watches.values():
            watch.close()
        if self._losing is not None:
            self._losing.cancel()

    def _begin(self, manager: Manager) -> None:
        key = (manager.pid, manager.process_started_at)
        if key in self._watches:
            self._watches[key][1].close()
        if self._losing is not None:
            # The cluster is back within the grace. Releases that have begun go on: their leases are reported as lost.
            self._losing.cancel()
        self.is_cut_off, self.ends_at = False, None
        if is_running(*key):
            self._seen.add(key)
        self._watches[key] = (manager, Watch(*key, lambda: self._ended(key)))

    def _ended(self, key: tuple[int, float]) -> None:
        manager, watch = self._watches.pop(key)
        watch.close()
        if self._watches:
            return
        # Older daemons have shared the node with this one. An agent that comes later does not know when it ended.
        after = current_start_time() - SETTLE_S if key in self._seen else manager.process_started_at
        self._seen.discard(key)
        manager = replace(manager, grace_s=max(manager.grace_s, self.promised_s()))
        # Before the report, so that a scheduler that asks for the status at once sees a node that is draining.
        self.is_cut_off = True
        if manager.command is None:
            self.ends_at = time.time() + SETTLE_S + manager.grace_s
        self.on_cut_off(f"{manager.name}'s last daemon here has ended")
        self._losing = asyncio.get_running_loop().create_task(self._lose(manager, after))

    async def _lose(self, manager: Manager, after: float) -> None:
        was_away = not await answers(manager.address)  # it may be back within `SETTLE_S`
        await self.sleep(SETTLE_S)
        if not was_away and await _cluster_answers(manager):
            reason = f"its node has left the {manager.name} cluster"
        else:
            log.warning("the %s cluster is away", manager.name)
            if manager.command is None:
                reason = await self._await_grace(manager)
            else:
                reason = await self._await_daemon(manager, manager.command, after)
        log.warning("all leases are lost: %s", reason)
        await self.on_lost(reason)

    async def _await_grace(self, manager: Manager) -> str:
        """Return why the leases are lost once the grace is over."""
        await self.sleep(manager.grace_s)
        who = f"the {manager.name} cluster did not come back"
        if not manager.is_gone and await answers(manager.address):
            who = f"its node did not come back to the {manager.name} cluster"
        return f"{who} within {manager.grace_s:g} s"

    async def _await_daemon(self, manager: Manager, known: DaemonCommand, after: float) -> str:
        """Return why the leases are lost once another cluster's daemon has begun here after the time `after`.

        One of the same cluster has a grace to be given to `watch`, as long as it runs.
        """
        looks_left = None  # until the end of this grace
        while True:
            found = await asyncio.to_thread(find_daemon, known, after)
            if found is None:
                looks_left = self.ends_at = None
            elif found != known:
                return f"another {manager.name} cluster has begun on its node"
            elif looks_left is None:
                looks_left = manager.grace_s / LOOK_S
                self.ends_at = time.time() + manager.grace_s
                self.on_cut_off(
                    f"the {manager.name} cluster is back on its node, and has to be claimed again"
                )
            elif (looks_left := looks_left - 1) <= 0:
                return f"nobody claimed its place in {manager.grace_s:g} s since the {manager.name} cluster was back"
            await self.sleep(LOOK_S)


def find_daemon(known: DaemonCommand, after: float) -> DaemonCommand | None:
    """Return the command of a daemon that has begun on the same node after this `start_time`; None if there is none.

    A daemon that is older than the one that has ended shared the node with it. Blocks for milliseconds.
    """
    cluster, _, _ = known.cluster.partition("=")
    for process in psutil.process_iter(["name"]):
        if process.info["name"] != known.name:
            continue
        with suppress(psutil.Error):  # it has ended
            words = process.cmdline()
            if known.node in words and is_later(start_time(process.pid), after):
                name = next((word for word in words if word.partition("=")[0] == cluster), "")
                return replace(known, cluster=name)
    return None


async def _cluster_answers(manager: Manager) -> bool:
    """True if the manager answers and is not known to belong to another cluster."""
    if manager.is_gone or not await answers(manager.address):
        return False
    return not manager.probe or await asyncio.to_thread(_read_cluster_id, manager) in ("", manager.cluster_id)


def _read_cluster_id(manager: Manager) -> str:
    """Return the id of the cluster at the manager's address, or an empty text if that is unknown."""
    try:
        result = subprocess.run(
            manager.probe, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PROBE_S
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as problem:
        log.warning("the id of the %s cluster cannot be read: %s", manager.name, problem)
        return ""
    return result.stdout.strip()


async def answers(address: str) -> bool:
    """True if something accepts connections at `host:port` within seconds."""
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host.strip("[]"), int(port)), _CONNECT_S)
    except (OSError, ValueError, asyncio.TimeoutError):  # ValueError: not an address
        return False
    writer.close()
    return True
