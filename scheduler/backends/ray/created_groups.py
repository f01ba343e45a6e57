"""The groups that Ray has created on a new node, or on one that became free, without being tied to it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["found", "held", "noted", "settled"]
"""What is known of the lease of such a group.

`found`: an earlier service has left the group. `held`: the agent of its node is about to note the lease. `noted`: it
has, and the guard does not know it yet. `settled`: the guard knows it. A group goes this way once, and skips steps.
"""
_ORDER: tuple[State, ...] = ("found", "held", "noted", "settled")


@dataclass(slots=True)
class _Created:
    daemon: str
    """The raylet that has the group."""
    state: State


class CreatedGroups:
    """These groups by name. Names of other groups are ignored, except by `add`."""

    def __init__(self) -> None:
        self._groups: dict[str, _Created] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._groups

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, name: str, daemon: str, state: State) -> None:
        self._groups.setdefault(name, _Created(daemon, state)).daemon = daemon
        self.advance([name], state)

    def advance(self, names: Iterable[str], state: State) -> None:
        """Note that these groups have come as far as this state."""
        for name in names:
            group = self._groups.get(name)
            if group is not None and _ORDER.index(group.state) < _ORDER.index(state):
                group.state = state

    def forget(self, name: str) -> None:
        self._groups.pop(name, None)

    def in_states(self, *states: State) -> list[str]:
        return [name for name, group in self._groups.items() if group.state in states]

    def without_node(self, daemons: Collection[str]) -> list[str]:
        """Return the groups whose raylets are not among these."""
        return [name for name, group in self._groups.items() if group.daemon not in daemons]
