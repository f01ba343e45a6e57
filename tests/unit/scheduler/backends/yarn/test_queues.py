"""Requests that YARN can never grant, or that the operator does not allow, are refused before they queue."""

from __future__ import annotations

from typing import Any

import pytest

from roost.placement import Request
from roost.scheduler.backends.yarn.queues import Queues
from roost.scheduler.backends.yarn.rest import JsonObject
from roost.scheduler.backends.yarn.settings import RoostYarnBackend
from roost.scheduler.errors import BackendUnavailable, ConfigError, NoNodeEver

ROOT = {
    "queueName": "root",
    "queues": {
        "queue": [
            {"queueName": "default", "queuePath": "root.default", "state": "RUNNING", "nodeLabels": ["vip"]},
            {"queueName": "old", "queuePath": "root.old", "state": "STOPPED", "nodeLabels": ["*"]},
            {"queueName": "lab", "queuePath": "root.lab", "state": "RUNNING", "nodeLabels": []},
            {  # as a queue whose accessible-node-labels are empty, in Hadoop 3.4.2
                "queueName": "batch",
                "queuePath": "root.batch",
                "state": "RUNNING",
                "nodeLabels": ["*"],
                "capacities": {
                    "queueCapacitiesByPartition": [{"partitionName": "", "absoluteMaxCapacity": 100.0}]
                },
            },
        ]
    },
}
MAXIMUM = {
    "memory": 8192,
    "vCores": 8,
    "resourceInformations": {"resourceInformation": [{"name": "yarn.io/gpu", "value": 4}]},
}


class FakeRest:
    async def queues(self) -> JsonObject:
        return ROOT

    async def labels(self) -> dict[str, bool]:
        return {"vip": True, "shared": False}

    async def new_application(self) -> tuple[str, JsonObject]:
        return "application_1_1", MAXIMUM


async def queues(**settings: Any) -> Queues:
    found = Queues(RoostYarnBackend(**settings))
    await found.read(FakeRest())  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (Request(gpus=0.5), ConfigError, "whole GPUs only"),
        (Request(resources={"yarn.io/gpu": 1}), ConfigError, "ask for it with gpus"),
        (Request(gpus=5), NoNodeEver, "1 yarn.io/gpu larger than the largest container"),
        (Request(memory_bytes=9 << 30), NoNodeEver, "1024 MiB memory larger"),
        (Request(options={"queue": "old"}), ConfigError, "is stopped"),
        (Request(options={"queue": "secret"}), ConfigError, "the operator allows batch, default, lab, old"),
        (Request(options={"label": "nosuch"}), ConfigError, "it has shared, vip"),
        (Request(options={"label": "vip", "queue": "lab"}), ConfigError, "may not use the node label vip"),
        (Request(options={"label": "vip", "queue": "batch"}), ConfigError, "may not use the node label vip"),
        (Request(resources={"licence": 1}), ConfigError, "has no 'licence': it has yarn.io/gpu"),
    ],
)
async def test_refusals(request_: Request, error: type[Exception], words: str) -> None:
    found = await queues(allowed_queues=["batch", "default", "lab", "old"])
    with pytest.raises(error, match=words):
        found.check(request_)


async def test_what_yarn_gives_is_accepted() -> None:
    found = await queues(queue="root.default")
    assert found.exclusive_labels == {"vip"}
    for request in (
        Request(gpus=4, memory_bytes=8 << 30, cpus=7.5),
        Request(options={"label": "vip"}),
        Request(options={"queue": "a.new.one"}),  # made on demand, or YARN refuses it
    ):
        found.check(request)


@pytest.mark.parametrize("maximum", [{}, {"memory": "much", "vCores": 1}, {"memory": [], "vCores": 1}])
async def test_a_largest_container_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, maximum: JsonObject
) -> None:
    async def new_application(self: FakeRest) -> tuple[str, JsonObject]:
        return "application_1_1", maximum

    monkeypatch.setattr(FakeRest, "new_application", new_application)
    with pytest.raises(BackendUnavailable):
        await queues()
