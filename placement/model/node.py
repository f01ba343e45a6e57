"""Nodes and devices: their amounts, the promised amounts, and the real use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .json_codec import decode, encode
from .request import NODE_LABEL, Request
from .validation import (
    NOBODY,
    NOTHING,
    Check,
    check_amounts,
    check_counts,
    check_fields,
    check_labels,
    check_names,
    check_number,
    check_whole,
    if_known,
)

EPSILON = 1e-6
"""Amounts of CPUs and GPUs that differ by at most this count as equal: ten shares of 0.1 then fill a device."""

BUSY_BEYOND = 0.1
"""A device is busy beyond its promises if its real use exceeds them by more than this share."""

MEMORY_ONLY = "memory only"
"""How ``Node.enforcement`` begins if the node limits the memory of kernels, but not their CPUs."""

UNREACHABLE = "unreachable"
"""How ``Node.drains_because`` begins if nobody can reach the node now."""

UNKNOWN_USE = 0.5
"""Unknown use counts as half way between idle and busy."""

_DEVICE_CHECKS: Mapping[str, Check] = {
    "id": lambda _, value: str(value),
    "names": check_names,
    "memory_bytes": check_whole,
    "promised": check_number,
    "used": if_known(check_number),
    "memory_used_bytes": if_known(check_whole),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU, or a MIG slice of one.

    >>> Device(id="0", promised=0.25, used=0.5).free
    0.75
    """

    id: str
    """An opaque text: an index or a UUID."""
    model: str = ""
    memory_bytes: int = 0
    promised: float = 0.0
    """The share that known leases hold, from 0 to 1."""
    used: float | None = None
    """The real utilisation as a share, None if unknown."""
    memory_used_bytes: int | None = None
    """The memory that is really used, None if unknown."""
    names: tuple[str, ...] = ()
    """Its other names: its index in PCI order, which a MIG slice has from its GPU, with the UUID of that GPU."""

    def __post_init__(self) -> None:
        check_fields(self, _DEVICE_CHECKS)

    @property
    def free(self) -> float:
        """The share that is not promised. It is negative if the manager promised too much."""
        return 1.0 - self.promised

    @property
    def use(self) -> float | None:
        """The real use, 0..1: the larger of ``used`` and the used share of the memory. None if neither is known."""
        known = [] if self.used is None else [self.used]
        if self.memory_used_bytes is not None and self.memory_bytes:
            known.append(self.memory_used_bytes / self.memory_bytes)
        return min(max(known), 1.0) if known else None

    @property
    def excess(self) -> float:
        """The real use minus ``promised``. It is 0 up to ``BUSY_BEYOND``, and ``UNKNOWN_USE`` if the use is unknown."""
        if self.use is None:
            return UNKNOWN_USE
        beyond = self.use - self.promised
        return beyond if beyond > BUSY_BEYOND else 0.0


