"""One Ray cluster for the whole run, started by the first test that asks for it.

Its nodes are shared: a test leaves them as it found them. One that kills something has a `Raylets` of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from leftovers import VARIABLE, end
from raylets import Machine, Raylets, why_not

MACHINES = (
    Machine(cpus=4, gpus=2, gpu_model="T4"),
    Machine(cpus=2, gpus=4, gpu_model="A100"),
    Machine(cpus=2, labels={"zone": "b"}, resources={"licence": 2}),
)


@pytest.fixture(scope="session")
def ray_cluster(private_environment: None) -> Iterator[Raylets]:
    """Three nodes, 2 GiB each, the head first: 4 CPUs and 2 T4; 2 CPUs and 4 A100; 2 CPUs, 2 of
    the resource licence, and the label zone=b.

    What is started on them has the ROOST_RUNTIME_DIR in `environment`, which is no test's own.
    """
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as folder:
        with Raylets(*MACHINES, environment={VARIABLE: folder}) as cluster:
            yield cluster
        left = end(folder)
    assert not left, "processes that escaped the cluster's end:\n" + "\n".join(left)
    assert not Path(cluster.folder).exists()
