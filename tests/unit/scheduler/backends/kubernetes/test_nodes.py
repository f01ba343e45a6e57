"""The API's nodes and pods, as placement sees them."""

from __future__ import annotations

from typing import Any

import pytest

from roost.scheduler.backends.kubernetes.nodes import NodeBook, PodUse, read_node, read_use, sum_requests
from roost.scheduler.backends.kubernetes.quantity import format_cpus, parse_quantity

GPU = "nvidia.com/gpu"


def node(**more: Any) -> dict[str, Any]:
    ready = more.pop("ready", "True")
    return {
        "metadata": {"name": "n1", "labels": more.pop("labels", {})},
        "spec": more,
        "status": {
            "allocatable": {"cpu": "3920m", "memory": "8Gi", GPU: "2"},
            "addresses": [
                {"type": "Hostname", "address": "n1"},
                {"type": "InternalIP", "address": "10.0.0.1"},
            ],
            "conditions": [{"type": "Ready", "status": ready, "reason": "KubeletNotReady"}],
        },
    }


def test_a_node_has_its_allocatable_amounts_and_its_gpus_model() -> None:
    labels = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB", "nvidia.com/gpu.memory": "40960"}
    found = read_node(node(labels=labels), GPU)
    assert (found.id, found.address, found.cpus, found.memory_bytes) == ("n1", "10.0.0.1", 3.92, 8 << 30)
    assert [(d.id, d.model, d.memory_bytes) for d in found.devices] == [
        ("0", "NVIDIA-A100-SXM4-40GB", 40 << 30),
        ("1", "NVIDIA-A100-SXM4-40GB", 40 << 30),
    ]
    assert not found.is_draining
    assert read_node(node(labels={"cloud.google.com/gke-accelerator": "t4"}), GPU).devices[0].model == "t4"
    assert read_node(node(), "amd.com/gpu").devices == ()


def test_a_cordoned_node_drains_and_a_node_that_is_not_ready_says_why() -> None:
    cordon = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    cordoned = read_node(node(unschedulable=True, taints=[cordon]), GPU)
    assert (cordoned.is_draining, cordoned.drains_because, cordoned.taints) == (True, "", ())
    assert read_node(node(ready="False"), GPU).drains_because == "is not ready (KubeletNotReady)"
    assert read_node(node(ready="Unknown"), GPU).drains_because == "does not answer Kubernetes"


def test_taints_that_keep_pods_away_are_named() -> None:
    taints = [
        {"key": "team", "value": "vision", "effect": "NoSchedule"},
        {"key": GPU, "effect": "NoExecute"},
        {"key": "soft", "effect": "PreferNoSchedule"},
    ]
    assert read_node(node(taints=taints), GPU).taints == ("team=vision", GPU)


def test_a_pod_takes_what_its_containers_request() -> None:
    def container(cpu: str, **more: Any) -> dict[str, Any]:
        return {"resources": {"requests": {"cpu": cpu}}, **more}

    spec = {
        "nodeName": "n1",
        "containers": [container("500m"), container("1")],
        "initContainers": [container("250m", restartPolicy="Always"), container("2")],
        "overhead": {"cpu": "100m"},
    }
    assert sum_requests(spec, "cpu") == pytest.approx(2.35)  # the init container beside the sidecar
    assert sum_requests(spec, "memory") == 0
    pod = {"spec": spec, "status": {"phase": "Running"}}
    assert read_use(pod, GPU, False) == PodUse(
        node_id="n1", cpus=pytest.approx(2.35), memory_bytes=0, gpus=0, is_ours=False
    )
    assert read_use({**pod, "status": {"phase": "Succeeded"}}, GPU, False) is None
    assert read_use({"spec": {"containers": []}}, GPU, False) is None


def test_promises_are_summed_by_node_and_taken_back_exactly() -> None:
    book, bare = NodeBook(), read_node(node(), GPU)
    use = PodUse(node_id="n1", cpus=0.1, memory_bytes=1 << 30, gpus=1, is_ours=False)
    book.add(use)  # a pod may be known before its node
    book.add(PodUse(node_id="n2", cpus=9, memory_bytes=0, gpus=0, is_ours=False))
    book.set_node(None, bare)
    book.add(use)
    book.add(use)
    (found,) = book.nodes()
    assert (found.cpus_promised, found.memory_promised_bytes, found.gpus_promised) == (0.3, 3 << 30, 3)
    assert book.nodes()[0] is found, "nothing differs"
    for _ in range(3):
        book.add(use, -1)
    assert book.nodes() == [bare]
    book.set_node(bare, None)
    assert book.nodes() == []


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("1", 1),
        ("100m", 0.1),
        ("24682416Ki", 24682416 * 1024),
        ("2Gi", 2 << 30),
        ("1e3", 1000),
        ("12E", 12e18),
    ],
)
def test_quantities(text: str, amount: float) -> None:
    assert parse_quantity(text) == pytest.approx(amount)


def test_a_quantity_is_never_less_than_the_amount() -> None:
    assert [format_cpus(cpus) for cpus in (0.1, 0.0004, 2, 1.1)] == ["100m", "1m", "2000m", "1100m"]
    with pytest.raises(ValueError, match="a lot"):
        parse_quantity("a lot")
