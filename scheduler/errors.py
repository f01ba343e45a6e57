"""All errors that a user or operator can do something about.

    RoostError
    ├── ConfigError              an option, a kernelspec or a setting is wrong
    ├── PlacementError
    │   ├── NoNodeNow            no node has room, and the start has waited its full time
    │   └── NoNodeEver           not even an empty node could take the request
    ├── LimitExceeded            a limit of the operator is reached
    ├── NotAllowed               this user may not do that (HTTP 403 in Jupyter Server)
    ├── LeaseConflict            the cluster manager refused the lease
    ├── UnknownKernel            there is no kernel of that id, or it was forgotten
    ├── HeldElsewhere            another Jupyter Server that lives holds the kernel
    ├── Cancelled                the start was cancelled, for example by its caller
    ├── LaunchError
    │   ├── LaunchTimeout        the kernel did not report its ports in time
    │   └── KernelDied           the kernel ended during its start, or while a program used it
    ├── ExecutionError           the code that a program let a kernel execute raised an error
    └── BackendUnavailable       the cluster, the service or an agent does not answer
        ├── ManagerAway          a service cannot start, because its cluster does not answer
        └── ServedElsewhere      a service does not start, because another one serves its cluster

Each error has a one-line `user_message` that says what to do next, and `fields` of JSON values. Errors can be
pickled. They cross the scheduler's socket by their class names (`to_remote`, `from_remote`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from roost.launchers.protocol.rpc import RemoteError


class RoostError(Exception):
    """The base of roost's errors: `user_message` is for people, `fields` (JSON values) for programs."""

    def __init__(self, user_message: str, **fields: Any) -> None:
        super().__init__(user_message)
        self.user_message = user_message
        self.fields = fields

    def __str__(self) -> str:
        return self.user_message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.user_message, self.fields)

    def to_remote(self) -> RemoteError:
        """Return this error in the form that crosses the socket."""
        return RemoteError(type(self).__name__, self.user_message, self.fields)


class ConfigError(RoostError):
    """An option, a kernelspec or a setting is wrong."""


class PlacementError(RoostError):
    """No node can take the request; `fields["decision"]` is the decision that explains why."""


class NoNodeNow(PlacementError):
    """No node has room now, but an empty node would.

    A start raises this after it has waited its full time.
    """


class NoNodeEver(PlacementError):
    """No node could take the request, even if the node were empty."""


class LimitExceeded(RoostError):
    """A limit of the operator is reached. `fields["is_never"]`: the request exceeds it without other kernels, too."""


class NotAllowed(RoostError):
    """The operator does not allow this user or this action."""


class LeaseConflict(RoostError):
    """The cluster manager refused the lease. The scheduler must place the kernel again, on a fresh snapshot.

    `is_everywhere`: the manager would now refuse every node, because a quota of the whole cluster is used up.
    """

    def __init__(self, user_message: str, *, is_everywhere: bool = False) -> None:
        super().__init__(user_message, is_everywhere=is_everywhere)
        self.is_everywhere = is_everywhere


class UnknownKernel(RoostError):
    """There is no kernel of that id, the scheduler has forgotten it, or it has no lease yet."""


class HeldElsewhere(RoostError):
    """Another Jupyter Server that lives holds the kernel."""


class Cancelled(RoostError):
    """The start was cancelled: by its caller, by a stop of the kernel, or because its owner has ended."""


class LaunchError(RoostError):
    """The kernel could not be started on the chosen node."""


class LaunchTimeout(LaunchError):
    """The kernel did not report its ports within the launch timeout."""


class KernelDied(LaunchError):
    """The kernel ended during its start, or while a program used it. `fields` has `exit_code` and `log_tail`."""


class ExecutionError(RoostError):
    """Code that a program let a kernel execute raised an error. `traceback` is a text, with colours."""

    def __init__(self, user_message: str, *, name: str = "", value: str = "", traceback: str = "") -> None:
        super().__init__(user_message, name=name, value=value, traceback=traceback)
        self.name, self.value, self.traceback = name, value, traceback


class BackendUnavailable(RoostError):
    """The cluster, the scheduler service or an agent does not answer."""


class ManagerAway(BackendUnavailable):
    """A service cannot start, because its cluster does not answer.

    A client that has sent a start already goes on trying until the deadline of the start.
    """


class ServedElsewhere(BackendUnavailable):
    """A service does not start, because another service of the same user serves its cluster. Clients join that one."""


def from_remote(error: RemoteError) -> RoostError:
    """Return the error of an answer as an object of its own class; of `RoostError` if the class is unknown."""
    kind = globals().get(error.kind)
    if not (isinstance(kind, type) and issubclass(kind, RoostError)):
        kind = RoostError
    return _rebuild(kind, error.message, error.fields)


def _rebuild(kind: type[RoostError], user_message: str, fields: Mapping[str, Any]) -> RoostError:
    return kind(user_message, **fields)
