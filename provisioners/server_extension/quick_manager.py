"""A kernel's manager that makes no pauses. Only roost's kernels get it; the managers of other kernels stay as they are.

jupyter_client waits 10 ms after each start and shutdown, so that its own tests see the state in between. A restart is
a shutdown and a start. ZeroMQ's sockets wait 100 ms or longer before they connect to a restarted kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, cast

from jupyter_client.manager import AsyncKernelManager

from roost.provisioners.jupyter_internals import change_class, renew_ready
from roost.provisioners.kernel_connection import set_up_sockets

Method = Callable[..., Coroutine[Any, Any, Any]]


def _without_pause(method: Callable[..., Any]) -> Method:
    """Return a method of jupyter_client without the pause that its decorator `in_pending_state` adds."""
    plain: Method | None = getattr(method, "__wrapped__", None)
    if plain is None:
        return cast(Method, method)

    @functools.wraps(plain)
    async def run(km: Any, *arguments: Any, **options: Any) -> Any:
        renew_ready(km)
        try:
            result = await plain(km, *arguments, **options)
        except Exception as problem:
            km.ready.set_exception(problem)
            km.ready.exception()  # or asyncio logs it if nobody waits; the caller logs it anyway
            raise
        if km.owns_kernel:
            km.ready.set_result(None)
        return result

    return run


class QuickManager(AsyncKernelManager):
    """A mixin for a kernel manager. It starts and stops kernels without jupyter_client's pauses (see above).

    It comes after the server's own class in the method order, so that class may call these methods by
    `super()`.
    """

    _async_start_kernel = start_kernel = _without_pause(AsyncKernelManager.start_kernel)
    _async_shutdown_kernel = shutdown_kernel = _without_pause(AsyncKernelManager.shutdown_kernel)

    def _create_connected_socket(self, *arguments: Any, **options: Any) -> Any:
        """Create a socket as roost's own clients do. Leave the context's options as they were."""
        usual = self.context.sockopts
        self.context.sockopts = dict(usual)
        set_up_sockets(self.context)
        try:
            return super()._create_connected_socket(*arguments, **options)
        finally:
            self.context.sockopts = usual


def make_quick(km: Any) -> None:
    """Make a kernel's manager a `QuickManager` too, by a change of its class.

    Leave a synchronous manager alone.
    """
    if isinstance(km, AsyncKernelManager):
        change_class(km, _combine(type(km)))


@functools.cache
def _combine(kind: type[AsyncKernelManager]) -> type[AsyncKernelManager]:
    return type(f"Quick{kind.__name__}", (kind, QuickManager), {})
