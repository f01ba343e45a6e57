"""The stops of the tour: each is a kernelspec, its request, and the notebook that runs on its kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TourStop:
    """A stop of the tour: a kernelspec, its request, and the notebook that runs on its kernel."""

    name: str
    title: str
    notebook: str
    asks: Mapping[str, Any] = field(default_factory=dict)


ANYWHERE = TourStop(name="roost-python", title="Python on roost", notebook="where.ipynb")
NOT_FORKED = TourStop(
    name="roost-exec", title="Python, not forked", notebook="output.ipynb", asks={"fork": False}
)
STOPS: Mapping[str, tuple[TourStop, ...]] = {
    "local": (
        ANYWHERE,
        TourStop(
            name="roost-sized",
            title="Python, 1 CPU and 512 MiB",
            notebook="numerics.ipynb",
            asks={"cpus": 1, "memory": "512MiB"},
        ),
        TourStop(
            name="roost-half-gpu", title="Python, half a GPU", notebook="gpu_share.ipynb", asks={"gpus": 0.5}
        ),
        NOT_FORKED,
    ),
    "ray": (
        ANYWHERE,
        TourStop(
            name="roost-half-t4",
            title="Python, half a T4",
            notebook="gpu_share.ipynb",
            asks={"gpus": 0.5, "gpu_models": ["T4"]},
        ),
        TourStop(
            name="roost-a100",
            title="Python with Ray, an A100 and 2 CPUs",
            notebook="ray_task.ipynb",
            asks={"cpus": 2, "gpus": 1, "gpu_models": ["A100"]},
        ),
        TourStop(
            name="roost-zone-b",
            title="Python, 1 CPU and 512 MiB in zone b",
            notebook="numerics.ipynb",
            asks={"cpus": 1, "memory": "512MiB", "labels": {"zone": "b"}},
        ),
        NOT_FORKED,
    ),
    "dask": (
        ANYWHERE,
        TourStop(
            name="roost-half-t4",
            title="Python, half a T4",
            notebook="gpu_share.ipynb",
            asks={"gpus": 0.5, "resources": {"T4": 0.5}},
        ),
        TourStop(
            name="roost-a100",
            title="Python with Dask, an A100 and 2 CPUs",
            notebook="dask_map.ipynb",
            asks={"cpus": 2, "gpus": 1, "resources": {"A100": 1}},
        ),
        TourStop(
            name="roost-licence",
            title="Python, 1 CPU, 512 MiB and a licence",
            notebook="numerics.ipynb",
            asks={"cpus": 1, "memory": "512MiB", "resources": {"licence": 1}},
        ),
        NOT_FORKED,
    ),
    "docker": (
        ANYWHERE,
        TourStop(
            name="roost-t4",
            title="Python, a T4 and 512 MiB",
            notebook="engine.ipynb",
            asks={"gpus": 1, "gpu_models": ["T4"], "memory": "512MiB"},
        ),
        TourStop(
            name="roost-sized",
            title="Python, 1 CPU and 512 MiB",
            notebook="engine.ipynb",
            asks={"cpus": 1, "memory": "512MiB"},
        ),
        NOT_FORKED,
    ),
    "kubernetes": (
        ANYWHERE,
        TourStop(
            name="roost-t4",
            title="Python, a T4",
            notebook="pod.ipynb",
            asks={"gpus": 1, "gpu_models": ["Tesla-T4"]},
        ),
        TourStop(
            name="roost-a100",
            title="Python, an A100 and 1 CPU",
            notebook="pod.ipynb",
            asks={"cpus": 1, "gpus": 1, "gpu_models": ["A100"]},
        ),
        TourStop(
            name="roost-zone-b",
            title="Python, 1 CPU and 512 MiB in zone b",
            notebook="pod.ipynb",
            asks={"cpus": 1, "memory": "512MiB", "labels": {"zone": "b"}},
        ),
        NOT_FORKED,
    ),
    "yarn": (
        ANYWHERE,
        TourStop(
            name="roost-t4",
            title="Python, a T4",
            notebook="container.ipynb",
            asks={"gpus": 1, "gpu_models": ["T4"]},
        ),
        TourStop(
            name="roost-a100",
            title="Python, two A100 and 1 CPU, in the queue batch",
            notebook="container.ipynb",
            asks={"cpus": 1, "gpus": 2, "gpu_models": ["A100"], "options": {"queue": "batch"}},
        ),
        TourStop(
            name="roost-zone-b",
            title="Python, 1 CPU and 512 MiB in zone b",
            notebook="container.ipynb",
            asks={"cpus": 1, "memory": "512MiB", "labels": {"zone": "b"}},
        ),
        NOT_FORKED,
    ),
    "ssh": (
        ANYWHERE,
        TourStop(
            name="roost-half-t4",
            title="Python, half a T4",
            notebook="gpu_share.ipynb",
            asks={"gpus": 0.5, "gpu_models": ["T4"]},
        ),
        TourStop(
            name="roost-a100",
            title="Python, an A100 and 1 CPU",
            notebook="gpu_share.ipynb",
            asks={"cpus": 1, "gpus": 1, "gpu_models": ["A100"]},
        ),
        TourStop(
            name="roost-rack-3",
            title="Python, 1 CPU and 512 MiB in rack 3",
            notebook="numerics.ipynb",
            asks={"cpus": 1, "memory": "512MiB", "labels": {"rack": "3"}},
        ),
        NOT_FORKED,
    ),
}
HALF_A_GPU = TourStop(name="roost-half-gpu", title="Half a GPU", notebook="", asks={"gpus": 0.5})
TOO_BIG = TourStop(
    name="roost-too-big",
    title="A request that no node can ever run: 64 TiB of memory",
    notebook="",
    asks={"memory": "64TiB"},
)
REFUSED: Mapping[str, tuple[TourStop, ...]] = {
    **dict.fromkeys(STOPS, (TOO_BIG,)),
    "docker": (
        TOO_BIG,
        HALF_A_GPU,
        TourStop(
            name="roost-image",
            title="An image that the engine does not have",
            notebook="",
            asks={"options": {"image": "no-such-image:1"}},
        ),
    ),
    "kubernetes": (
        TOO_BIG,
        HALF_A_GPU,
        TourStop(
            name="roost-quota",
            title="3.5 CPUs, which a node has, but the namespace's quota of 3 has not",
            notebook="",
            asks={"cpus": 3.5},
        ),
        TourStop(
            name="roost-image",
            title="An image whose name is wrong",
            notebook="",
            asks={"options": {"image": "No Such Image"}},
        ),
    ),
    "yarn": (
        TOO_BIG,
        HALF_A_GPU,
        TourStop(
            name="roost-queue",
            title="A queue that does not exist",
            notebook="",
            asks={"options": {"queue": "night"}},
        ),
    ),
}
"""The requests that roost refuses, by backend. Each refusal is a sentence."""
