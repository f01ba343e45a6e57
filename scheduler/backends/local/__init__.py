"""Kernels on this machine."""

from __future__ import annotations

from roost.scheduler.backends.spec import DEFAULT_BACKEND, BackendSpec

SPEC = BackendSpec(
    name=DEFAULT_BACKEND,
    settings="roost.scheduler.backends.local.settings:RoostLocalBackend",
    create="roost.scheduler.backends.local.backend:create",
    runs_on_this_machine=True,
)
