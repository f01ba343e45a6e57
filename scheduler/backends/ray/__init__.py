"""Kernels on the nodes of a Ray cluster."""

from __future__ import annotations

from roost.scheduler.backends.spec import BackendSpec

SPEC = BackendSpec(
    name="ray",
    settings="roost.scheduler.backends.ray.settings:RoostRayBackend",
    create="roost.scheduler.backends.ray.backend:create",
    address_variable="RAY_ADDRESS",
)
