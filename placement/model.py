"""The values that placement decides about: requests, nodes and devices. They need no numpy."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

from .format import format_amount, format_bytes, format_count
from .validation import (
    check_amounts,
    check_keys,
    check_labels,
    check_names,
    check_number,
    check_optional,
    check_resources,
    check_whole,
    set_fields,
)

EPSILON = 1e-6
"""Amounts of CPUs and GPUs this close are equal, so that ten times 0.1 fill a device. Bytes are exact."""

BUSY_BEYOND = 0.1
"""A device is busy beyond its promises if its real use exceeds them by more than this share."""

UNKNOWN_USE = 0.5
"""Unknown use counts as half way between idle and busy."""

_NO_OPTIONS: dict[str, Any] = {}
_NOTHING: dict[str, float] = {}
"""No custom resources. All nodes share this object, because there may be 100,000 nodes. Nobody writes to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The resources and conditions that one kernel asks for. One node must meet them.

    A request without amounts is best effort: nothing is promised to it, and it fits every node that is not draining.

    - ``gpus`` is a share of one device (at most 1) or a whole number of devices.
    - ``gpu_models`` and ``labels`` are required: any one of the models, and all of the labels. ``near`` are preferred
      labels.
    - ``gpu_memory_bytes`` is the least memory of each GPU.
    - ``resources`` are amounts of custom resources, by their names in the cluster manager.
    - ``tolerates`` names taints. The kernel may run on a node if all taints of the node are named.
    - ``environment`` is the path of the interpreter. A node with this environment warm starts the kernel faster.
    - ``policy`` names a placement policy. Empty is the operator's default.
    - ``options`` belong to the backend, which declares and checks them.

    Placement ignores ``policy`` and ``options``, and ``owner`` does not influence the ranking.

    Raises ``ValueError`` with one sentence for users.

    >>> Request(gpus=0.5, memory_bytes=8 * 2**30).describe()
    '0.5 GPU, 8 GiB memory'
    """

    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: float = 0.0
    gpu_models: tuple[str, ...] = ()
    gpu_memory_bytes: int = 0
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    near: Mapping[str, str] = field(default_factory=dict, hash=False)
    resources: Mapping[str, float] = field(default_factory=lambda: _NOTHING, hash=False)
    tolerates: tuple[str, ...] = ()
    environment: str = ""
    owner: str = ""
    policy: str = ""
    options: Mapping[str, Any] = field(default_factory=lambda: _NO_OPTIONS, hash=False)

    def __post_init__(self) -> None:
        gpus = check_number("gpus", self.gpus)
        if gpus > 1 and gpus != round(gpus):
            raise ValueError(
                f"gpus must be at most 1 (a share of one GPU) or a whole number; got {format_amount(gpus)}. "
                f"Ask for {math.floor(gpus)} or {math.ceil(gpus)}."
            )
        models = check_names("gpu_models", self.gpu_models)
        if models and not gpus:
            raise ValueError("gpu_models needs gpus: say how many GPUs of these models, for example gpus=1.")
        gpu_memory_bytes = check_whole("gpu_memory_bytes", self.gpu_memory_bytes)
        if gpu_memory_bytes and not gpus:
            raise ValueError("gpu_memory needs gpus: say how many GPUs with this memory, for example gpus=1.")
        for name in ("owner", "environment", "policy"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be text; got {getattr(self, name)!r}.")
        set_fields(
            self,
            cpus=check_number("cpus", self.cpus),
            memory_bytes=check_whole("memory_bytes", self.memory_bytes),
            gpus=gpus,
            gpu_models=models,
            gpu_memory_bytes=gpu_memory_bytes,
            tolerates=check_names("tolerates", self.tolerates),
            labels=check_labels("labels", self.labels),
            near=check_labels("near", self.near),
        )
        if self.resources is not _NOTHING:
            set_fields(self, resources=check_resources(self.resources) or _NOTHING)

    @property
    def is_best_effort(self) -> bool:
        """True if the request asks for no CPUs, memory or GPUs. Custom resources do not count."""
        return not (self.cpus or self.memory_bytes or self.gpus)

    @property
    def gpu_count(self) -> int:
        """The number of devices: 0 without GPUs, 1 for a share."""
        return math.ceil(self.gpus)

    @property
    def gpu_share(self) -> float:
        """The share of each device, 0..1."""
        return min(self.gpus, 1.0)

    def accepts_model(self, model: str) -> bool:
        """True if a device of this model is accepted: ``model`` has all words of one of ``gpu_models``.

        ``A100`` accepts ``NVIDIA A100-SXM4-80GB``, and ``A10`` does not.
        """
        return not self.gpu_models or any(_matches(asked, model) for asked in self.gpu_models)

    def accepts(self, device: Device) -> bool:
        """True if the device has an accepted model and enough memory. An unknown memory size (0) is not enough."""
        return device.memory_bytes >= self.gpu_memory_bytes and self.accepts_model(device.model)

    def describe_gpus(self) -> str:
        """Return the GPUs in a few words: ``2 GPUs of model A100 with 40 GiB each``."""
        model = f" of model {' or '.join(self.gpu_models)}" if self.gpu_models else ""
        each = " each" if self.gpus > 1 else ""
        memory = f" with {format_bytes(self.gpu_memory_bytes)}{each}" if self.gpu_memory_bytes else ""
        return format_count(self.gpus, "GPU") + model + memory

    def describe(self) -> str:
        """Return the request in a few words, for use in a sentence."""
        parts = []
        if self.gpus:
            parts.append(self.describe_gpus())
        if self.memory_bytes:
            parts.append(f"{format_bytes(self.memory_bytes)} memory")
        if self.cpus:
            parts.append(format_count(self.cpus, "CPU"))
        parts += [f"{format_amount(asked)} {name}" for name, asked in sorted(self.resources.items())]
        parts += [f"label {key}={value}" for key, value in sorted(self.labels.items())]
        return ", ".join(parts) or "a kernel that asks for nothing"

    def to_dict(self) -> dict[str, Any]:
        """Return the request as JSON types; ``from_dict`` is the inverse."""
        return {
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "gpu_models": list(self.gpu_models),
            "tolerates": list(self.tolerates),
            "labels": dict(self.labels),
            "near": dict(self.near),
            "resources": dict(self.resources),
            "options": dict(self.options),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Request:
        """Return the value that ``to_dict`` wrote. Raises ``ValueError`` for unknown keys and wrong values."""
        return cls(**check_keys(cls, data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU, or a MIG slice of one. ``id`` is opaque: an index or a UUID.

    ``promised`` is the share that known leases hold. ``used`` is the real utilisation as a share, None if unknown.

    >>> Device(id="0", promised=0.25, used=0.5).free
    0.75
    """

    id: str
    model: str = ""
    memory_bytes: int = 0
    promised: float = 0.0
    used: float | None = None
    memory_used_bytes: int | None = None

    def __post_init__(self) -> None:
        set_fields(
            self,
            id=str(self.id),
            memory_bytes=check_whole("memory_bytes", self.memory_bytes),
            promised=check_number("promised", self.promised),
            used=check_optional(check_number, "used", self.used),
            memory_used_bytes=check_optional(check_whole, "memory_used_bytes", self.memory_used_bytes),
        )

    @property
    def free(self) -> float:
        """The share that is not promised. It is negative if the manager promised too much."""
        return 1.0 - self.promised

    @property
    def use(self) -> float | None:
        """The real use, 0..1: the larger share of computing and memory. None if neither is known."""
        known = [] if self.used is None else [self.used]
        if self.memory_used_bytes is not None and self.memory_bytes:
            known.append(self.memory_used_bytes / self.memory_bytes)
        return min(max(known), 1.0) if known else None

    @property
    def excess(self) -> float:
        """The real use beyond the promises: 0 up to ``BUSY_BEYOND``, and ``UNKNOWN_USE`` if the use is unknown."""
        if self.use is None:
            return UNKNOWN_USE
        beyond = self.use - self.promised
        return beyond if beyond > BUSY_BEYOND else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine that can run kernels, with its total, promised and really used amounts.

    - ``gpus_promised`` is the sum over the node, in devices. Leases of others may be known only as a sum. The sum may
      therefore exceed the promises of the devices. It limits the free GPUs of the node, but of no single device.
    - ``resources`` are the totals of custom resources, ``resources_promised`` the promised amounts.
    - ``kernels`` counts the kernels that are known to run or start on the node.
    - ``taints`` keep kernels away whose requests do not tolerate all of them.
    - ``is_draining`` stops new kernels. ``drains_because`` is a predicate that says why ("its daemon has ended").
      Empty means that an operator drains the node.
    - ``warm`` names environments from which kernels start fast.
    - ``metrics_age_s`` is the age of the real-use figures at the time of the snapshot. None means no metrics.

    >>> node = Node(id="a", cpus=8, cpus_promised=2)
    >>> node.with_kernel(Request(cpus=4)).cpus_free
    2.0
    """

    id: str
    address: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    cpus: float = 0.0
    memory_bytes: int = 0
    devices: tuple[Device, ...] = ()
    cpus_promised: float = 0.0
    memory_promised_bytes: int = 0
    gpus_promised: float = 0.0
    resources: Mapping[str, float] = field(default_factory=lambda: _NOTHING, hash=False)
    resources_promised: Mapping[str, float] = field(default_factory=lambda: _NOTHING, hash=False)
    cpus_used: float | None = None
    memory_used_bytes: int | None = None
    kernels: int = 0
    is_draining: bool = False
    drains_because: str = ""
    taints: tuple[str, ...] = ()
    warm: tuple[str, ...] = ()
    metrics_age_s: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.is_draining, bool):
            raise ValueError(f"is_draining must be true or false; got {self.is_draining!r}.")
        set_fields(self, devices=tuple(self.devices))
        set_fields(self, labels=check_labels("labels", self.labels))
        set_fields(self, taints=check_names("taints", self.taints), warm=check_names("warm", self.warm))
        if len({device.id for device in self.devices}) < len(self.devices):
            raise ValueError(f"node {self.id} has two devices of the same id; give each its own.")
        for name in ("cpus", "cpus_promised", "gpus_promised"):
            set_fields(self, **{name: check_number(name, getattr(self, name))})
        for name in ("memory_bytes", "memory_promised_bytes", "kernels"):
            set_fields(self, **{name: check_whole(name, getattr(self, name))})
        for name in ("resources", "resources_promised"):
            if getattr(self, name) is not _NOTHING:
                set_fields(self, **{name: check_amounts(name, getattr(self, name)) or _NOTHING})
        for name, check in (
            ("cpus_used", check_number),
            ("memory_used_bytes", check_whole),
            ("metrics_age_s", check_number),
        ):
            set_fields(self, **{name: check_optional(check, name, getattr(self, name))})

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
        """The devices that are not promised, as a sum over the node."""
        return self.gpus - max(self.gpus_promised, sum(device.promised for device in self.devices))

    def resource_free(self, name: str) -> float:
        """Return the amount of a custom resource that is not promised. It is 0 if the node has none."""
        return self.resources.get(name, 0.0) - self.resources_promised.get(name, 0.0)

    def fitting_devices(self, request: Request) -> tuple[Device, ...]:
        """Return the accepted devices with enough free share, in the node's order."""
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
            resources_promised=_NOTHING,
            kernels=0,
            is_draining=False,
            drains_because="",
            devices=tuple(replace(device, promised=0.0) for device in self.devices),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the node as JSON types; ``from_dict`` is the inverse."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        devices = [{f.name: getattr(device, f.name) for f in fields(device)} for device in self.devices]
        lists = {"taints": list(self.taints), "warm": list(self.warm), "devices": devices}
        named = {name: dict(plain[name]) for name in ("labels", "resources", "resources_promised")}
        return {**plain, **named, **lists}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Node:
        """Return the value that ``to_dict`` wrote. Raises ``ValueError`` for unknown keys and wrong values."""
        devices = tuple(Device(**check_keys(Device, device)) for device in data.get("devices", ()))
        return cls(**{**check_keys(cls, data), "devices": devices})

    def _add(self, request: Request, device_ids: frozenset[str], sign: int) -> Node:
        def plus(held: float, asked: float) -> float:
            return max(0.0, round(held + sign * asked, 9))

        promised = self.resources_promised
        if request.resources:
            after = {name: plus(promised.get(name, 0.0), asked) for name, asked in request.resources.items()}
            promised = {name: held for name, held in {**promised, **after}.items() if held}
        return replace(
            self,
            cpus_promised=plus(self.cpus_promised, request.cpus),
            memory_promised_bytes=max(0, self.memory_promised_bytes + sign * request.memory_bytes),
            gpus_promised=plus(self.gpus_promised, request.gpus),
            resources_promised=promised,
            kernels=max(0, self.kernels + sign),
            devices=tuple(
                replace(d, promised=plus(d.promised, request.gpu_share)) if d.id in device_ids else d
                for d in self.devices
            ),
        )


@lru_cache(maxsize=4096)
def _matches(asked: str, model: str) -> bool:
    """True if every word of ``asked`` is a word of ``model``. Case and punctuation do not matter."""
    words = set(re.findall(r"[a-z0-9]+", asked.lower()))
    return asked == model or (bool(words) and words <= set(re.findall(r"[a-z0-9]+", model.lower())))
