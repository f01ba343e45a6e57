"""Packs a policy object in a program, and unpacks it in the scheduler service. Cheap to import."""

from __future__ import annotations

import base64
import sys
import sysconfig
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from roost.scheduler.errors import ConfigError

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""The minor version of Python here. Functions are sent as bytecode, which only the same version can run."""
_MAX_BYTES = 4 << 20
_packing = threading.Lock()
"""A lock for `pack_policy`: cloudpickle has one list per process of the modules that are sent by value."""


def pack_policy(name: str, policy: object) -> str:
    """Return the policy as text, with the code that the service cannot import; raises `ConfigError`."""
    import cloudpickle

    with _packing:
        modules: list[ModuleType] = []
        try:
            for module in _modules(policy):
                if module.__name__ not in cloudpickle.list_registry_pickle_by_value():
                    cloudpickle.register_pickle_by_value(module)
                    modules.append(module)
            content = cloudpickle.dumps(policy)
        except Exception as problem:
            raise ConfigError(
                f"policy {name} cannot be sent to the scheduler service ({type(problem).__name__}: {problem}): "
                "keep open files, locks and connections out of it."
            ) from problem
        finally:
            for module in modules:
                cloudpickle.unregister_pickle_by_value(module)
    if len(content) > _MAX_BYTES:
        raise ConfigError(
            f"policy {name} has {len(content)} bytes, but at most {_MAX_BYTES} can be sent: leave its data out."
        )
    return base64.b64encode(content).decode()


def unpack_policy(text: str) -> Any:
    """Return the policy that `pack_policy` has packed. This runs the sender's code."""
    import cloudpickle

    return cloudpickle.loads(base64.b64decode(text))


def _modules(policy: object) -> list[ModuleType]:
    """Return the modules of the policy and its parts, except installed ones and the standard library."""
    scorers = [pair[0] for pair in getattr(policy, "scorers", ()) if isinstance(pair, tuple) and pair]
    parts = [policy, *scorers, *getattr(policy, "filters", ()), getattr(policy, "ties", None)]
    names = {str(getattr(part, "__module__", "")) for part in parts} - {"__main__"}
    return [sys.modules[name] for name in sorted(names) if name in sys.modules and _is_own(sys.modules[name])]


def _is_own(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if not file or module.__name__.partition(".")[0] == "roost":
        return False
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return not any(Path(file).is_relative_to(place) for place in places)
