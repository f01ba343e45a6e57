"""Kernels on the nodes of a Ray cluster."""

from __future__ import annotations

from roost.scheduler.backends.spec import BackendSpec, RequestOption

SPEC = BackendSpec(
    name="ray",
    settings="roost.scheduler.backends.ray.settings:RoostRayBackend",
    create="roost.scheduler.backends.ray.manager:create",
    address_variable="RAY_ADDRESS",
    packages=("ray",),
    request_options=(
        RequestOption(
            name="namespace",
            kind=str,
            help="RAY_NAMESPACE in the kernel: the Ray namespace that the notebook joins",
            variable="KERNEL_RAY_NAMESPACE",
        ),
    ),
)
