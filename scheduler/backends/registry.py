"""The installed backends: the entry points of the group `roost.backends`. Cheap to import, like `spec`.

Their values are `BackendSpec`s (`roost.scheduler.backends.ray:SPEC`). Each process reads them once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import Distribution, distributions
from typing import Any

from roost.scheduler.errors import ConfigError

from .spec import BackendSpec

GROUP = "roost.backends"


def backend_names() -> tuple[str, ...]:
    """Return the names of all installed backends, sorted."""
    return tuple(sorted(_find_references()))


@cache
def get_spec(name: str) -> BackendSpec:
    """Return the spec of a backend.

    Raises `ConfigError` unless exactly one installed package provides a `BackendSpec` of that name.
    """
    found = _find_references()
    if name not in found:
        if not found:
            raise ConfigError(
                "roost's installation registers no backends: install roost again (in a checkout: "
                "`pip install --no-deps --editable .`)."
            )
        raise ConfigError(f"there is no backend {name!r:.40}; known are {', '.join(backend_names())}.")
    points = found[name]
    if len(points) > 1:
        packages = sorted({package.metadata["Name"] for package in points.values()})
        raise ConfigError(f"{' and '.join(packages)} provide several backends {name!r}: keep only one.")
    ((reference, package),) = points.items()
    spec = load_object(reference, f"the backend {name!r}")
    if not isinstance(spec, BackendSpec) or spec.name != name:
        raise ConfigError(
            f"the package {package.metadata['Name']} names {reference} as its backend {name!r}, which is no "
            "BackendSpec of that name."
        )
    return spec


def load_object(reference: str, what: str) -> Any:
    """Import and return `module:attribute`. If that fails, raise a `ConfigError` that begins with `what`."""
    module, _, attribute = reference.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except Exception as problem:
        raise ConfigError(
            f"{what} cannot be loaded from {reference}: {type(problem).__name__}: {problem}"
        ) from problem


@cache
def _find_references() -> Mapping[str, Mapping[str, Distribution]]:
    """Return the packages that provide each backend: by the backend's name, then by `module:attribute` of the spec.

    Takes 4 ms for 130 packages.
    """
    found: dict[str, dict[str, Distribution]] = {}
    for package in distributions():
        # `importlib.metadata.entry_points` parses the file of every package, which takes twice as long.
        if f"[{GROUP}]" in (package.read_text("entry_points.txt") or ""):
            for point in package.entry_points:
                if point.group == GROUP:
                    found.setdefault(point.name, {}).setdefault(point.value, package)
    return found
