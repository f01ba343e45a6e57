"""The kernels of a server that run behind a gateway. The next server of the same name has them and its sessions."""

from __future__ import annotations

from typing import Any

from jupyter_server.gateway import managers
from jupyter_server.gateway.connections import GatewayWebSocketConnection

from roost.placement.model.format import format_count
from roost.provisioners.gateway_client import GatewayKernelManager
from roost.provisioners.jupyter_internals import change_class, list_kernel

from .server_state import ServerState

_MOST_HELD = 1_000
"""At most this many messages of a client wait for the gateway."""


class PatientConnection(GatewayWebSocketConnection):  # type: ignore[misc]
    """The websocket of a client, which Jupyter Server passes on to the gateway.

    Jupyter Server itself drops what the client sends while the gateway is away, and the cell would wait for ever.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._held: list[Any] = []

    @property
    def _is_connected(self) -> bool:
        protocol = self.ws.protocol if self.ws is not None else None
        return protocol is not None and not protocol.stream.closed()

    async def connect(self) -> None:
        """Connect with the gateway, and then send what the client has sent meanwhile."""
        await super().connect()
        self.ws_future.add_done_callback(lambda _: self._send_held())

    def handle_incoming_message(self, message: Any) -> None:
        """Send a message to the gateway, or hold it until the gateway is back."""
        if self._is_connected and not self._held:
            super().handle_incoming_message(message)
        elif len(self._held) < _MOST_HELD:
            self._held.append(message)
        else:
            self.log.warning("kernel=%s a message was dropped: the gateway is away", self.kernel_id)

    def _send_held(self) -> None:
        if self._is_connected:
            held, self._held = self._held, []
            for message in held:
                super().handle_incoming_message(message)


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
