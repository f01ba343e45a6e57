"""The GPUs that a process may use, as its environment names them: Slurm, hubs and users of a shared machine do that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .node import Device

_CUDA, _HIP, _ROCR, _OPENCL = VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
)
"""The first of these variables that is set counts."""
_APPLICATION = "ROOST_APPLICATION_GPUS"
"""A kernel's variable: the GPUs that it was given, and after `;` the GPUs that its application may use.

A kernel that starts another kernel is its application, and lets that one use what its own application may use. If the
kernel itself has changed the variables above, these count.
"""
_ALL = "all"
_UUIDS = ("GPU-", "MIG-")


def list_visible_gpus(env: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the names of the GPUs that a process with these variables may use; None if it may use all.

    A name is an index in PCI order, or the beginning of a UUID. Any other name ends the list, as CUDA does it.

    >>> list_visible_gpus({"CUDA_VISIBLE_DEVICES": "2, 3"}), list_visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"})
    (('2', '3'), ())
    """
    text = env.get(_find_first(env))
    given, is_kernel, outer = env.get(_APPLICATION, "").partition(";")
    if is_kernel and text == given:
        text = None if outer == _ALL else outer
    if text is None:
        return None
    names: list[str] = []
    for name in map(str.strip, text.split(",")):
        is_index = name.isascii() and name.isdecimal()
        if not is_index and not name.startswith(_UUIDS):
            break
        names.append(str(int(name)) if is_index else name)
    return tuple(dict.fromkeys(names))


def is_visible(device: Device, visible: Sequence[str] | None) -> bool:
    """True if a process that may use these GPUs may use the device."""
    if visible is None:
        return True
    return any(
        own == name or (name.startswith(_UUIDS) and own.startswith(name))
        for name in visible
        for own in (device.id, *device.names)
    )


def show_gpus(env: Mapping[str, str], device_ids: Sequence[str]) -> dict[str, str]:
    """Return these variables so that a process with them sees exactly these devices.

    Each variable that named GPUs names these. ROCR_VISIBLE_DEVICES stays only if no other variable counts before it:
    the others would be positions in its list.
    """
    given, visible = ",".join(device_ids), list_visible_gpus(env)
    first = _find_first(env)
    shown = [_ROCR] if first == _ROCR else [_CUDA, *(name for name in (_HIP, _OPENCL) if name in env)]
    others = {name: value for name, value in env.items() if name not in VARIABLES}
    outer = _ALL if visible is None else ",".join(visible)
    return {**others, **dict.fromkeys(shown, given), _APPLICATION: f"{given};{outer}"}


def name_gpus(visible: Sequence[str]) -> str:
    """Return the names for use in a sentence: `2, 3`, or `none`."""
    return ", ".join(visible)[:160] or "none"


def describe_visible_gpus(env: Mapping[str, str]) -> str:
    """Return which GPUs kernels of a process with these variables may use, as a clause; empty if they may use all."""
    visible = list_visible_gpus(env)
    if visible is None:
        return ""
    return f"{_find_first(env)} lets kernels use these GPUs alone: {name_gpus(visible)}"


def _find_first(env: Mapping[str, str]) -> str:
    """Return the variable that counts; CUDA's if none is set."""
    return next((name for name in VARIABLES if name in env), _CUDA)
