"""The settings of the extension, and its parts in one Jupyter Server."""

from __future__ import annotations

from typing import Any

from traitlets import Bool, Float
from traitlets.config import LoggingConfigurable

from .warm_up import start_warm_up


class RoostExtension(LoggingConfigurable):
    """The extension in one Jupyter Server. Its settings are `c.RoostExtension.…` in the server's configuration.

    `off` has a sentence for each part that is turned off in this server.
    """

    warm_up = Bool(
        True,
        config=True,
        help="Bring up the service, the agent and warm processes for roost's kernels when the server starts.",
    )
    pending_starts = Bool(
        True,
        config=True,
        help="Let notebooks work while their kernels wait, instead of blocking their start.",
    )
    queue_timeout_s = Float(
        3600.0, min=0.0, config=True, help="Seconds that a start may wait in the queue for its resources."
    )

    def __init__(self, *, parent: Any) -> None:
        super().__init__(parent=parent)
        self.serverapp = parent
        self.off: list[str] = []

    def load(self) -> None:
        """Add roost's parts to the server, before the server listens. All extensions are linked by now."""
        if self._has_gateway_client():
            self.log.info("roost: this server's kernels run behind a gateway, so the extension does nothing.")
            return
        self._add_pending_starts()
        self._add_pages()
        if self.off:
            self.log.info("roost: %s", " ".join(self.off))

    async def start(self) -> None:
        """Begin the work that needs the server's event loop. The server listens by now."""
        if self._has_gateway_client():
            return
        if self.warm_up:
            start_warm_up(self.serverapp.kernel_manager, self.log)

    def _add_pending_starts(self) -> None:
        """Let starts wait without blocking, if nobody has changed the parts of the server that this needs."""
        from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
        from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager

        from .connection import RoostConnection
        from .pending_starts import add_pending_starts

        server = self.serverapp
        connections, kernels = server.kernel_websocket_connection_class, server.kernel_manager
        obstacle = ""
        if not self.pending_starts:
            obstacle = "c.RoostExtension.pending_starts is False"
        elif connections is not ZMQChannelsWebsocketConnection:
            obstacle = f"{connections.__module__}.{connections.__name__} serves the websockets"
        elif not isinstance(kernels, AsyncMappingKernelManager):
            obstacle = f"{type(kernels).__module__}.{type(kernels).__name__} manages the kernels"
        elif getattr(kernels, "use_pending_kernels", False):
            obstacle = "use_pending_kernels is set"
        if obstacle:
            self.off.append(f"Starts block until their kernel is there, because {obstacle}.")
            return
        kernels.__class__ = add_pending_starts(type(kernels))
        kernels.begin(self.queue_timeout_s)
        server.kernel_websocket_connection_class = RoostConnection
        server.web_app.settings["kernel_websocket_connection_class"] = RoostConnection

    def _add_pages(self) -> None:
        """Add the page `/roost`, and what JupyterLab asks about kernels."""
        from .cluster_page import add_cluster_page
        from .kernel_status import add_kernel_status

        add_cluster_page(self.serverapp.web_app)
        add_kernel_status(self.serverapp.web_app)

    def _has_gateway_client(self) -> bool:
        return bool(self.serverapp.gateway_config.gateway_enabled)
