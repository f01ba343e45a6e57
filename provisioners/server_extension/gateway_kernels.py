"""The kernels of a server that run behind a gateway. The next server of the same name has them and its sessions."""

from __future__ import annotations

from typing import Any

from jupyter_server.gateway import managers

from roost.placement.model.format import format_count
from roost.provisioners.gateway_client import GatewayKernelManager
from roost.provisioners.jupyter_internals import change_class, list_kernel

from .server_state import ServerState


class RememberedKernels(managers.GatewayMappingKernelManager):  # type: ignore[misc]
    """The kernels of a server behind a gateway. The next server of the same name has them, too."""

    state: ServerState
    keeps: bool
    """True if the kernels outlive the server."""

    async def start_kernel(self, **kwargs: Any) -> str:
        """Start a kernel, and note it for the next server."""
        kernel_id: str = await super().start_kernel(**kwargs)
        self.state.note(kernel_id)
        return kernel_id

    def remove_kernel(self, kernel_id: str) -> Any:
        """Forget a kernel that has ended."""
        self.state.forget(kernel_id)
        return super().remove_kernel(kernel_id)

    async def list_kernels(self, **kwargs: Any) -> Any:
        """Return the models of the kernels of this server and of those before it."""
        await self.take_over()
        return await super().list_kernels(**kwargs)

    async def take_over(self) -> None:
        """List the noted kernels that the gateway still has. Raises `HTTPError` if it does not answer."""
        for kernel_id in [each for each in self.state.kernels if each not in self]:
            km = self.kernel_manager_factory(parent=self, log=self.log)
            await km.start_kernel(kernel_id=kernel_id)  # asks for the kernel, and starts none
            if km.has_kernel:
                list_kernel(self, kernel_id, km)
            else:
                self.state.forget(kernel_id)

    async def shutdown_all(self, now: bool = False) -> None:
        """End the kernels, unless the next server takes them over."""
        if not self.keeps:
            await super().shutdown_all(now=now)
        elif count := len(self.list_kernel_ids()):
            kept = format_count(count, "kernel")
            self.log.info("roost: %s kept at the gateway, for the next server of this name.", kept)


def remember_kernels(kernels: Any, state: ServerState, *, keeps: bool) -> None:
    """Let a server's manager of kernels behind a gateway remember them in `state`, and show the gateway's sentences."""
    change_class(kernels, RememberedKernels)
    kernels.state, kernels.keeps = state, keeps
    kernels.kernel_manager_class = f"{GatewayKernelManager.__module__}.{GatewayKernelManager.__name__}"
