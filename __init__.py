"""roost puts each Jupyter kernel on the best machine of a cluster, starts it fast and does not lose it.

The public names are imported on first use (PEP 562), so that `import roost` is fast:

    client = roost.connect("local")
    print(client.nodes().result())
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
"""Type checkers take this name as True, like `typing.TYPE_CHECKING`. The import of `typing` would be slow."""

if TYPE_CHECKING:
    from roost.provisioners.kernel_object import start_kernel as start_kernel
    from roost.scheduler.client.client import connect as connect
    from roost.scheduler.errors import BackendUnavailable as BackendUnavailable
    from roost.scheduler.errors import ConfigError as ConfigError
    from roost.scheduler.errors import ExecutionError as ExecutionError
    from roost.scheduler.errors import HeldElsewhere as HeldElsewhere
    from roost.scheduler.errors import KernelDied as KernelDied
    from roost.scheduler.errors import LaunchError as LaunchError
    from roost.scheduler.errors import LaunchTimeout as LaunchTimeout
    from roost.scheduler.errors import LeaseConflict as LeaseConflict
    from roost.scheduler.errors import LimitExceeded as LimitExceeded
    from roost.scheduler.errors import NoNodeEver as NoNodeEver
    from roost.scheduler.errors import NoNodeNow as NoNodeNow
    from roost.scheduler.errors import PlacementError as PlacementError
    from roost.scheduler.errors import RoostError as RoostError

    from .placement import Decision as Decision
    from .placement import Node as Node
    from .placement import Placement as Placement
    from .placement import Policy as Policy
    from .placement import Request as Request
    from .placement import Snapshot as Snapshot

__version__ = "0.1.0"

_HOMES = {
    "roost.placement": ("Decision", "Node", "Placement", "Policy", "Request", "Snapshot"),
    "roost.provisioners.kernel_object": ("start_kernel",),
    "roost.scheduler.client.client": ("connect",),
    "roost.scheduler.errors": (
        "BackendUnavailable",
        "ConfigError",
        "ExecutionError",
        "HeldElsewhere",
        "KernelDied",
        "LaunchError",
        "LaunchTimeout",
        "LeaseConflict",
        "LimitExceeded",
        "NoNodeEver",
        "NoNodeNow",
        "PlacementError",
        "RoostError",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> object:
    """Import the object of a public name, keep it here and return it. Raise `AttributeError` for another name."""
    if name not in _HOME:
        raise AttributeError(f"module 'roost' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """Return where Jupyter Server finds roost's extension."""
    return [{"module": "roost.provisioners.server_extension", "name": "roost"}]
