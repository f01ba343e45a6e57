"""A Kubernetes cluster for the whole run, started by the first test that asks for it.

All tests share its nodes and leave them as they found them. A test that kills something starts its own `Kubelets`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kubelets import MACHINES, Kubelets, leftovers, why_not


@pytest.fixture(scope="session")
def kubernetes_cluster(private_environment: None) -> Iterator[Kubelets]:
    """Start three nodes of 8 GiB: n1 with 4 CPUs and 2 T4, n2 with 2 CPUs and 2 A100, n3 with 2 CPUs and zone=b."""
    if reason := why_not():
        pytest.skip(reason)
    with Kubelets(*MACHINES) as cluster:
        yield cluster
    left = leftovers(cluster.folder)
    assert not left, "the cluster has left behind:\n" + "\n".join(left)
