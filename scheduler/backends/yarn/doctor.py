"""Finds settings of the cluster that delay starts, limit resources, or end kernels. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator

from roost.scheduler.backends.base import Finding

from .hadoop_conf import Conf, keeps_containers
from .queues import walk
from .rest import JsonObject
from .settings import RoostYarnBackend

_ASYNC = "yarn.scheduler.capacity.schedule-asynchronously.enable"
_HEARTBEAT = "yarn.resourcemanager.nodemanagers.heartbeat-interval-ms"
_EXPIRY = "yarn.nm.liveness-monitor.expiry-interval-ms"
_MINIMUM = "yarn.scheduler.minimum-allocation-mb"
_NM = "yarn.nodemanager"
_ENFORCED = f"{_NM}.resource.memory.enforced"
_DISK = f"{_NM}.disk-health-checker"
_LARGE_MINIMUM_MB = 1024
_FEW_MASTERS = 3
"""A queue with room for fewer application masters is reported: each service needs one."""


def find_settings(
    conf: Conf, root: JsonObject, nodes: list[JsonObject], settings: RoostYarnBackend
) -> list[Finding]:
    """Return the findings about a cluster. `conf` is the ResourceManager's, and empty if that cannot be read.

    `conf` also has settings of NodeManagers, but a NodeManager may have other values.
    """
    queue = next(
        (one for one in walk(root) if settings.queue in (one.get("queueName"), one.get("queuePath"))), None
    )
    return [
        *_find_slow(conf),
        *(_find_small(conf, queue, settings) if queue else _no_queue(settings)),
        *_find_ends(conf, queue),
        *_find_unhealthy(nodes),
    ]


def _find_slow(conf: Conf) -> Iterator[Finding]:
    heartbeat_ms = _number(conf, _HEARTBEAT, 1000)
    if conf.get(_ASYNC) != "true" and heartbeat_ms >= 1000:
        yield _warn(
            f"YARN grants containers at the heartbeats of the nodes, so a start waits up to {heartbeat_ms / 1000:g} s",
            f"set {_ASYNC}=true in capacity-scheduler.xml, if it is not set there, or a smaller {_HEARTBEAT}",
        )
    expiry_s = _number(conf, _EXPIRY, 600_000) / 1000
    if expiry_s >= 120:
        yield _warn(
            f"a kernel on a node that has failed is reported as lost after {expiry_s:g} s",
            f"set a smaller {_EXPIRY} if people should know earlier",
        )


def _find_small(conf: Conf, queue: JsonObject, settings: RoostYarnBackend) -> Iterator[Finding]:
    name = queue["queueName"]
    factor, share, most = (
        float(queue.get(key, default))
        for key, default in (
            ("userLimitFactor", 1.0),
            ("absoluteCapacity", 100.0),
            ("absoluteMaxCapacity", 100.0),
        )
    )
    if 0 < factor * share < most - 0.5:
        yield _warn(
            f"one user of queue {name} gets at most {factor * share:.0f} % of the cluster, even if the rest is idle",
            f"set a larger yarn.scheduler.capacity.{queue['queuePath']}.user-limit-factor (now {factor:g})",
        )
    limit_mb = (queue.get("AMResourceLimit") or {}).get("memory", 0)
    masters = limit_mb // max(1, settings.master_memory >> 20, _number(conf, _MINIMUM, 1024))
    if limit_mb and masters < _FEW_MASTERS:
        yield _warn(
            f"queue {name} has room for {masters} application masters, and each roost service needs one",
            "set a larger yarn.scheduler.capacity.maximum-am-resource-percent",
        )
    minimum_mb = _number(conf, _MINIMUM, 1024)
    if minimum_mb >= _LARGE_MINIMUM_MB:
        yield _warn(
            f"each kernel, and roost's application master, takes {minimum_mb} MiB or more",
            f"set a smaller {_MINIMUM}, for example 256",
        )


def _find_ends(conf: Conf, queue: JsonObject | None) -> Iterator[Finding]:
    # With `enforced`, the default of Hadoop 3.4, only cgroups limit memory, and YARN's own checks do nothing.
    are_checked = conf.get(_ENFORCED, "false") != "true"
    if conf and are_checked and conf.get(f"{_NM}.vmem-check-enabled", "true") == "true":
        ratio = conf.get(f"{_NM}.vmem-pmem-ratio", "2.1")
        yield _warn(
            f"YARN ends a kernel that has {ratio} times its memory as virtual memory. CUDA and numpy exceed that",
            f"set {_NM}.vmem-check-enabled=false",
        )
    if not are_checked and conf.get(f"{_NM}.resource.memory.enabled") != "true":
        yield {
            "level": "ok",
            "what": f"YARN does not limit the memory of containers ({_NM}.resource.memory.enabled is not true)",
            "do": "",
        }
    lifetimes = [
        (queue or {}).get(key, -1) for key in ("maxApplicationLifetime", "defaultApplicationLifetime")
    ]
    if shortest_s := min((one for one in lifetimes if one > 0), default=0):
        name = (queue or {})["queueName"]
        yield _error(
            f"YARN ends applications of queue {name}, and with them all kernels, after {shortest_s} s",
            "name a queue without maximum-application-lifetime and default-application-lifetime",
        )
    if conf and conf.get("yarn.resourcemanager.recovery.enabled") != "true":
        yield _warn(
            "a restart of the ResourceManager ends all kernels",
            "set yarn.resourcemanager.recovery.enabled=true",
        )
    if not keeps_containers(conf):
        yield _warn(
            "a restart of the ResourceManager ends all kernels, and so does a failure of roost's application master",
            "set yarn.resourcemanager.work-preserving-recovery.enabled=true",
        )
    if conf and conf.get(f"{_NM}.recovery.enabled") != "true":
        yield _warn(
            "a restart of a NodeManager ends the kernels of its node, unless that node has a setting of its own",
            f"set {_NM}.recovery.enabled=true",
        )
    if conf and conf.get(f"{_DISK}.enable", "true") == "true":
        percent = conf.get(f"{_DISK}.max-disk-utilization-per-disk-percentage", "90.0")
        yield {
            "level": "ok",
            "what": f"a node with disks that are {float(percent):g} % full is unhealthy, and loses its kernels",
            "do": "",
        }


def _find_unhealthy(nodes: list[JsonObject]) -> Iterator[Finding]:
    for node in nodes:
        if node["state"] == "UNHEALTHY":
            report = " ".join(str(node.get("healthReport", "")).split())[:200]
            yield _error(f"node {node['nodeHostName']} is unhealthy: {report}", "look at its disks")


def _no_queue(settings: RoostYarnBackend) -> Iterator[Finding]:
    yield _error(f"YARN has no queue {settings.queue}", "set c.RoostYarnBackend.queue")


def _number(conf: Conf, name: str, default: int) -> int:
    text = conf.get(name, "")
    return int(text) if text.isdigit() else default


def _warn(what: str, do: str) -> Finding:
    return {"level": "warning", "what": what, "do": do}


def _error(what: str, do: str) -> Finding:
    return {"level": "error", "what": what, "do": do}