_CHECKS: Mapping[str, Check] = {
    "devices": lambda _, value: tuple(value),
    "resources": check_amounts,
    "resources_promised": check_amounts,
    "labels": check_labels,
    "taints": check_names,
    "warm": check_names,
    "cpus": check_number,
    "cpus_promised": check_number,
    "gpus_promised": check_number,
    "memory_bytes": check_whole,
    "memory_promised_bytes": check_whole,
    "kernels": check_whole,
    "owners": check_counts,
    "cpus_used": if_known(check_number),
    "memory_used_bytes": if_known(check_whole),
    "metrics_age_s": if_known(check_number),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine that can run kernels, with its total, promised and really used amounts.

    >>> node = Node(id="a", cpus=8, cpus_promised=2)
    >>> node.with_kernel(Request(cpus=4)).cpus_free
    2.0
    """

    id: str
    address: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Names and values, which requests can require or prefer. ``label`` has ``NODE_LABEL``, too."""
    cpus: float = 0.0
    memory_bytes: int = 0
    devices: tuple[Device, ...] = ()
    cpus_promised: float = 0.0
    memory_promised_bytes: int = 0
    gpus_promised: float = 0.0
    """A number of devices: the sum over the node.

    It includes promises to other programs, even if their devices are unknown. The sum of ``promised`` over ``devices``
    may therefore be smaller.
    """
    resources: Mapping[str, float] = field(default_factory=lambda: NOTHING, hash=False)
    """The totals of custom resources."""
    resources_promised: Mapping[str, float] = field(default_factory=lambda: NOTHING, hash=False)
    """The promised amounts of custom resources."""
    cpus_used: float | None = None
    """The CPUs that are really used, None if unknown."""
    memory_used_bytes: int | None = None
    """The memory that is really used, None if unknown."""
    kernels: int = 0
    """How many kernels are known to run or start on the node."""
    owners: Mapping[str, int] = field(default_factory=lambda: NOBODY, hash=False)
    """How many leases each user holds on the node, by ``Request.owner``."""
    is_draining: bool = False
    """True if the node takes no new kernels."""
    drains_because: str = ""
    """Why the node drains ("its daemon has ended"). Empty means that an operator drains the node.

    ``UNREACHABLE`` is followed by a colon and the cause.
    """
    taints: tuple[str, ...] = ()
    """Marks that keep kernels away whose requests do not tolerate all of them."""
    warm: tuple[str, ...] = ()
    """Environments from which kernels start fast."""
    enforcement: str = ""
    """How the node limits kernels: ``cgroup v1``, ``cgroup v2``, ``never``, or ``MEMORY_ONLY``.

    ``MEMORY_ONLY`` is followed by a colon and the cause. Empty: roost does not limit kernels there, or that is not
    known.
    """
    problems: tuple[str, ...] = ()
    """The settings that roost cannot follow on the node, as clauses with the reason."""
    metrics_age_s: float | None = None
    """The age of the real-use figures at the time of the snapshot. None means no metrics."""

    def __post_init__(self) -> None:
        if not isinstance(self.is_draining, bool):
            raise ValueError(f"is_draining must be true or false; got {self.is_draining!r}.")
        check_fields(self, _CHECKS)
        if len({device.id for device in self.devices}) < len(self.devices):
            raise ValueError(f"node {self.id} has two devices of the same id; give each its own.")

    @property
    def gpus(self) -> int:
        """The number of devices."""
        return len(self.devices)

    @property
    def cpus_free(self) -> float:
        """The CPUs that are not promised. The number is negative if the manager promised too much."""
        return self.cpus - self.cpus_promised

    @property
    def memory_free_bytes(self) -> int:
        """The memory that is not promised. The number is negative if the manager promised too much."""
        return self.memory_bytes - self.memory_promised_bytes

    @property
    def gpus_free(self) -> float:
        """The number of GPUs that are not promised. A promised share of a GPU counts as a fraction."""
        return self.gpus - max(self.gpus_promised, sum(device.promised for device in self.devices))

    def label(self, name: str) -> str | None:
        """Return the value of a label, or None if the node lacks it.

        >>> Node(id="a").label("node"), Node(id="a").label("zone")
        ('a', None)
        """
        return self.labels.get(name, self.id if name == NODE_LABEL else None)

    def resource_free(self, name: str) -> float:
        """Return the amount of a custom resource that is not promised. It is 0 if the node has none."""
        return self.resources.get(name, 0.0) - self.resources_promised.get(name, 0.0)

    def kernels_of(self, user: str) -> int:
        """Return how many kernels of a user run or start on the node.

        >>> node = Node(id="a").with_kernel(Request(owner="ada"))
        >>> node.kernels_of("ada"), node.kernels_of("bob")
        (1, 0)
        """
        return self.owners.get(user, 0)

    def fitting_devices(self, request: Request) -> tuple[Device, ...]:
        """Return the devices that the request accepts and that have its share free, in the node's order."""
        share = request.gpu_share - EPSILON
        return tuple(d for d in self.devices if d.free >= share and request.accepts(d))

    def with_kernel(self, request: Request, device_ids: Iterable[str] = ()) -> Node:
        """Return the node with one kernel more, on these devices if they are known."""
        return self._add(request, frozenset(device_ids), 1)

    def without_kernel(self, request: Request, device_ids: Iterable[str] = ()) -> Node:
        """Return the node with one kernel less: the inverse of ``with_kernel`` (to 9 decimals), never below zero."""
        return self._add(request, frozenset(device_ids), -1)

    def as_empty(self) -> Node:
        """Return the node without promises, kernels and draining."""
        return replace(
            self,
            cpus_promised=0.0,
            memory_promised_bytes=0,
            gpus_promised=0.0,
            resources_promised=NOTHING,
            kernels=0,
            owners=NOBODY,
            is_draining=False,
            drains_because="",
            devices=tuple(replace(device, promised=0.0) for device in self.devices),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the node as JSON types; ``from_dict`` is the inverse."""
        return encode(self)  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Node:
        """Return the value that ``to_dict`` wrote. Raises ``ValueError`` for unknown keys and wrong values."""
        return decode(cls, data)

    def _add(self, request: Request, device_ids: frozenset[str], sign: int) -> Node:
        def plus(held: float, asked: float) -> float:
            return max(0.0, round(held + sign * asked, 9))

        promised = self.resources_promised
        if request.resources:
            after = {name: plus(promised.get(name, 0.0), asked) for name, asked in request.resources.items()}
            promised = {name: held for name, held in {**promised, **after}.items() if held}
        owners = self.owners
        if request.owner:
            owners = {**owners, request.owner: max(0, self.kernels_of(request.owner) + sign)}
        return replace(
            self,
            cpus_promised=plus(self.cpus_promised, request.cpus),
            memory_promised_bytes=max(0, self.memory_promised_bytes + sign * request.memory_bytes),
            gpus_promised=plus(self.gpus_promised, request.gpus),
            resources_promised=promised,
            kernels=max(0, self.kernels + sign),
            owners=owners,
            devices=tuple(
                replace(d, promised=plus(d.promised, request.gpu_share)) if d.id in device_ids else d
                for d in self.devices
            ),
        )
