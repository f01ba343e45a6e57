"""A Kubernetes cluster for the whole run, started by the first test that asks for it.

All tests share its nodes and leave them as they found them. A test that kills something starts its own `Kubelets`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kubelets import Kubelets, Machine, leftovers, why_not

MACHINES = (
    Machine(gpus=2, gpu_model="Tesla-T4", gpu_memory_mib=15360),
    Machine(gpus=2, gpu_model="NVIDIA-A100-SXM4-40GB", gpu_memory_mib=40960),
    Machine(labels={"zone": "b"}),
)


@pytest.fixture(scope="session")
def kubernetes_cluster(private_environment: None) -> Iterator[Kubelets]:
    """Start three nodes, each with the CPUs and the memory of this machine: n1 with 2 T4, n2 with 2 A100, and n3 with
    the label zone=b. No GPU is real.
    """
    if reason := why_not():
        pytest.skip(reason)
    with Kubelets(*MACHINES) as cluster:
        yield cluster
    left = leftovers(cluster.folder)
    assert not left, "the cluster has left behind:\n" + "\n".join(left)
