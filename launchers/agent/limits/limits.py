"""Limits kernels to the resources that their leases promise. `Limits` has a `Confinement` per lease.

It uses control groups where this agent may make them. Otherwise it limits the memory of each process, and
watches the sum. In a pod or container, the cluster manager limits the only kernel, and the agent only reads
its use of memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from roost.launchers.agent.machine.sessions import Session
from roost.launchers.daemon.tasks import cancel_all, spawn
from roost.launchers.protocol.agent_settings import Enforcement
from roost.launchers.protocol.messages import Lease
from roost.placement.model import Request
from roost.placement.model.format import format_bytes
from roost.placement.model.node import MEMORY_ONLY

from .cgroups import Cgroup, CgroupTree, NoCgroups
from .confinement import (
    Confinement,
    GroupConfinement,
    ManagedConfinement,
    WatchedConfinement,
    is_watched,
)

log = logging.getLogger(__name__)

_NEAR, _FAR = 0.9, 0.8
"""A kernel is reported when it uses the first share of its memory. It is reported again only if its use has
been below the second share meanwhile.
"""
_PAUSE_S, _WATCH_S = 1.0, 0.1
"""The pause between two measurements of kernels: in control groups, and without them."""
_BEST_EFFORT_CPUS = 0.1
"""The CPU weight of a kernel that requests memory and no CPUs."""
_ROUNDED_BYTES = 1 << 30
"""How much a pod's or container's own memory limit may exceed the request.

