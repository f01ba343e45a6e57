"""`Request`: everything that one kernel asks for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .format import format_amount, format_bytes, format_count
from .json_codec import decode, encode, share_equal
from .validation import (
    NOTHING,
    Check,
    check_fields,
    check_labels,
    check_names,
    check_number,
    check_resources,
    check_whole,
    if_known,
)
from .visible_gpus import is_visible, name_gpus

if TYPE_CHECKING:
    from .node import Device

NODE_LABEL = "node"
"""The label that each node has besides its own: the value is the node's id. A node may give it another value."""
_CHECKS: Mapping[str, Check] = {
    "cpus": check_number,
    "memory_bytes": check_whole,
    "gpus": check_number,
    "gpu_models": check_names,
    "gpu_memory_bytes": check_whole,
    "visible_gpus": if_known(check_names),
    "labels": check_labels,
    "near": check_labels,
    "resources": check_resources,
    "tolerates": check_names,
}


@share_equal
@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The resources and conditions that one kernel asks for. One node must meet them.

    A request without amounts is best effort: nothing is promised to it, and no node is too full for it.

    Placement ignores ``policy``, ``enforce`` and ``options``, and ``owner`` does not influence the ranking.

    Raises ``ValueError`` for a wrong value, with one sentence for users.

    >>> Request(gpus=0.5, memory_bytes=8 * 2**30).describe()
    '0.5 GPU, 8 GiB memory'
    """

    cpus: float = 0.0
    """CPUs; 0.25 is a quarter of one."""
    memory_bytes: int = 0
    """Memory. 0 asks for none, as with all other amounts."""
    gpus: float = 0.0
    """A share of one device (at most 1), or a whole number of devices."""
    gpu_models: tuple[str, ...] = ()
    """Any one of these models is required; empty: any model."""
    gpu_memory_bytes: int = 0
    """The least memory of each GPU."""
    visible_gpus: tuple[str, ...] | None = None
    """The GPUs that the application may use, by index or UUID (``list_visible_gpus``); None: all."""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    """All of these labels are required. With ``NODE_LABEL``, they name one node."""
    near: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Labels that are preferred."""
    resources: Mapping[str, float] = field(default_factory=lambda: NOTHING, hash=False)
    """Amounts of custom resources, by their names in the cluster manager."""
    tolerates: tuple[str, ...] = ()
    """Names of taints. The kernel may run on a node if all taints of the node are named."""
    environment: str = ""
    """The path of the interpreter. A node where it is warm starts the kernel faster."""
    owner: str = ""
    """The name of the user whom the kernel is for."""
    policy: str = ""
    """The name of a placement policy. Empty is the operator's default."""
    enforce: str = ""
    """``required``, ``auto``, or empty for the operator's choice, which a request cannot weaken.

    ``required``: the kernel must not run where its limits cannot be enforced. ``auto``: they are enforced wherever that
    is possible.
    """
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Options of the backend, which declares and checks them."""

    def __post_init__(self) -> None:
        check_fields(self, _CHECKS)
        gpus = self.gpus
        if gpus > 1 and gpus != round(gpus):
            raise ValueError(
                f"gpus must be at most 1 (a share of one GPU) or a whole number; got {format_amount(gpus)}. "
                f"Ask for {math.floor(gpus)} or {math.ceil(gpus)}."
            )
        if self.gpu_models and not gpus:
            raise ValueError("gpu_models needs gpus: say how many GPUs of these models, for example gpus=1.")
        if self.gpu_memory_bytes and not gpus:
            raise ValueError("gpu_memory needs gpus: say how many GPUs with this memory, for example gpus=1.")
        for name in ("owner", "environment", "policy"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be text; got {getattr(self, name)!r}.")
        if self.enforce not in ("", "auto", "required"):
            raise ValueError(f"enforce must be auto or required; got {self.enforce!r:.40}.")

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
        """The share that the request takes of each of its devices, 0..1."""
        return min(self.gpus, 1.0)

    def accepts_model(self, model: str) -> bool:
        """True if ``model`` has all words of one of ``gpu_models``, or if the request names no models.

        ``A100`` accepts ``NVIDIA A100-SXM4-80GB``; ``A10`` does not.
        """
        return not self.gpu_models or any(_matches(asked, model) for asked in self.gpu_models)

    def accepts(self, device: Device) -> bool:
        """True if the application may use the device, and it has an accepted model and enough memory (0: unknown)."""
        is_enough = device.memory_bytes >= self.gpu_memory_bytes
        return is_enough and self.accepts_model(device.model) and is_visible(device, self.visible_gpus)

    def describe_gpus(self) -> str:
        """Return the GPUs in a few words: ``2 GPUs of model A100 with 40 GiB each``."""
        model = f" of model {' or '.join(self.gpu_models)}" if self.gpu_models else ""
        each = " each" if self.gpus > 1 else ""
        memory = f" with {format_bytes(self.gpu_memory_bytes)}{each}" if self.gpu_memory_bytes else ""
        own = "" if self.visible_gpus is None else f" of the application's ({name_gpus(self.visible_gpus)})"
        return format_count(self.gpus, "GPU") + model + memory + own

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
        return encode(self)  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Request:
        """Return the value that ``to_dict`` wrote. Raises ``ValueError`` for unknown keys and wrong values."""
        return decode(cls, data)


@lru_cache(maxsize=4096)
def _matches(asked: str, model: str) -> bool:
    """True if every word of ``asked`` is a word of ``model``. Case and punctuation do not matter."""
    words = set(re.findall(r"[a-z0-9]+", asked.lower()))
    return asked == model or (bool(words) and words <= set(re.findall(r"[a-z0-9]+", model.lower())))
