"""The settings of the extension, and what it turns on in one Jupyter Server."""

from __future__ import annotations

from typing import Any

from traitlets import Bool
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

    def __init__(self, *, parent: Any) -> None:
        super().__init__(parent=parent)
        self.serverapp = parent
        self.off: list[str] = []

    def load(self) -> None:
        """Add roost's parts to the server, before the server listens. All extensions are linked by now."""
        if self._has_gateway_client():
            self.log.info("roost: this server's kernels run behind a gateway, so the extension does nothing.")
            return
        if self.off:
            self.log.info("roost: %s", " ".join(self.off))

    async def start(self) -> None:
        """Begin the work that needs the server's event loop. The server listens by now."""
        if self._has_gateway_client():
            return
        if self.warm_up:
            start_warm_up(self.serverapp.kernel_manager, self.log)

    def _has_gateway_client(self) -> bool:
        return bool(self.serverapp.gateway_config.gateway_enabled)
