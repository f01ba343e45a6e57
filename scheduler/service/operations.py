"""The operations of the scheduler service (`server.OPERATIONS`): the arguments of each, and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from roost.launchers.protocol.messages import Owner
from roost.placement.request import Request

from .launch import PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """→ {protocol, version, pid, backend, address}: the service and its cluster."""

    protocol: int = PROTOCOL
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribe:
    """→ {}. From now on this peer gets every `Event`. The service watches the process of `owner`."""

    owner: Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """→ {}. Takes a start back. With a `launch_id`, only that start, even if it has just succeeded."""

    kernel_id: str
    launch_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListKernels:
    """→ {"kernels": [Kernel]}, without connections. `with_use` also asks the agents for CPU and memory use."""

    with_use: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OneKernel:
    """→ Kernel, with its connection."""

    kernel_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptKernel:
    """→ Kernel, with its connection. From now on the application of `owner` holds it; its user stays the same."""

    kernel_id: str
    owner: Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Explain:
    """→ {"decision": Decision.to_dict()}: where the request would be placed now. Starts nothing."""

    request: Request
    owner: Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """→ {}. Stops (or resumes) placing on a node. Kernels on the node go on."""

    node_id: str
    on: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """→ {}. Prepares fast starts of such kernels on the node where the request would be placed now."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    request: Request = field(default_factory=Request)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddPolicy:
    """→ {}. The service runs this placement policy's code, and keeps the policy until the service ends.

    `pickled` comes from `policies.pickling`, under the version `python`. A repeated call has the same `token`.
    """

    name: str
    pickled: str = field(repr=False)
    python: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPolicies:
    """→ {"problems": {name: sentence}}, for each of these placement policies that cannot be used."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentEvents:
    """→ {"events": [Event]}, oldest first."""

    limit: int = 100
