"""The entry point of the Dask backend."""

from __future__ import annotations

from roost.scheduler.backends.agent_per_node.backend import build_backend
from roost.scheduler.backends.base import Backend, BackendContext

from . import SPEC
from .manager import DaskManager
from .settings import RoostDaskBackend


def create(settings: RoostDaskBackend, context: BackendContext) -> Backend:
    """Return the backend."""
    return build_backend(SPEC.name, DaskManager(settings), settings, context)
