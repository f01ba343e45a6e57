"""Requests, devices and nodes: the values they accept, and the effect of a kernel on a node."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from roost.placement import Device, Node, Request

GIB = 2**30


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            {"gpus": 1.5},
            "gpus must be at most 1 (a share of one GPU) or a whole number; got 1.5. Ask for 1 or 2.",
        ),
        ({"gpus": -1}, "gpus must not be negative; got -1. Use 0 to ask for none."),
        ({"cpus": float("nan")}, "cpus must be a finite number; got nan."),
        ({"cpus": float("inf")}, "cpus must be a finite number; got inf."),
        ({"cpus": "2"}, "cpus must be a number; got '2'."),
        ({"cpus": True}, "cpus must be a number; got True."),
        ({"memory_bytes": 1.5}, "memory_bytes must be a whole number below 2**63; got 1.5."),
        ({"memory_bytes": 2**63}, f"memory_bytes must be a whole number below 2**63; got {2**63}."),
        ({"memory_bytes": -1}, "memory_bytes must not be negative; got -1. Use 0 to ask for none."),
        (
            {"gpu_models": ("A100",)},
            "gpu_models needs gpus: say how many GPUs of these models, for example gpus=1.",
        ),
        (
            {"gpu_memory_bytes": 1},
            "gpu_memory needs gpus: say how many GPUs with this memory, for example gpus=1.",
        ),
        (
            {"gpus": 1, "gpu_memory_bytes": -1},
            "gpu_memory_bytes must not be negative; got -1. Use 0 to ask for none.",
        ),
        ({"gpus": 1, "gpu_models": "A100"}, "gpu_models must be a list of names; got 'A100'."),
        ({"gpus": 1, "gpu_models": [""]}, "gpu_models must be a list of names, each of them text; got ['']."),
        ({"labels": "zone"}, "labels must map names to values, for example {'zone': 'a'}; got 'zone'."),
        ({"labels": {"zone": 1}}, "labels must map text to text; got {'zone': 1}."),
        ({"owner": 7}, "owner must be text; got 7."),
        ({"environment": None}, "environment must be text; got None."),
        (
            {"near": [("zone", "a")]},
            "near must map names to values, for example {'zone': 'a'}; got [('zone', 'a')].",
        ),
        ({"tolerates": "spot"}, "tolerates must be a list of names; got 'spot'."),
        ({"tolerates": {"spot": 1}}, "tolerates must be a list of names; got {'spot': 1}."),
        (
            {"resources": "licence"},
            "resources must map names to amounts, for example {'licence': 1}; got 'licence'.",
        ),
        ({"resources": {" ": 1}}, "resources must have names that are text; got {' ': 1}."),
        ({"resources": {7: 1}}, "resources must have names that are text; got {7: 1}."),
        ({"resources": {"licence": "1"}}, "resources licence must be a number; got '1'."),
        ({"resources": {"licence": 0}}, "resources licence must be above 0; leave it out to ask for none."),
        (
            {"resources": {"licence": -1}},
            "resources licence must not be negative; got -1. Use 0 to ask for none.",
        ),
        ({"resources": {"GPU": 1}}, "resources must not name GPU: ask for it with gpus."),
    ],
)
def test_bad_requests_are_refused_with_one_sentence(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^\S") as refused:
        Request(**asked)
    assert str(refused.value) == sentence


def test_request_converts_its_values_to_plain_types() -> None:
    request = Request(
        cpus=np.float64(2),
        memory_bytes=np.int64(GIB),
        gpus=np.float32(0.5),
        gpu_models=["A100"],  # type: ignore[arg-type]
    )
    assert (type(request.cpus), type(request.memory_bytes), type(request.gpus)) == (float, int, float)
    assert request.gpu_models == ("A100",)
    assert request == pickle.loads(pickle.dumps(request))
    assert hash(request) == hash(Request(cpus=2, memory_bytes=GIB, gpus=0.5, gpu_models=("A100",)))


def test_labels_and_resources_are_copied() -> None:
    labels = {"zone": "a"}
    resources = {"licence": 1}
    request, node = Request(labels=labels, resources=resources), Node(id="a", resources=resources)
    labels["zone"], resources["licence"] = "b", 2
    assert request.labels == {"zone": "a"}
    assert request.resources == node.resources == {"licence": 1.0}
    assert type(request.resources["licence"]) is float


@pytest.mark.parametrize(
    ("gpus", "count", "share"), [(0, 0, 0.0), (0.25, 1, 0.25), (1, 1, 1.0), (2, 2, 1.0), (8, 8, 1.0)]
)
def test_gpu_count_and_share(gpus: float, count: int, share: float) -> None:
    request = Request(gpus=gpus)
    assert (request.gpu_count, request.gpu_share) == (count, share)


def test_a_request_without_cpus_memory_and_gpus_is_best_effort() -> None:
    assert Request(owner="ada", labels={"zone": "a"}).is_best_effort
    assert Request(resources={"licence": 1}).is_best_effort
    assert not any(r.is_best_effort for r in (Request(cpus=0.1), Request(memory_bytes=1), Request(gpus=0.1)))


@pytest.mark.parametrize(
    ("asked", "model", "accepted"),
    [
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("a100-80gb", "NVIDIA A100-SXM4-80GB", True),
        ("A10", "NVIDIA A100-SXM4-80GB", False),
        ("A10", "NVIDIA A10", True),
        ("H100", "", False),
        ("?", "?", True),
        ("?", "A100", False),
    ],
)
def test_models_are_matched_by_words(asked: str, model: str, accepted: bool) -> None:
    assert Request(gpus=1, gpu_models=(asked,)).accepts_model(model) is accepted
    assert Request(gpus=1).accepts_model(model)


def test_describe_names_everything_requested() -> None:
    request = Request(cpus=4, memory_bytes=8 * GIB, gpus=2, gpu_models=("A100", "H100"), labels={"zone": "a"})
    assert request.describe() == "2 GPUs of model A100 or H100, 8 GiB memory, 4 CPUs, label zone=a"
    assert Request(cpus=1, resources={"tpu": 4, "licence": 1}).describe() == "1 CPU, 1 licence, 4 tpu"
    assert Request(gpus=2, gpu_memory_bytes=40 * GIB).describe() == "2 GPUs with 40 GiB each"
    assert Request(gpus=0.5, gpu_memory_bytes=40 * GIB).describe() == "0.5 GPU with 40 GiB"
    assert Request().describe() == "a kernel that asks for nothing"
    assert Request(cpus=0.5, memory_bytes=1536 * 2**20).describe() == "1.5 GiB memory, 0.5 CPU"


def test_request_and_node_survive_json() -> None:
    request = Request(
        cpus=1,
        gpus=1,
        gpu_models=("A100",),
        labels={"zone": "a"},
        near={"rack": "3"},
        tolerates=("spot",),
        resources={"licence": 0.5},
        environment="/opt/py",
        owner="ada",
    )
    assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request
    node = Node(
        id="a",
        devices=(Device(id="0", used=0.5),),
        labels={"zone": "a"},
        cpus=2,
        resources={"licence": 2},
        resources_promised={"licence": 1.5},
        taints=("spot",),
        warm=("/opt/py",),
        metrics_age_s=1.0,
    )
    assert Node.from_dict(json.loads(json.dumps(node.to_dict()))) == node


def test_unknown_keys_are_named() -> None:
    with pytest.raises(
        ValueError,
        match="Request has no field 'gpu'; it has cpus, memory_bytes, gpus, gpu_models",
    ):
        Request.from_dict({"gpu": 1})


def test_device_excess_is_use_that_clearly_exceeds_promises() -> None:
    assert Device(id="0", promised=0.5, used=0.9).excess == pytest.approx(0.4)
    assert Device(id="0", promised=0.5, used=0.55).excess == 0.0
    assert Device(id="0", promised=0.5, used=0.1).excess == 0.0
    assert Device(id="0").excess == 0.5  # unknown: half way
    full = Device(id="0", memory_bytes=10, memory_used_bytes=9, used=0.0)
    assert (full.use, full.excess) == (0.9, 0.9)


def test_node_refuses_wrong_values() -> None:
    with pytest.raises(ValueError, match="node a has two devices of the same id"):
        Node(id="a", devices=(Device(id="0"), Device(id="0")))
    with pytest.raises(ValueError, match="cpus must not be negative"):
        Node(id="a", cpus=-1)


def test_the_promised_sum_limits_the_free_gpus() -> None:
    devices = (Device(id="0", promised=0.5), Device(id="1"))
    assert Node(id="a", devices=devices).gpus_free == 1.5
    assert Node(id="a", devices=devices, gpus_promised=1.25).gpus_free == 0.75


def test_kernels_are_counted_by_user() -> None:
    ada, bob = Request(owner="ada"), Request(owner="bob")
    node = Node(id="a", owners={"bob": 2, "eve": 0}).with_kernel(ada).with_kernel(ada).without_kernel(bob)
    assert node.owners == {"ada": 2, "bob": 1}
    assert [node.kernels_of(user) for user in ("ada", "bob", "eve", "")] == [2, 1, 0, 0]
    assert Node.from_dict(json.loads(json.dumps(node.to_dict()))) == node
    assert node != replace(node, owners={})
    assert node.with_kernel(Request()).owners == node.owners
    for wrong in ({"ada": -1}, {"ada": 1.5}, {7: 1}, ["ada"]):
        with pytest.raises(ValueError, match="owners"):
            Node(id="a", owners=wrong)


def test_a_kernel_on_unknown_devices_counts_in_the_sum_only() -> None:
    node = Node(id="a", devices=(Device(id="0"),)).with_kernel(Request(gpus=0.5))
    assert (node.gpus_free, node.devices[0].free) == (0.5, 1.0)


def test_as_empty_forgets_promises_and_keeps_the_totals() -> None:
    node = Node(
        id="a",
        cpus=4,
        cpus_promised=1,
        memory_bytes=GIB,
        memory_promised_bytes=1,
        gpus_promised=1,
        resources={"licence": 2},
        resources_promised={"licence": 1},
        devices=(Device(id="0", promised=1, used=0.5),),
        kernels=3,
        owners={"ada": 3},
        is_draining=True,
        labels={"zone": "a"},
        taints=("spot",),
        warm=("/opt/py",),
        cpus_used=2,
    )
    assert node.as_empty() == Node(
        id="a",
        cpus=4,
        memory_bytes=GIB,
        resources={"licence": 2},
        devices=(Device(id="0", used=0.5),),
        labels={"zone": "a"},
        taints=("spot",),
        warm=("/opt/py",),
        cpus_used=2,
    )
