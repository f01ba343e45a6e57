"""A Ray cluster for the whole run, started by the first test that asks for it.

All tests share its nodes and leave them as they found them. A test that kills something starts its own `Raylets`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.testing.clusters.raylets import Machine, Raylets, why_not
from roost.testing.leftovers import VARIABLE, end

MACHINES = (
    Machine(cpus=4, gpus=2, gpu_model="T4"),
    Machine(cpus=2, gpus=4, gpu_model="A100"),
    Machine(cpus=2, labels={"zone": "b"}, resources={"licence": 2}),
)


@pytest.fixture(scope="session")
def ray_cluster(private_environment: None) -> Iterator[Raylets]:
    """Start three nodes of 2 GiB, the head first: 4 CPUs and 2 T4; 2 CPUs and 4 A100; 2 CPUs, 2 of the resource
    `licence`, and the label zone=b.

    Agents and kernels on them have the ROOST_RUNTIME_DIR of `environment`, which belongs to no test.
    """
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as folder:
        with Raylets(*MACHINES, environment={VARIABLE: folder}) as cluster:
            yield cluster
        left = end(folder)
    assert not left, "processes outlived the cluster:\n" + "\n".join(left)
    assert not Path(cluster.folder).exists()
