"""What placement speaks of: a request, and the nodes and devices that could serve it. Plain Python values."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

from .format import format_amount, format_bytes, format_count

EPSILON = 1e-6
"""CPUs and GPUs this close are equal, so that ten times 0.1 fill a device exactly. Bytes are exact."""

BUSY_BEYOND = 0.1
"""A device is busy beyond its promises when its real use exceeds them by more than this share."""

UNKNOWN_USE = 0.5
"""Unknown use counts as half way between idle and busy: worse than known idle, better than known busy."""

_OWN = {"cpu": "cpus", "cpus": "cpus", "gpu": "gpus", "gpus": "gpus", "memory": "memory_bytes"}
"""What a request has a field for, by what a manager might name it."""
_NO_OPTIONS: dict[str, Any] = {}
_NOTHING: dict[str, float] = {}
"""No custom resources. One for all nodes, as there may be 100,000: never written to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one kernel asks for, to be met by one node.

    Nothing asked for means nothing promised: a request of zeros is best effort and fits every node that is
    not draining. ``gpus`` is a share of one device (at most 1) or a whole number of devices. ``gpu_models``
    and ``labels`` restrict where the kernel may run: any one of the models, all of the labels; ``near`` are
    labels that it would like. ``resources`` are amounts of what else the cluster manager counts, by the names that
    it has there. It may run on tainted nodes whose taints are all in ``tolerates``. ``environment`` names what
    it runs in (its interpreter's path), for nodes where that is warm. ``owner`` does not influence the ranking.
    ``policy`` names a placement policy; empty is the operator's default. ``options`` belong to the backend: each
    backend declares its own and checks them. Placement ignores both.

    Raises ``ValueError`` with one sentence for users.

    >>> Request(gpus=0.5, memory_bytes=8 * 2**30).describe()
    '0.5 GPU, 8 GiB memory'
    """

    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: float = 0.0
    gpu_models: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    near: Mapping[str, str] = field(default_factory=dict, hash=False)
    resources: Mapping[str, float] = field(default_factory=lambda: _NOTHING, hash=False)
    tolerates: tuple[str, ...] = ()
    environment: str = ""
    owner: str = ""
    policy: str = ""
    options: Mapping[str, Any] = field(default_factory=lambda: _NO_OPTIONS, hash=False)

    def __post_init__(self) -> None:
        gpus = _count("gpus", self.gpus)
        if gpus > 1 and gpus != round(gpus):
            raise ValueError(
                f"gpus must be at most 1 (a share of one GPU) or a whole number; got {format_amount(gpus)}. "
                f"Ask for {math.floor(gpus)} or {math.ceil(gpus)}."
            )
        models = _names("gpu_models", self.gpu_models)
        if models and not gpus:
            raise ValueError("gpu_models needs gpus: say how many GPUs of these models, for example gpus=1.")
        for name in ("owner", "environment", "policy"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be text; got {getattr(self, name)!r}.")
        _set(
            self,
            cpus=_count("cpus", self.cpus),
            memory_bytes=_bytes("memory_bytes", self.memory_bytes),
            gpus=gpus,
        )
        _set(self, gpu_models=models, tolerates=_names("tolerates", self.tolerates))
        _set(self, labels=_labels("labels", self.labels), near=_labels("near", self.near))
        if self.resources is not _NOTHING:
            _set(self, resources=_asked(self.resources))

    @property
    def is_best_effort(self) -> bool:
        """True when nothing says how much the kernel will compute: custom resources do not."""
        return not (self.cpus or self.memory_bytes or self.gpus)

    @property
    def gpu_count(self) -> int:
        """On how many devices it runs: 0 without GPU, 1 for a share."""
        return math.ceil(self.gpus)

    @property
    def gpu_share(self) -> float:
        """What it takes of each of its devices, 0..1."""
        return min(self.gpus, 1.0)

    def accepts_model(self, model: str) -> bool:
        """Whether such a device will do: all words of one asked model are words of ``model``.

        Asking for ``A100`` takes ``NVIDIA A100-SXM4-80GB``; asking for ``A10`` does not.
        """
        return not self.gpu_models or any(_matches(asked, model) for asked in self.gpu_models)

    def describe(self) -> str:
        """The request in a few words, for use in a sentence."""
        parts = []
        if self.gpus:
            parts.append(
                format_count(self.gpus, "GPU")
                + (f" of model {' or '.join(self.gpu_models)}" if self.gpu_models else "")
            )
        if self.memory_bytes:
            parts.append(f"{format_bytes(self.memory_bytes)} memory")
        if self.cpus:
            parts.append(format_count(self.cpus, "CPU"))
        parts += [f"{format_amount(asked)} {name}" for name, asked in sorted(self.resources.items())]
        parts += [f"label {key}={value}" for key, value in sorted(self.labels.items())]
        return ", ".join(parts) or "a kernel that asks for nothing"

    def to_dict(self) -> dict[str, Any]:
        """The request as JSON types; ``from_dict`` is the inverse."""
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
        """Reads ``to_dict``'s form; raises ``ValueError`` for unknown keys and bad values."""
        return cls(**_known(cls, data))


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU (or MIG slice) of a node. ``id`` is opaque: an index or a UUID.

    ``promised`` is the share held by leases that are known to be on this device. ``used`` is its real
    utilisation, as a share; None where nobody measures it.
    """

    id: str
    model: str = ""
    memory_bytes: int = 0
    promised: float = 0.0
    used: float | None = None
    memory_used_bytes: int | None = None

    def __post_init__(self) -> None:
        _set(self, id=str(self.id), memory_bytes=_bytes("memory_bytes", self.memory_bytes))
        _set(self, promised=_count("promised", self.promised), used=_maybe(_count, "used", self.used))
        _set(self, memory_used_bytes=_maybe(_bytes, "memory_used_bytes", self.memory_used_bytes))

    @property
    def free(self) -> float:
        """The share that no known lease holds; negative where a manager promised more than there is."""
        return 1.0 - self.promised

    @property
    def use(self) -> float | None:
        """Real use, 0..1: the larger share of computing and memory. None when neither is known."""
        known = [] if self.used is None else [self.used]
        if self.memory_used_bytes is not None and self.memory_bytes:
            known.append(self.memory_used_bytes / self.memory_bytes)
        return min(max(known), 1.0) if known else None

    @property
    def excess(self) -> float:
        """How far real use exceeds the promises: 0 unless it clearly does, ``UNKNOWN_USE`` when unknown."""
        if self.use is None:
            return UNKNOWN_USE
        beyond = self.use - self.promised
        return beyond if beyond > BUSY_BEYOND else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine that can run kernels: what can be allocated on it, what is promised, what is really used.

    ``gpus_promised`` is the sum over the node, in devices. It may exceed what is known per device (others'
    leases may be known only as a sum); it then bounds what is free on the node, but not on any one device.
    ``resources`` are the totals of what else its manager counts, ``resources_promised`` what is taken of them.
    ``kernels`` counts those known to run or start there. Only requests that tolerate all ``taints`` may run
    there. One that ``is_draining`` gets nothing new: an operator says so, or ``drains_because`` does, a sentence's
    end ("its daemon has ended"). ``warm`` names environments from which kernels start fast there.
    ``metrics_age_s`` is how old the real-use figures were when the snapshot was taken; None means that there
    are none.
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
        _set(self, devices=tuple(self.devices))
        _set(self, labels=_labels("labels", self.labels))
        _set(self, taints=_names("taints", self.taints), warm=_names("warm", self.warm))
        if len({device.id for device in self.devices}) < len(self.devices):
            raise ValueError(f"node {self.id} has two devices of the same id; give each its own.")
        for name in ("cpus", "cpus_promised", "gpus_promised"):
            _set(self, **{name: _count(name, getattr(self, name))})
        for name in ("memory_bytes", "memory_promised_bytes", "kernels"):
            _set(self, **{name: _bytes(name, getattr(self, name))})
        for name in ("resources", "resources_promised"):
            if getattr(self, name) is not _NOTHING:
                _set(self, **{name: _resources(name, getattr(self, name)) or _NOTHING})
        _set(self, cpus_used=_maybe(_count, "cpus_used", self.cpus_used))
        _set(self, memory_used_bytes=_maybe(_bytes, "memory_used_bytes", self.memory_used_bytes))
        _set(self, metrics_age_s=_maybe(_count, "metrics_age_s", self.metrics_age_s))

    @property
    def gpus(self) -> int:
        """How many devices the node has."""
        return len(self.devices)

    @property
    def cpus_free(self) -> float:
        """CPUs that are not promised; negative where a manager promised more than there is."""
        return self.cpus - self.cpus_promised

    @property
    def memory_free_bytes(self) -> int:
        """Memory that is not promised; negative where a manager promised more than there is."""
        return self.memory_bytes - self.memory_promised_bytes

    @property
    def gpus_free(self) -> float:
        """Devices that are not promised, as a sum over the node."""
        return self.gpus - max(self.gpus_promised, sum(device.promised for device in self.devices))

    def resource_free(self, name: str) -> float:
        """What is not promised of a custom resource; 0 where there is none, negative like the others."""
        return self.resources.get(name, 0.0) - self.resources_promised.get(name, 0.0)

    def fitting_devices(self, request: Request) -> tuple[Device, ...]:
        """The devices on which the request's share of one device is free, in the node's order."""
        share = request.gpu_share - EPSILON
        return tuple(d for d in self.devices if d.free >= share and request.accepts_model(d.model))

    def with_kernel(self, request: Request, device_ids: Iterable[str] = ()) -> Node:
        """This node once it also holds a kernel of that request, on these devices where they are known."""
        return self._changed(request, frozenset(device_ids), 1)

    def without_kernel(self, request: Request, device_ids: Iterable[str] = ()) -> Node:
        """The inverse of ``with_kernel`` (to 9 decimals); never below zero."""
        return self._changed(request, frozenset(device_ids), -1)

    def as_empty(self) -> Node:
        """This node with nothing promised and nothing running on it, and not draining."""
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

    def without_metrics(self) -> Node:
        """This node with its real use unknown."""
        devices = tuple(replace(device, used=None, memory_used_bytes=None) for device in self.devices)
        return replace(self, devices=devices, cpus_used=None, memory_used_bytes=None, metrics_age_s=None)

    def to_dict(self) -> dict[str, Any]:
        """The node as JSON types; ``from_dict`` is the inverse."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        devices = [{f.name: getattr(device, f.name) for f in fields(device)} for device in self.devices]
        lists = {"taints": list(self.taints), "warm": list(self.warm), "devices": devices}
        named = {name: dict(plain[name]) for name in ("labels", "resources", "resources_promised")}
        return {**plain, **named, **lists}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Node:
        """Reads ``to_dict``'s form; raises ``ValueError`` for unknown keys and bad values."""
        devices = tuple(Device(**_known(Device, device)) for device in data.get("devices", ()))
        return cls(**{**_known(cls, data), "devices": devices})

    def _changed(self, request: Request, device_ids: frozenset[str], sign: int) -> Node:
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
    """True when every word of ``asked`` is a word of ``model``, whatever the case and punctuation."""
    words = set(re.findall(r"[a-z0-9]+", asked.lower()))
    return asked == model or (bool(words) and words <= set(re.findall(r"[a-z0-9]+", model.lower())))


def _set(value: object, **attributes: object) -> None:
    for name, attribute in attributes.items():
        object.__setattr__(value, name, attribute)


def _count(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number; got {value!r}.")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number; got {number}.")
    if number < 0:
        raise ValueError(f"{name} must not be negative; got {format_amount(number)}. Use 0 to ask for none.")
    return number + 0.0


def _bytes(name: str, value: object) -> int:
    number = _count(name, value)
    if number != int(number) or number >= 2**63:
        raise ValueError(f"{name} must be a whole number below 2**63; got {value!r}.")
    return int(value)  # type: ignore[call-overload,no-any-return]


def _maybe(check: Any, name: str, value: object) -> Any:
    return None if value is None else check(name, value)


def _names(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list of names; got {value!r}.")
    names = tuple(value)
    if not all(isinstance(item, str) and item.strip() for item in names):
        raise ValueError(f"{name} must be a list of names, each of them text; got {list(names)!r}.")
    return names


def _labels(name: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must map names to values, for example {{'zone': 'a'}}; got {value!r}.")
    if not all(isinstance(item, str) for pair in value.items() for item in pair):
        raise ValueError(f"{name} must map text to text; got {dict(value)!r}.")
    return dict(value)


def _resources(name: str, value: object) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must map names to amounts, for example {{'licence': 1}}; got {value!r}.")
    if not all(isinstance(key, str) and key.strip() for key in value):
        raise ValueError(f"{name} must have names that are text; got {dict(value)!r}.")
    return {key: _count(f"{name} {key}", item) for key, item in value.items()}


def _asked(value: object) -> dict[str, float]:
    """Amounts above 0, of nothing that a request has a field for."""
    asked = _resources("resources", value)
    for name, number in asked.items():
        if name.lower() in _OWN:
            raise ValueError(f"resources must not name {name}: ask for it with {_OWN[name.lower()]}.")
        if not number:
            raise ValueError(f"resources {name} must be above 0; leave it out to ask for none.")
    return asked or _NOTHING


def _known(cls: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    known = {f.name for f in fields(cls)}
    if unknown := sorted(map(str, set(data) - known)):
        raise ValueError(
            f"unknown {cls.__name__.lower()} key {unknown[0]!r}; known are {', '.join(sorted(known))}."
        )
    return dict(data)
