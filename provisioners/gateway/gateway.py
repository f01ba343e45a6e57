"""The parts that all modules of one gateway share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .audit import Audit
from .own_kernels import OwnKernels
from .relays import Relays
from .settings import RoostGateway
from .user_sources import UserSource


@dataclass(slots=True, kw_only=True)
class Gateway:
    """The parts of one gateway. The server makes them in the order in which it starts."""

    settings: RoostGateway
    source: UserSource
    audit: Audit
    check_user: Callable[[str, str], None]
    """Raises `NotAllowed` if a user may not start kernels of a kernelspec: the service's own rules."""
    default_timeout_s: float
    """How long a start may take that names no time."""
    relays: Relays
    """The ways to the services of its people."""
    own: OwnKernels = None  # type: ignore[assignment]
    """The records of its kernels. They are there once the gateway has its server name, before it listens."""

    def is_admin(self, person: Any) -> bool:
        return person in self.settings.admins
