"""The jupyter_client face of roost: `RoostProvisioner`, and the tools for kernelspecs that use it."""

from __future__ import annotations

from .provisioner import RoostProvisioner as RoostProvisioner

__all__ = ["RoostProvisioner"]
