"""Nodes and pods as the API of a busy cluster shows them."""

from __future__ import annotations

from typing import Any

_MANAGED = {
    "manager": "kubelet",
    "operation": "Update",
    "apiVersion": "v1",
    "time": "2026-11-20T00:00:00Z",
    "fieldsType": "FieldsV1",
    "fieldsV1": {f"f:field{number}": {"f:a": {}, "f:b": {}, "f:c": {}} for number in range(30)},
}


def describe_node(name: str) -> dict[str, Any]:
    """Return a node with 32 CPUs, 128 GiB and 4 GPUs."""
    amounts = {
        "cpu": "32",
        "memory": "128Gi",
        "pods": "110",
        "ephemeral-storage": "100Gi",
        "nvidia.com/gpu": "4",
    }
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/arch": "amd64",
        "topology.kubernetes.io/zone": f"zone-{hash(name) % 3}",
        "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB",
        "nvidia.com/gpu.memory": "40960",
    }
    images = [
        {"names": [f"registry.example.org/team/image-{n}@sha256:{n:064}"], "sizeBytes": n} for n in range(40)
    ]
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": labels, "managedFields": [_MANAGED]},
        "spec": {"podCIDR": "10.0.0.0/24"},
        "status": {
            "allocatable": amounts,
            "capacity": amounts,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
            "images": images,
        },
    }


def describe_pod(name: str, node: str, cpus: str, *, version: int = 1) -> dict[str, Any]:
    """Return a running pod of another user."""
    container = {
        "name": "main",
        "image": "registry.example.org/team/image:1",
        "env": [{"name": f"SETTING_{number}", "value": "x" * 40} for number in range(15)],
        "resources": {"requests": {"cpu": cpus, "memory": "256Mi"}, "limits": {"memory": "256Mi"}},
        "volumeMounts": [{"name": f"volume-{number}", "mountPath": f"/data/{number}"} for number in range(4)],
    }
    return {
        "metadata": {
            "name": name,
            "namespace": "others",
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
            "labels": {"app": "web", "pod-template-hash": "abcdef0123"},
            "managedFields": [_MANAGED],
        },
        "spec": {
            "nodeName": node,
            "containers": [container],
            "volumes": [{"name": f"volume-{number}", "emptyDir": {}} for number in range(4)],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}] * 2,
        },
        "status": {
            "phase": "Running",
            "podIP": "10.1.2.3",
            "conditions": [
                {"type": kind, "status": "True"} for kind in ("Ready", "PodScheduled", "Initialized")
            ],
            "containerStatuses": [
                {"name": "main", "ready": True, "state": {"running": {}}, "imageID": "x" * 90}
            ],
        },
    }
