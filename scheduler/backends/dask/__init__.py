"""Kernels on the workers' machines of a Dask cluster."""

from __future__ import annotations

from roost.scheduler.backends.spec import BackendSpec

SPEC = BackendSpec(
    name="dask",
    settings="roost.scheduler.backends.dask.settings:RoostDaskBackend",
    create="roost.scheduler.backends.dask.manager:create",
    address_variable="DASK_SCHEDULER_ADDRESS",
    packages=("distributed",),
)
