"""`roost doctor` names settings of the cluster that make starts slow or small, and settings that end kernels."""

from __future__ import annotations

from typing import Any

from roost.scheduler.backends.yarn.doctor import find_settings
from roost.scheduler.backends.yarn.settings import RoostYarnBackend

GOOD = {
    "yarn.scheduler.capacity.schedule-asynchronously.enable": "true",
    "yarn.nm.liveness-monitor.expiry-interval-ms": "60000",
    "yarn.scheduler.minimum-allocation-mb": "256",
    "yarn.nodemanager.vmem-check-enabled": "false",
    "yarn.resourcemanager.recovery.enabled": "true",
    "yarn.nodemanager.recovery.enabled": "true",
    "yarn.nodemanager.disk-health-checker.enable": "false",
}
QUEUE = {
    "queueName": "default",
    "queuePath": "root.default",
    "absoluteCapacity": 50.0,
    "absoluteMaxCapacity": 100.0,
    "userLimitFactor": 2.0,
    "AMResourceLimit": {"memory": 4096},
    "maxApplicationLifetime": -1,
    "defaultApplicationLifetime": -1,
}


def find(conf: dict[str, str] | None = None, node: dict[str, Any] | None = None, **queue: Any) -> list[str]:
    root = {"queueName": "root", "queues": {"queue": [{**QUEUE, **queue}]}}
    findings = find_settings({**GOOD, **(conf or {})}, root, [node] if node else [], RoostYarnBackend())
    return [f"{finding['level']}: {finding['what']}" for finding in findings]


def test_a_good_cluster_has_no_findings() -> None:
    assert find() == []


def test_each_setting_has_a_finding() -> None:
    for conf, words in (
        ({"yarn.scheduler.capacity.schedule-asynchronously.enable": "false"}, "waits up to 1 s"),
        ({"yarn.nm.liveness-monitor.expiry-interval-ms": "600000"}, "lost after 600 s"),
        ({"yarn.scheduler.minimum-allocation-mb": "1024"}, "takes 1024 MiB or more"),
        ({"yarn.nodemanager.vmem-check-enabled": "true"}, "2.1 times its memory"),
        (
            {
                "yarn.nodemanager.vmem-check-enabled": "true",
                "yarn.nodemanager.resource.memory.enforced": "true",
            },
            "does not limit the memory",
        ),
        ({"yarn.resourcemanager.recovery.enabled": "false"}, "restart of the ResourceManager ends"),
        (
            {"yarn.resourcemanager.work-preserving-recovery.enabled": "false"},
            "so does a failure of roost's application master",
        ),
        ({"yarn.nodemanager.recovery.enabled": "false"}, "restart of a NodeManager ends"),
        ({"yarn.nodemanager.disk-health-checker.enable": "true"}, "90 % full"),
    ):
        (found,) = find(conf)
        assert words in found
    for queue, words in (
        ({"userLimitFactor": 1.0}, "at most 50 % of the cluster"),
        ({"AMResourceLimit": {"memory": 512}}, "room for 2 application masters"),
        ({"maxApplicationLifetime": 3600}, "error: YARN ends applications"),
        ({"queueName": "other", "queuePath": "root.other"}, "error: YARN has no queue default"),
    ):
        (found,) = find(**queue)
        assert words in found


def test_unhealthy_nodes_are_errors() -> None:
    node = {"state": "UNHEALTHY", "nodeHostName": "n1", "healthReport": "1/1 log-dirs have errors"}
    assert find(node=node) == ["error: node n1 is unhealthy: 1/1 log-dirs have errors"]
