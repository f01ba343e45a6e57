"""The agent's part of the machine's book: each lease that it grants is a promise there, beside those of other users."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from roost.launchers.daemon.tasks import Timers
from roost.launchers.machine_book.book import ALONE, Conflict, MachineBook, View
from roost.launchers.machine_book.promise import Keeper, Promise
from roost.launchers.machine_book.rules import BadRules
from roost.launchers.protocol.messages import KernelProcess, Lease, Reserve

from .ledger import LeaseLedger

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often the book is read again while others hold something: a start may wait for it."""
_OTHER_GPUS = (
    "/etc/roost/machine.toml names other GPUs than when the agent of this machine began: "
    "stop your kernels here, and the next agent takes these GPUs up"
)


class MachineShare:
    """Grants leases of a ledger, as far as the other agents of the machine leave room.

    `book` is None for an agent whose cluster manager divides the machine. `gpu_ids` are the GPUs that root
    had declared when the agent began.
    """

    def __init__(
        self,
        ledger: LeaseLedger,
        book: MachineBook | None,
        *,
        gpu_ids: tuple[str, ...] | None = None,
        timers: Timers | None = None,
    ) -> None:
        self._ledger = ledger
        self._book = book
        self._gpu_ids = gpu_ids
        self._timers = timers or Timers()
        self.view = ALONE
        """The promises of others, as of the last look."""
        self._on_change: Callable[[], object] | None = None
        self._reported: object = None
        """The amounts that the others held at the last call of `_on_change`."""
        self._problem = ""
        self._waiting: dict[str, int] = {}
        """How many calls wait for each lease, by its id."""
        self._withdrawn: set[str] = set()

    def look(self) -> View:
        """Return the promises of others. If the book or the rules cannot be read, return those of the look before."""
        if self._book is not None:
            try:
                self._note(self._book.look())
            except (BadRules, OSError) as problem:
                if str(problem) != self._problem:
                    self._problem = str(problem)
                    log.error("%s", problem)
        return self.view

    def _note(self, view: View) -> None:
        """Note the promises of others. Look again in a second if there are some, or if a change is not reported yet."""
        self.view, self._problem = view, ""
        self._plan_look()

    def _plan_look(self) -> None:
        is_changed = _list_amounts(self.view) != self._reported
        if self._on_change is not None and (self.view.others or is_changed) and self not in self._timers:
            self._timers.later(LOOK_S, self._look_and_report, key=self)

    @property
    def is_outdated(self) -> bool:
        """True if root has declared other GPUs since the agent began, as was seen at the last look.

        Only the next agent can grant them: an agent's devices are those of its start.
        """
        return self._book is not None and self.view is not ALONE and self.view.gpu_ids != self._gpu_ids

    def watch(self, on_change: Callable[[], object]) -> None:
        """Call `on_change` from now on, within a second after others hold more or less. May be repeated."""
        self._on_change = None  # the first look is no change
        self._reported = _list_amounts(self.look())
        self._on_change = on_change
        self._plan_look()

    def unwatch(self) -> None:
        """Watch the others no more. May be repeated."""
        self._on_change = None
        self._timers.cancel(self)

    def _look_and_report(self) -> None:
        amounts = _list_amounts(self.look())
        if amounts != self._reported and self._on_change is not None:
            self._reported = amounts
            self._on_change()

    def problems(self) -> tuple[str, ...]:
        """Return what keeps this agent from granting leases, as sentences without a full stop."""
        found = (self._problem, _OTHER_GPUS if self.is_outdated else "")
        return tuple(filter(None, found))

    async def reserve(self, request: Reserve, record: Callable[[Reserve], Lease]) -> Lease:
        """Grant a lease and `record` it in the ledger, or raise `Conflict`. Raises what `record` raises.

        If nobody else has the book at this moment, nothing waits between the call and its result.
        """
        lease = request.lease
        if self._book is None or request.is_granted or lease.request.is_best_effort:
            return record(request)
        self._waiting[lease.id] = self._waiting.get(lease.id, 0) + 1
        try:
            async with self._book.turn() as view:
                self._note(view)
                if lease.id in self._withdrawn:
                    raise Conflict("it was given back while it waited for its turn")
                if lease.id in self._ledger:
                    return record(request)
                lease = self._promise(self._book, lease, launches=request.launch is not None)
                try:
                    return record(replace(request, lease=lease))
                except BaseException:
                    self._book.give_back(lease.id)
                    raise
        finally:
            self._waiting[lease.id] -= 1
            if not self._waiting[lease.id]:
                del self._waiting[lease.id]
                self._withdrawn.discard(lease.id)

    def withdraw(self, lease_id: str) -> None:
        """Grant no lease of this id to those who wait for it now."""
        if lease_id in self._waiting:
            self._withdrawn.add(lease_id)

    def _promise(self, book: MachineBook, lease: Lease, *, launches: bool) -> Lease:
        """Choose devices for a lease, and write its promise. Raises `Conflict` and `OSError`."""
        if lease.request.gpus and self.view.gpu_ids != self._gpu_ids:
            raise Conflict(_OTHER_GPUS)
        lease = self._ledger.choose(lease, self.view)
        book.promise(lease.id, _build_promise(lease), launches=launches)
        return lease

    async def adopt(self, running: Mapping[str, KernelProcess]) -> list[str]:
        """Promise the leases of an earlier agent again. Return those whose slice another agent has promised meanwhile.

        `running` has the kernels that run, by lease id. Their promises have outlived the agent. Raises `OSError`.
        """
        if self._book is None:
            return []
        leases = {entry.lease.id: entry.lease for entry in self._ledger.entries() if not entry.is_granted}
        leases = {name: lease for name, lease in leases.items() if not lease.request.is_best_effort}
        promises = {name: _build_promise(lease) for name, lease in leases.items()}
        for name in promises.keys() & running.keys():
            keeper = Keeper(pid=running[name].pid, started_at=running[name].process_started_at)
            promises[name] = replace(promises[name], keepers=(keeper,))
        try:
            async with self._book.turn() as view:
                self._note(view)
                taken = [
                    name
                    for name, lease in leases.items()
                    if name not in running and self._ledger.is_excessive(lease, view)
                ]
                self._book.adopt({name: each for name, each in promises.items() if name not in taken})
                self._book.remove_dead()
        except Conflict as problem:  # without a turn, nothing can be promised that has no kernel
            taken = [name for name in leases if name not in running]
            if taken:
                log.warning("leases without a kernel are given back: %s", problem)
            self._book.adopt({name: each for name, each in promises.items() if name in running})
        return taken

    def give_back(self, lease_id: str) -> None:
        if self._book is not None:
            self._book.give_back(lease_id)


def _build_promise(lease: Lease) -> Promise:
    return Promise(
        cpus=lease.request.cpus,
        memory_bytes=lease.request.memory_bytes,
        devices=dict.fromkeys(lease.device_ids, lease.request.gpu_share),
        since=time.time(),
    )


def _list_amounts(view: View) -> tuple[object, ...]:
    """Return what decides how much the others leave."""
    most = {resource: room.most for resource, room in view.rooms.items()}
    return view.cpus, view.memory_bytes, view.devices, most
