"""A Ray or Dask cluster of three nodes on this machine, for `on_ray.py` and `on_dask.py`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from roost.bench.world import RUNTIME, end_processes
from roost.scheduler.backends.registry import get_spec
from roost.testing.clusters import dask_machines, raylets


def _start_ray(environment: Mapping[str, str]) -> AbstractContextManager[Any]:
    machines = (
        raylets.Machine(cpus=4, gpus=2, gpu_model="T4"),
        raylets.Machine(cpus=4, gpus=4, gpu_model="A100"),
        raylets.Machine(cpus=2, labels={"zone": "b"}),
    )
    return raylets.Raylets(*machines, environment=environment)


def _start_dask(environment: Mapping[str, str]) -> AbstractContextManager[Any]:
    machines = (
        dask_machines.Machine(cpus=4, gpus=2, environment=environment),
        dask_machines.Machine(cpus=4, gpus=4, environment=environment),
        dask_machines.Machine(cpus=2, environment=environment),
    )
    return dask_machines.DaskMachines(*machines)


_CLUSTERS: Mapping[str, Callable[[Mapping[str, str]], AbstractContextManager[Any]]] = {
    "ray": _start_ray,
    "dask": _start_dask,
}
_WHY_NOT: Mapping[str, Callable[[], str | None]] = {"ray": raylets.why_not, "dask": dask_machines.why_not}
_DRIVERS: Mapping[str, Mapping[str, str]] = {"ray": raylets.WITHOUT_TOKEN}
"""The environment that the clients of a cluster need, beside its address."""


def why_not(backend: str) -> str | None:
    """Return why no cluster of this kind can start here, or None if one can."""
    return _WHY_NOT[backend]()


@contextmanager
def embedded(backend: str, folder: Path) -> Iterator[None]:
    """Start a cluster, to which roost connects by default until the end.

    At the end, roost's processes with the runtime folder `r` in `folder` are ended.
    """
    with _CLUSTERS[backend]({RUNTIME: str(folder / "n")}) as started:
        wanted = {get_spec(backend).address_variable: started.address, **_DRIVERS.get(backend, {})}
        before = {variable: os.environ.get(variable) for variable in wanted}
        os.environ.update(wanted)
        try:
            yield
        finally:
            for variable, value in before.items():
                if value is None:
                    del os.environ[variable]
                else:
                    os.environ[variable] = value
            end_processes(str(folder / "r"))
