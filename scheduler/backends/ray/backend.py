"""The entry point of the Ray backend."""

from __future__ import annotations

from roost.scheduler.backends.agent_per_node.backend import build_backend
from roost.scheduler.backends.base import Backend, BackendContext

from . import SPEC
from .manager import RayManager
from .settings import RoostRayBackend


def create(settings: RoostRayBackend, context: BackendContext) -> Backend:
    """Return the backend."""
    return build_backend(SPEC.name, RayManager(settings), settings, context)
