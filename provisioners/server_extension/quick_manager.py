"""A kernel's manager that makes no pauses, and whose sockets follow the kernel to other ports.

Only roost's kernels get it; the managers of other kernels stay as they are.

jupyter_client waits 10 ms after each start and shutdown, so that its own tests see the state in between. A restart is
a shutdown and a start. ZeroMQ's sockets wait 100 ms or longer before they connect to a restarted kernel.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, cast

from jupyter_client.manager import AsyncKernelManager

from roost.provisioners.jupyter_internals import change_class, record_ports, renew_ready
from roost.provisioners.kernel_connection import quick_sockets
from roost.scheduler.errors import LaunchError

from .kernel_sockets import KernelSockets

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
        except asyncio.CancelledError:
            km.ready.cancel()
            raise
        if km.owns_kernel:
            km.ready.set_result(None)
        return result

    return run


_start = _without_pause(AsyncKernelManager.start_kernel)


class QuickManager(AsyncKernelManager):
    """A mixin for a kernel manager. It starts and stops kernels without jupyter_client's pauses (see above).

    It comes after the server's own class in the method order, so that class may call these methods by
    `super()`. `make_quick` sets its attributes, because the object exists already.
    """

    sockets: KernelSockets
    is_restarting: bool
    """True from the beginning of a restart until the new process has started or failed."""
    started: asyncio.Event
    """An event that the end of the next start or restart sets, or a restart that has to wait.

    Each of them puts a new event here.
    """

    async def _async_start_kernel(self, **options: Any) -> None:
        """Start the kernel. Then connect the open sockets with its ports, if these have changed.

        A restart that the end of the server meets starts nothing.
        """
        if getattr(self.parent, "is_stopping", False):
            raise LaunchError("The Jupyter Server stops, so it starts no kernel.")
        try:
            await _start(self, **options)
            if self.sockets.follow():
                self.log.info("kernel=%s its clients go over to its new ports", self.kernel_id)
                record_ports(self.parent, self.kernel_id)
        finally:
            self._note_start()

    async def _async_restart_kernel(self, *arguments: Any, **options: Any) -> None:
        """Restart the kernel. Meanwhile `is_restarting` is true."""
        self.is_restarting = True
        try:
            restart = super().restart_kernel(*arguments, **options)
            starts = getattr(self.parent, "starts", None)
            await (restart if starts is None else starts.follow_restart(self, restart))
        finally:
            self._note_start()

    def _note_start(self) -> None:
        self.is_restarting = False
        self.wake()

    def wake(self) -> None:
        """Wake what waits for the end of a start or restart."""
        started, self.started = self.started, asyncio.Event()
        started.set()

    start_kernel = _async_start_kernel
    restart_kernel = _async_restart_kernel
    _async_shutdown_kernel = shutdown_kernel = _without_pause(AsyncKernelManager.shutdown_kernel)

    def _create_connected_socket(self, channel: str, *arguments: Any, **options: Any) -> Any:
        """Create a socket as roost's own clients do. Leave the context's options as they were."""
        with quick_sockets(self.context):
            socket = super()._create_connected_socket(channel, *arguments, **options)
        self.sockets.add(socket, channel)
        return socket


def make_quick(km: Any) -> None:
    """Make a kernel's manager a `QuickManager` too, by a change of its class.

    Leave a synchronous manager alone.
    """
    kind: type[Any] = type(km)
    if issubclass(kind, AsyncKernelManager):
        change_class(km, _combine(kind))
        km.sockets, km.is_restarting, km.started = KernelSockets(km), False, asyncio.Event()


@functools.cache
def _combine(kind: type[AsyncKernelManager]) -> type[AsyncKernelManager]:
    return type(f"Quick{kind.__name__}", (kind, QuickManager), {})
