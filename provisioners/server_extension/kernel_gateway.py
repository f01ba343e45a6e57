"""The kernel manager for Jupyter Kernel Gateway, which loads no server extensions:

c.KernelGatewayApp.kernel_manager_class = "roost.provisioners.server_extension.kernel_gateway.PendingKernels"
c.KernelGatewayApp.kernel_websocket_connection_class = "roost.provisioners.server_extension.connection.RoostConnection"
"""

from __future__ import annotations

from typing import Any

from kernel_gateway.services.kernels.manager import SeedingMappingKernelManager

from .extension import RoostExtension
from .pending_starts import PendingStarts


class PendingKernels(PendingStarts, SeedingMappingKernelManager):  # type: ignore[misc]
    """The gateway's kernel manager, with starts that do not block."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.begin(RoostExtension(parent=self.parent), may_wait=True)