A limit that exceeds the request by more is that of the whole node.
"""
_MOST_BUSY = 0.01
"""At most this share of a CPU is spent on measuring kernels."""


class NotEnforced(Exception):
    """An error: limits are required for a kernel but cannot be enforced here. Its text gives the reason."""


class Limits:
    """The limits of an agent's leases: a `Confinement` for each lease, by lease id.

    `own_group` is the agent's own control group if the cluster manager limits it; then the agent sets no limits.
    `list_others` returns the pids of zygotes and of kernels without promises. They share one control group, so that
    together they get the CPU time of one CPU where CPUs are short. `on_near` is called with a lease id and a clause for
    a kernel that is about to use all its memory.
    """

    def __init__(
        self,
        name: str,
        settings: Enforcement,
        session: Session,
        *,
        cpus: float,
        own_group: Cgroup | None,
        list_others: Callable[[], Iterable[int]],
        on_near: Callable[[str, str], object],
        make_tree: Callable[[str], CgroupTree] = CgroupTree,
    ) -> None:
        self._settings = settings
        self._session = session
        self._cpus = cpus
        self._list_others = list_others
        self._on_near = on_near
        self._held: dict[str, Confinement] = {}
        self._near: set[str] = set()
        self._tree: CgroupTree | None = None
        self._is_open = False
        self._why_not = ""
        self._managed = own_group
        self._tasks: set[asyncio.Task[None]] = set()
        if own_group is not None:
            return
        try:
            self._tree = make_tree(name)
        except NoCgroups as problem:
            self._why_not = str(problem)

    def describe(self) -> str:
        """Return how limits are enforced here, as `Node.enforcement` describes it."""
        if self._managed is not None:
            return ""
        if self._settings.enforce == "never":
            return "never"
        return (
            f"cgroup v{self._tree.version}" if self._tree is not None else f"{MEMORY_ONLY}: {self._why_not}"
        )

    def get(self, lease_id: str) -> Confinement | None:
        return self._held.get(lease_id)

    def confine(self, lease: Lease) -> Confinement | None:
        """Set and return the limits of a lease, before a kernel starts in it; None if it has no limits here.

        Raises `NotEnforced` if limits are required but impossible.
        """
        request = lease.request
        is_wanted = self._settings.enforce != "never" or bool(request.enforce) or self._managed is not None
        if not is_wanted or not (request.memory_bytes or request.cpus):
            return None
        held = self._held.get(lease.id)
        if held is not None:
            held.reset()
        elif (held := self._make(lease)) is not None:  # in a pod, its first kernel may have ended already
            self._held[lease.id] = held
        return held

    @contextlib.contextmanager
    def open_entries(self, lease_id: str) -> Iterator[tuple[int, ...]]:
        """Yield open files through which a new kernel enters its control group (`cgroups.enter`), or no files."""
        held = self._held.get(lease_id)
        entries: tuple[int, ...] = ()
        if held is not None:
            entries = held.open_entries()
        elif self._tree is not None and self._is_open:
            entries = self._tree.others.open_entries()
        try:
            yield entries
        finally:
            for each in entries:
                os.close(each)

    async def release(self, lease_id: str) -> None:
        """End the processes left in a lease's control group, unless the operator lets detached ones live."""
        self._near.discard(lease_id)
        held = self._held.pop(lease_id, None)
        if held is not None:
            tree = self._tree
            await held.end(None if self._settings.end_detached or tree is None else tree.others)

    def adopt(self, leases: Mapping[str, tuple[Lease, int]]) -> None:
        """Find the limits that an earlier agent has set. `leases` has each lease with the pid of its kernel, or 0."""
        if self._tree is not None:
            self._adopt_groups(
                self._tree, {_hash(lease_id): lease for lease_id, (lease, _) in leases.items()}
            )
        for lease, pid in leases.values():
            if pid and lease.id not in self._held and is_watched(pid):
                most_bytes = lease.request.memory_bytes
                self._held[lease.id] = WatchedConfinement(most_bytes, self._session, pid=pid)

    def _adopt_groups(self, tree: CgroupTree, leases: Mapping[str, Lease]) -> None:
        self._is_open = tree.is_open
        for name in tree.lease_names():
            group = tree.group.child(name)
            if name in leases:
                self._held[leases[name].id] = GroupConfinement(group, leases[name].request.memory_bytes)
            else:
                log.warning("control group %s has no lease: its processes end", name)
                spawn(group.end(), self._tasks, log)

    async def watch(self) -> None:
        """Look at the memory of all kernels with a limit, until cancelled. It takes at most 1 % of a CPU."""
        while True:
            started = time.thread_time()
            watched = [held for held in self._held.values() if isinstance(held, WatchedConfinement)]
            members = defaultdict[int, list[int]](list)
            # Once for all kernels, because this lists all processes.
            for pid, kernel in self._session.find_members({held.pid for held in watched if held.pid}):
                members[kernel].append(pid)
            for lease_id, held in list(self._held.items()):
                if held.memory_bytes:
                    used = (
                        held.add_up(members[held.pid])
                        if isinstance(held, WatchedConfinement)
                        else held.measure()
                    )
                    self._compare(lease_id, held, used)
            pause_s = _WATCH_S if watched else _PAUSE_S
            await asyncio.sleep(max(pause_s, (time.thread_time() - started) / _MOST_BUSY))

    async def close(self, *, has_leases: bool) -> None:
        """Stop watching. Without leases, remove all control groups, and end the zygotes in them."""
        await cancel_all(self._tasks)
        for held in self._held.values():
            held.close()
        if self._tree is not None and self._is_open and not has_leases:
            await self._tree.group.end()

    def _compare(self, lease_id: str, held: Confinement, used: int) -> None:
        if used >= _NEAR * held.memory_bytes and lease_id not in self._near:
            self._near.add(lease_id)
            amounts = f"{format_bytes(used)} of its {format_bytes(held.memory_bytes)} of memory"
            self._on_near(lease_id, f"uses {amounts}; it is killed if it needs more")
        elif used < _FAR * held.memory_bytes:
            self._near.discard(lease_id)

    def _make(self, lease: Lease) -> Confinement | None:
        request = lease.request
        if self._managed is not None:
            most_bytes = self._managed.most_bytes
            is_own = 0 <= most_bytes - request.memory_bytes <= _ROUNDED_BYTES
            return ManagedConfinement(self._managed, most_bytes) if request.memory_bytes and is_own else None
        problem = self._why_not
        if self._tree is not None:
            try:
                return self._make_group(self._tree, lease.id, request)
            except (NoCgroups, OSError) as error:
                problem = str(error)
                log.warning("lease=%s has no control group: %s", lease.id, problem)
        if "required" in (self._settings.enforce, request.enforce):
            raise NotEnforced(
                f"this node cannot limit memory and CPUs ({problem}), but the limits are required: "
                "start the kernel on another node, or ask an operator to set enforce to auto"
            )
        return WatchedConfinement(request.memory_bytes, self._session) if request.memory_bytes else None

    def _make_group(self, tree: CgroupTree, lease_id: str, request: Request) -> Confinement:
        if not self._is_open:
            tree.open(self._cpus)
            self._is_open = True
            for pid in self._list_others():
                tree.others.add(pid)
        group = tree.group.child(_hash(lease_id))
        group.make()
        group.weigh(request.cpus or _BEST_EFFORT_CPUS, request.cpus * self._settings.cpu_ceiling)
        if request.memory_bytes:
            group.limit_memory(request.memory_bytes)
        return GroupConfinement(group, request.memory_bytes)

    def add_other(self, pid: int) -> None:
        """Put a zygote, which has just begun, in the group of all kernels without promises."""
        if self._tree is not None and self._is_open:
            self._tree.others.add(pid)


def name_group(owner: str) -> str:
    """Return the name of the control group that this agent makes."""
    return f"roost-{_hash(owner)[:16]}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
