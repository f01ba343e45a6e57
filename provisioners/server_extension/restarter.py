"""The automatic restarts of a kernel that has died. Some kernels must not be started again."""

from __future__ import annotations

from typing import Any

from jupyter_client.ioloop.restarter import AsyncIOLoopKernelRestarter

from roost.provisioners.provisioner import RoostProvisioner


class Restarter(AsyncIOLoopKernelRestarter):
    """Restarts a kernel as Jupyter does, unless somebody stopped it or it has run out of memory twice in a row."""

    async def poll(self) -> None:  # type: ignore[override]
        """Look at the kernel, and start it again if it has died."""
        provisioner: Any = self.kernel_manager.provisioner
        problem = provisioner.why_not_restart() if isinstance(provisioner, RoostProvisioner) else ""
        if problem:
            self.log.warning("kernel=%s is not started again: %s", provisioner.kernel_id, problem)
            self._restarting, self._restart_count = True, self.restart_limit
        await super().poll()
