"""The automatic restarts of a kernel that has died: after it ran out of memory, there is only one."""

from __future__ import annotations

from typing import Any

from jupyter_client.ioloop.restarter import AsyncIOLoopKernelRestarter

from roost.provisioners.provisioner import RoostProvisioner


class Restarter(AsyncIOLoopKernelRestarter):
    """Restarts a kernel as Jupyter does, unless it has run out of memory twice in a row."""

    async def poll(self) -> None:  # type: ignore[override]
        """Look at the kernel, and start it again if it has died."""
        provisioner: Any = self.kernel_manager.provisioner
        gives_up = isinstance(provisioner, RoostProvisioner) and provisioner.end_repeated_excess()
        if gives_up:
            self.log.warning(
                "kernel=%s is not started again: it ran out of memory twice", provisioner.kernel_id
            )
            self._restarting, self._restart_count = True, self.restart_limit
        await super().poll()
