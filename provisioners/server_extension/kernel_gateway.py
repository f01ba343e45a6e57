"""The kernel manager for Jupyter Kernel Gateway, which loads no server extensions:

c.KernelGatewayApp.kernel_manager_class = "roost.provisioners.server_extension.kernel_gateway.PendingKernels"
c.KernelGatewayApp.kernel_websocket_connection_class = "roost.provisioners.server_extension.connection.RoostConnection"
"""

from __future__ import annotations

from kernel_gateway.services.kernels.manager import SeedingMappingKernelManager

from .pending_starts import add_pending_starts

PendingKernels = add_pending_starts(SeedingMappingKernelManager)
