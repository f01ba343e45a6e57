"""Restarts of a kernel. Some kernels that have died must not be started again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import Any

from jupyter_client.ioloop.restarter import AsyncIOLoopKernelRestarter
from tornado.ioloop import IOLoop

from roost.provisioners.jupyter_internals import use_up_restarts
from roost.provisioners.provisioner import RoostProvisioner
from roost.scheduler.messages import hide_output

_ANSWER_S = 30.0
"""How long roost waits for the answer of a restarted kernel, which may die again."""


class Restarter(AsyncIOLoopKernelRestarter):
    """Restarts a kernel as Jupyter does, unless somebody stopped it or it has run out of memory twice in a row."""

    async def poll(self) -> None:  # type: ignore[override]
        """Restart the kernel if it has died, unless the provisioner gives a reason against a restart."""
        provisioner: Any = self.kernel_manager.provisioner
        problem = provisioner.why_not_restart() if isinstance(provisioner, RoostProvisioner) else ""
        if problem:
            self.log.warning(
                "kernel=%s is not started again: %s", provisioner.kernel_id, hide_output(problem)
            )
            use_up_restarts(self)
        is_restart = not await self.kernel_manager.is_alive()
        async with following_state(self.kernel_manager, is_restart=is_restart):
            await super().poll()
        if is_restart and isinstance(provisioner, RoostProvisioner) and await self.kernel_manager.is_alive():
            ask_for_state(self.kernel_manager)


def ask_for_state(km: Any) -> None:
    """Ask a kernel for its info, so that it publishes *busy* and *idle*.

    Otherwise its *starting*, which may arrive late, could remain the last state that clients see.
    """
    channel = km.connect_shell()
    channel.on_recv(lambda _: channel.close())
    km.session.send(channel, "kernel_info_request")
    IOLoop.current().call_later(_ANSWER_S, lambda: None if channel.closed() else channel.close())


@asynccontextmanager
async def following_state(km: Any, *, is_restart: bool = True) -> AsyncIterator[None]:
    """Correct the kernel state that Jupyter Server shows, during and after a restart in this block.

    The server reads the state from IOPub. A forked kernel is idle before the server has subscribed again, so
    the server would miss that state.
    """
    if not is_restart or not hasattr(km, "execution_state"):
        yield
        return
    km.execution_state, km.last_activity = "starting", datetime.now(timezone.utc)
    yield
    if km.execution_state == "starting" and await km.is_alive():
        km.execution_state, km.last_activity = "idle", datetime.now(timezone.utc)
