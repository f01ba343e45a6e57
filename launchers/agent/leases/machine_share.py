"""The agent's part of the machine's book: each lease that it grants is a promise there, beside those of other users."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from roost.launchers.machine_book.book import ALONE, Conflict, MachineBook, View
from roost.launchers.machine_book.others import OthersWatch
from roost.launchers.machine_book.rules import BadRules
from roost.launchers.protocol.messages import KernelProcess, Lease, Reserve

from .ledger import LeaseLedger

log = logging.getLogger(__name__)

_OTHER_GPUS = (
    "/etc/roost/machine.toml names other GPUs than when the agent of this machine began: "
    "stop your kernels here, and the next agent takes these GPUs up"
)
_FASTER = "another user's kernel has just taken it"


class MachineShare:
    """Grants leases of a ledger, as far as the other agents of the machine leave room.

    `book` is None for an agent whose cluster manager divides the machine. `gpu_ids` are the GPUs that root
    had declared when the agent began.
    """

    def __init__(
        self, ledger: LeaseLedger, book: MachineBook | None, *, gpu_ids: tuple[str, ...] | None = None
    ) -> None:
        self._ledger = ledger
        self._book = book
        self._gpu_ids = gpu_ids
        self.view = ALONE
        """The promises of others, as of the last look."""
        self._watch: OthersWatch | None = None
        self._on_change: Callable[[], object] = lambda: None
        self._is_unreported = False
        """True if others hold more or less than at the last call of `_on_change`."""
        self._said = ""
        self._waiting: dict[str, int] = {}
        """How many calls wait for each lease, by its id."""
        self._withdrawn: set[str] = set()

    def close(self) -> None:
        self.unwatch()
        if self._book is not None:
            self._book.close()

    def look(self) -> View:
        """Return the promises of others. If the rules cannot be read, return those of the look before."""
        if self._book is not None:
            try:
                self._look(self._book)
            except BadRules as problem:
                if str(problem) != self._said:
                    self._said = str(problem)
                    log.error("%s", problem)
        return self.view

    def _look(self, book: MachineBook) -> View:
        """Look, and follow what others hold. Raises `BadRules`."""
        before = self.view
        self.view, self._said = book.look(), ""
        if self._watch is not None:
            self._watch.follow(self.view.others)
            if _list_amounts(before) != _list_amounts(self.view):
                # Each such look ends in a report: the look that an event causes may find no difference any more.
                self._is_unreported = True
                self._watch.call_soon()
        return self.view

    @property
    def is_outdated(self) -> bool:
        """True if root has declared other GPUs since the agent began, as was seen at the last look.

        Only the next agent can grant them: an agent's devices are those of its start.
        """
        return self._book is not None and self.view is not ALONE and self.view.gpu_ids != self._gpu_ids

    def watch(self, on_change: Callable[[], object]) -> None:
        """Call `on_change` from now on whenever the others hold more or less than before. May be repeated."""
        self._on_change = on_change
        if self._book is not None and self._watch is None:
            self._watch = OthersWatch(self._look_and_report)
            self._watch.follow(self.view.others)

    def unwatch(self) -> None:
        """Watch the others no more. May be repeated."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _look_and_report(self) -> None:
        self.look()
        if self._is_unreported:
            self._is_unreported = False  # first, because `on_change` may look too
            self._on_change()

    def problems(self) -> tuple[str, ...]:
        """Return what keeps this agent from granting leases, as sentences without a full stop."""
        found = (self._said, _OTHER_GPUS if self.is_outdated else "")
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
            async with self._book.turn():
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

    def adopt(self, running: Mapping[str, KernelProcess]) -> list[str]:
        """Promise the leases of an earlier agent again. Return those whose slice another agent has promised meanwhile.

        `running` has the kernels that run, by lease id. Their promises have outlived the agent. Raises `OSError`.
        """
        taken: list[str] = []
        for entry in self._ledger.entries() if self._book is not None else ():
            lease = entry.lease
            if self._book is None or entry.is_granted or lease.request.is_best_effort:
                continue
            self._write(self._book, lease)
            if (process := running.get(lease.id)) is not None:
                self._book.name_process(lease.id, process.pid, process.process_started_at)
            elif self._ledger.is_excessive(lease, self.look()):
                taken.append(lease.id)
        if self._book is not None:
            self._book.forget_earlier()
        return taken

    def give_back(self, lease_id: str) -> None:
        if self._book is not None:
            self._book.give_back(lease_id)

    def _promise(self, book: MachineBook, lease: Lease, *, launches: bool) -> Lease:
        """Choose devices for a lease, and write its promise. Raises `Conflict`."""
        try:
            view = self._look(book)
            if lease.request.gpus and view.gpu_ids != self._gpu_ids:
                raise Conflict(_OTHER_GPUS)
            lease = self._ledger.choose(lease, view)
            self._write(book, lease, launches=launches)
            try:
                self._look(book)
                again = self._ledger.choose(lease, book.last_without(lease.id))
                if set(again.device_ids) != set(lease.device_ids):
                    raise Conflict(_FASTER)
            except BaseException:
                book.give_back(lease.id)
                raise
        except BadRules as problem:
            raise Conflict(str(problem)) from None
        return lease

    def _write(self, book: MachineBook, lease: Lease, *, launches: bool = False) -> None:
        book.promise(
            lease.id,
            cpus=lease.request.cpus,
            memory_bytes=lease.request.memory_bytes,
            devices=dict.fromkeys(lease.device_ids, lease.request.gpu_share),
            launches=launches,
        )


def _list_amounts(view: View) -> tuple[object, ...]:
    """Return what decides how much the others leave."""
    most = {resource: room.most for resource, room in view.rooms.items()}
    return view.cpus, view.memory_bytes, view.devices, most
