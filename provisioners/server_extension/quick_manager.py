"""Starts and shutdowns without jupyter_client's pause: it waits 10 ms after each, so that its own tests see the state.

A restart is a shutdown and a start. The managers of other kernels stay as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from jupyter_client.manager import AsyncKernelManager

_PAUSED = {"_async_start_kernel": "start_kernel", "_async_shutdown_kernel": "shutdown_kernel"}
"""The methods with a pause, and the names under which others call them."""


def skip_pauses(km: Any) -> None:
    """Leave the pauses out for one kernel. A class that has changed these methods keeps its own."""
    for name, public in _PAUSED.items():
        stock = getattr(AsyncKernelManager, name)
        kind = type(km)
        if hasattr(stock, "__wrapped__") and getattr(kind, name) is getattr(kind, public) is stock:
            quick = _build_method(km, stock.__wrapped__)
            setattr(km, name, quick)
            setattr(km, public, quick)


def _build_method(
    km: Any, method: Callable[..., Coroutine[Any, Any, Any]]
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return `method` of `km` with what jupyter_client's `in_pending_state` does, apart from its pause."""

    async def run(*arguments: Any, **options: Any) -> Any:
        if km._attempted_start or not km._ready:
            km._ready = asyncio.get_running_loop().create_future()
        try:
            result = await method(km, *arguments, **options)
        except Exception as problem:
            km._ready.set_exception(problem)
            km.log.exception(km._ready.exception())
            raise
        if km.owns_kernel:
            km._ready.set_result(None)
        return result

    return run
