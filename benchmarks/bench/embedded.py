"""`--embedded`: a cluster of three nodes on this machine, for those who have none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from roost.scheduler.backends.registry import get_spec
from roost.scheduler.errors import ConfigError

from .world import RUNTIME, end_processes


def _start_ray(environment: Mapping[str, str]) -> AbstractContextManager[Any]:
    from .clusters.raylets import Machine, Raylets, why_not

    _check(why_not())
    machines = (
        Machine(cpus=4, gpus=2, gpu_model="T4"),
        Machine(cpus=4, gpus=4, gpu_model="A100"),
        Machine(cpus=2, labels={"zone": "b"}),
    )
    return Raylets(*machines, environment=environment)


def _start_dask(environment: Mapping[str, str]) -> AbstractContextManager[Any]:
    from .clusters.dask_machines import DaskMachines, Machine, why_not

    _check(why_not())
    machines = (
        Machine(cpus=4, gpus=2, environment=environment),
        Machine(cpus=4, gpus=4, environment=environment),
        Machine(cpus=2, environment=environment),
    )
    return DaskMachines(*machines)


_CLUSTERS: Mapping[str, Callable[[Mapping[str, str]], AbstractContextManager[Any]]] = {
    "ray": _start_ray,
    "dask": _start_dask,
}


@contextmanager
def embedded(backend: str, folder: Path) -> Iterator[None]:
    """Start a cluster of this kind, which counts as the configured one until the end; raises `ConfigError`."""
    if backend not in _CLUSTERS:
        known = " and ".join(_CLUSTERS)
        raise ConfigError(
            f"--embedded knows {known}, not {backend}: leave it out, or name another --backend."
        )
    variable = get_spec(backend).address_variable
    with _CLUSTERS[backend]({RUNTIME: str(folder / "n")}) as started:
        before = os.environ.get(variable)
        os.environ[variable] = started.address
        try:
            yield
        finally:
            if before is None:
                del os.environ[variable]
            else:
                os.environ[variable] = before
            end_processes(str(folder / "r"))


def _check(reason: str | None) -> None:
    if reason:
        raise ConfigError(f"There can be no embedded cluster here: {reason}.")
