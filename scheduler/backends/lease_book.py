"""`LeaseBook`: all leases that this service knows, each once.

An entry has two parts with one writer each. The scheduler writes if it wants the lease, by its calls of `Backend.claim`
and `Backend.release`. The backend writes what the cluster shows of the lease:

                shown: nothing           pending              held                 lost
    wanted      its claim is under way   its start waits      its kernel may run   its holder gets the reason, once
    released    late news is ignored     is being given back  is being given back  is being given back

A lease that the cluster shows and nobody here has claimed is wanted: an earlier service or another one has claimed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from roost.launchers.protocol.messages import Lease
from roost.placement.model.last_entries import LastEntries

_REMEMBERED = 500
"""At most this many leases are remembered that are released and not shown any more."""

Listener = Callable[[Lease], None]


@dataclass(slots=True)
class _Entry:
    lease: Lease
    """As the cluster shows it, or as it was claimed if the cluster has not shown it yet."""
    is_wanted: bool = True
    is_shown: bool = False


class LeaseBook:
    """The leases by id. Iterating yields those that the cluster shows."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._at: dict[str, dict[str, _Entry]] = {}
        """By node and id: the entries that take room on the node."""
        self._released = LastEntries[str, Lease | None](_REMEMBERED)
        self._listeners: list[Listener] = []

    def __iter__(self) -> Iterator[Lease]:
        return iter([entry.lease for entry in self._entries.values() if entry.is_shown])

    def __contains__(self, lease_id: object) -> bool:
        """True for a lease that is wanted or shown."""
        return lease_id in self._entries

    def get(self, lease_id: str) -> Lease | None:
        """Return the lease, also if it is remembered only."""
        entry = self._entries.get(lease_id)
        return entry.lease if entry is not None else self._released.get(lease_id)

    def on(self, node_id: str) -> list[Lease]:
        """Return the leases that take room on this node: those shown there and not lost."""
        return [entry.lease for entry in self._at.get(node_id, {}).values()]

    def nodes(self) -> list[str]:
        """Return the ids of the nodes on which leases take room."""
        return list(self._at)

    def is_shown(self, lease_id: str) -> bool:
        return lease_id in self._entries and self._entries[lease_id].is_shown

    def is_released(self, lease_id: str) -> bool:
        entry = self._entries.get(lease_id)
        return not entry.is_wanted if entry is not None else lease_id in self._released

    # What the scheduler wants

    def want(self, lease: Lease) -> None:
        """Note that this lease is claimed. May be repeated. After a release, it counts as a new lease."""
        known = self._entries.get(lease.id)
        if known is None or not known.is_wanted:
            self._remove(lease.id)
            self._released.pop(lease.id, None)
            self._entries[lease.id] = _Entry(replace(lease, state="pending"))

    def release(self, lease_id: str) -> None:
        """Note that this lease is not wanted any more. It takes room until the cluster does not show it any more."""
        entry = self._entries.get(lease_id)
        if entry is not None:
            entry.is_wanted = False
        if entry is None or not entry.is_shown:
            self._remember(lease_id)

    def drop(self, lease_id: str) -> None:
        """Forget a lease that was lost. If the cluster shows it again, it counts as found."""
        self._remove(lease_id)

    # What the cluster shows

    def listen(self, listener: Listener) -> None:
        """Call `listener` with each wanted lease of which the cluster shows something new. It must not raise."""
        self._listeners.append(listener)

    def show(self, lease: Lease) -> bool:
        """Note what the cluster shows of this lease. Return False if the lease is released: then nothing is noted."""
        if self.is_released(lease.id):
            return False
        entry = self._entries.setdefault(lease.id, _Entry(lease))
        if entry.is_shown and entry.lease == lease:
            return True
        self._vacate(entry.lease)
        entry.lease, entry.is_shown = lease, True
        if lease.state != "lost" and lease.node_id:
            self._at.setdefault(lease.node_id, {})[lease.id] = entry
        self._report(lease)
        return True

    def lose(self, lease_id: str, reason: str) -> None:
        """Note that the manager has taken this lease back, and why (a clause)."""
        if (entry := self._entries.get(lease_id)) is not None:
            self.show(replace(entry.lease, state="lost", reason=reason))

    def miss(self, lease_id: str) -> None:
        """Note that the cluster does not show this lease any more. If it is wanted, it counts as lost."""
        entry = self._entries.get(lease_id)
        if entry is None or not entry.is_shown:
            return
        self._vacate(entry.lease)
        entry.is_shown = False
        if entry.is_wanted:
            entry.lease = replace(entry.lease, state="lost", reason="its lease is gone")
            self._report(entry.lease)
        else:
            self._remember(lease_id)

    def _report(self, lease: Lease) -> None:
        for listener in self._listeners:
            listener(lease)

    def _remember(self, lease_id: str) -> None:
        self._released[lease_id] = self.get(lease_id)
        self._remove(lease_id)

    def _remove(self, lease_id: str) -> None:
        if (entry := self._entries.pop(lease_id, None)) is not None:
            self._vacate(entry.lease)

    def _vacate(self, lease: Lease) -> None:
        of_node = self._at.get(lease.node_id, {})
        of_node.pop(lease.id, None)
        if not of_node:
            self._at.pop(lease.node_id, None)
