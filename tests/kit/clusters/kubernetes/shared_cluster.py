"""A Kubernetes cluster for the whole run, started by the first test that asks for it.

All tests share its nodes and leave them as they found them. A test that kills something starts its own `Kubelets`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.clusters.kubelets import MACHINES, Kubelets, leftovers, why_not

NAMESPACE = "lab"
"""The namespace of the tests' kernels. It has Pod Security `restricted`, a ResourceQuota, a LimitRange."""
_OBJECTS = (
    (
        "/api/v1/namespaces",
        {"metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}},
    ),
    (
        f"/api/v1/namespaces/{NAMESPACE}/resourcequotas",
        {"metadata": {"name": "team"}, "spec": {"hard": {"requests.cpu": "40", "pods": "100"}}},
    ),
    (
        f"/api/v1/namespaces/{NAMESPACE}/limitranges",
        {
            "metadata": {"name": "defaults"},
            "spec": {"limits": [{"type": "Container", "defaultRequest": {"cpu": "1m", "memory": "64Mi"}}]},
        },
    ),
)


def create_namespace(cluster: Kubelets) -> None:
    """Create the namespace of the tests' kernels."""
    for path, content in _OBJECTS:
        cluster.api.call("POST", path, content)


HOME = "/home/roost"
"""The home folder of kernels in pods."""


def cluster_settings(cluster: Kubelets, folder: Path) -> dict[str, Any]:
    """Return the settings of a backend on this cluster. The backend's files are in `folder`."""
    template = folder / "pod.yaml"
    template.write_text("spec: {securityContext: {runAsUser: 12345}}")
    return {
        "address": str(cluster.kubeconfig),
        "namespace": NAMESPACE,
        "image": "roost-test:1",
        "pod_template": str(template),
        "identity_file": str(folder / "identity.json"),
        "read_all_pods": True,
    }


@pytest.fixture(scope="session")
def kubernetes_cluster(private_environment: None) -> Iterator[Kubelets]:
    """Start three nodes of 8 GiB: n1 with 4 CPUs and 2 T4, n2 with 2 CPUs and 2 A100, n3 with 2 CPUs and zone=b."""
    if reason := why_not():
        pytest.skip(reason)
    with Kubelets(*MACHINES) as cluster:
        create_namespace(cluster)
        yield cluster
    left = leftovers(cluster.folder)
    assert not left, "the cluster has left behind:\n" + "\n".join(left)
