"""Every error roost raises for something a user or operator can act on.

    RoostError
    ├── ConfigError              an option, a kernelspec or a setting is wrong
    ├── PlacementError
    │   ├── NoNodeNow            must wait, and waited as long as it may
    │   └── NoNodeEver           could not run even on an empty cluster
    ├── LimitExceeded            a cap of the operator's says no
    ├── NotAllowed               this user may not (HTTP 403 at Jupyter's border)
    ├── LeaseConflict            the cluster manager refused the slice just now
    ├── UnknownKernel            there is no kernel of that id (any more)
    ├── Cancelled                the start was taken back while it was under way
    ├── LaunchError
    │   ├── LaunchTimeout        did not report in time
    │   └── KernelDied           ended while it was starting
    └── BackendUnavailable       the cluster, the service or an agent cannot be reached

Each has a one-line `user_message` that says what to do next, plain typed `fields`, can be pickled, and crosses
the scheduler's socket by its class name (`to_remote`, `from_remote`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from roost.launchers.protocol.rpc import RemoteError


class RoostError(Exception):
    """Root of roost's errors: `user_message` for people, `fields` (JSON values) for programs."""

    def __init__(self, user_message: str, **fields: Any) -> None:
        super().__init__(user_message)
        self.user_message = user_message
        self.fields = fields

    def __str__(self) -> str:
        return self.user_message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.user_message, self.fields)

    def to_remote(self) -> RemoteError:
        """This error as it crosses the socket."""
        return RemoteError(type(self).__name__, self.user_message, self.fields)


class ConfigError(RoostError):
    """An option, a kernelspec or a setting is wrong."""


class PlacementError(RoostError):
    """No node can take the request; `fields["decision"]` is the decision that explains why."""


class NoNodeNow(PlacementError):
    """Would fit on an empty cluster, and waited as long as it may."""


class NoNodeEver(PlacementError):
    """Could not run on any node even if it were empty."""


class LimitExceeded(RoostError):
    """A cap set by the operator says no."""


class NotAllowed(RoostError):
    """This user may not start kernels here."""


class LeaseConflict(RoostError):
    """The arbiter refused the slice just now: place again on a fresh snapshot."""


class UnknownKernel(RoostError):
    """There is no kernel of that id, or not any more."""


class Cancelled(RoostError):
    """The start was taken back while it was under way."""


class LaunchError(RoostError):
    """The kernel could not be started on the node that was chosen."""


class LaunchTimeout(LaunchError):
    """The kernel did not report within its launch timeout."""


class KernelDied(LaunchError):
    """The kernel ended while it was starting: `fields` has `exit_code` and `log_tail`."""


class BackendUnavailable(RoostError):
    """The cluster, the scheduler service or an agent cannot be reached."""


_KINDS: dict[str, type[RoostError]] = {
    kind.__name__: kind
    for kind in (
        RoostError, ConfigError, PlacementError, NoNodeNow, NoNodeEver, LimitExceeded, NotAllowed, LeaseConflict,
        UnknownKernel, Cancelled, LaunchError, LaunchTimeout, KernelDied, BackendUnavailable,
    )
}  # fmt: skip


def from_remote(error: RemoteError) -> RoostError:
    """The typed error behind an answer; what is no error of ours becomes a plain `RoostError`."""
    return _rebuild(_KINDS.get(error.kind, RoostError), error.message, error.fields)


def _rebuild(kind: type[RoostError], user_message: str, fields: Mapping[str, Any]) -> RoostError:
    return kind(user_message, **fields)
