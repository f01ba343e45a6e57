"""Reads amounts of memory: `8GiB`, `512MB`, `2g`, plain bytes."""

from __future__ import annotations

from roost.placement.model.format import format_bytes
from roost.placement.model.memory_size import read_bytes
from roost.scheduler.errors import ConfigError

_LEAST_KERNEL_BYTES = 16 << 20
"""A kernel with less memory ends before it has started."""


def parse_bytes(text: str | int | float) -> int:
    """Return the bytes in `text`, as `read_bytes` does. Raises `ConfigError`."""
    try:
        return read_bytes(text)
    except ValueError as problem:
        raise ConfigError(str(problem)) from None


def check_kernel_memory(name: str, size: int) -> int:
    """Return `size`, in bytes (0: no size is given). Raise `ConfigError` if it is too little for any kernel."""
    if 0 < size < _LEAST_KERNEL_BYTES:
        least = f"at least {format_bytes(_LEAST_KERNEL_BYTES)}, for example 2GiB"
        raise ConfigError(f"{name} = {format_bytes(size)} is too little for a kernel: give {least}.")
    return size
