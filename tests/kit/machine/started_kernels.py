"""Kernels of roost on this machine that were started in a certain way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import roost
from roost.provisioners.kernel_object import BlockingKernel
from roost.scheduler.client.client import connect
from roost.testing.deadlines import allow_s, until_blocking


def start_as(
    how: str = "forked",
    name: str = "python3",
    seconds: float = 60,
    options: Mapping[str, Any] | None = None,
    **wish: Any,
) -> BlockingKernel:
    """Start kernels until one is started as `how` says, and return it. Until a zygote is ready, no kernel is forked.

    `options` are the options of the backend. `wish` has the arguments of `roost.start_kernel`.
    """
    options = dict(options or {})
    kernels: list[BlockingKernel] = []

    def is_found() -> bool:
        kernel = roost.start_kernel(name, backend="local", backend_options=options, **wish)
        kernels.append(kernel)
        if connect("local", **options).kernel(kernel.id).result(allow_s(10)).how == how:
            return True
        kernels.pop().stop()
        return False

    try:
        until_blocking(is_found, f"a kernel is {how}", seconds, 0.0)
    except AssertionError:
        for kernel in kernels:
            kernel.stop()
        raise
    return kernels[0]
