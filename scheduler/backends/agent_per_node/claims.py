"""How leases are held in a cluster manager's own accounting: what each manager does in its way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Generic

from roost.scheduler.backends.base import Lease

from .driver import N


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A lease as its manager knows it, on no node where that has left; `is_held` by a daemon that lives."""

    lease: Lease
    is_held: bool = True


class Claims(ABC, Generic[N]):
    """Raises `BackendUnavailable` wherever the manager does not answer. `called`: what a claim is to its users."""

    called: ClassVar[str]

    @abstractmethod
    async def take(self, lease: Lease, node: N) -> tuple[str, ...]:
        """Claim it, if need be on other devices than it prefers, or find it claimed; the ids of its devices.

        Raises `LeaseConflict`.
        """

    @abstractmethod
    async def take_again(self, lease: Lease, node: N) -> None:
        """Claim what a kernel that lives has, on its devices; raises `LeaseConflict`."""

    @abstractmethod
    async def give_back(self, lease: Lease) -> None:
        """Give a claim back. May be repeated, also where there is none."""

    def can_take_on(self, node: N) -> bool:
        """Whether the manager gives anything there yet, to those that take again either."""
        return True

    async def settled(self, lease: Lease) -> None:
        """Wait until no answer of the manager's is under way that would claim this."""

    @abstractmethod
    async def all(self) -> Collection[Claim]:
        """All of roost's, whoever made them."""

    @abstractmethod
    def shows(self, lease: Lease, node: N) -> bool:
        """Whether by the last reading of that node it is claimed there, or nothing is known of it."""

    @abstractmethod
    async def find(self, lease: Lease) -> bool:
        """Whether it is claimed, asked anew."""

    def forget(self, lease_id: str) -> None:
        """That lease has come to its end."""
