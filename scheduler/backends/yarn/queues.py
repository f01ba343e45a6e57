"""The queues and the limits of the cluster, as the ResourceManager reports them."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from roost.placement import Request
from roost.scheduler.errors import ConfigError, NoNodeEver

from .asking import count_resources
from .master.messages import Resources
from .reasons import find_short
from .rest import JsonObject, Rest, reading
from .settings import RoostYarnBackend


class Queues:
    """The queues, the node labels and the largest container of the cluster, as last read."""

    def __init__(self, settings: RoostYarnBackend) -> None:
        self._settings = settings
        self._root: JsonObject = {}
        self._maximum: Resources | None = None
        self._labels: dict[str, bool] = {}
        """By name: True if only containers that ask for the label may run there."""

    async def read(self, rest: Rest) -> None:
        """Read all again. Costs three calls."""
        await self.read_queues(rest)
        await self.read_labels(rest)
        _, maximum = await rest.new_application()
        with reading():
            self._maximum = read_resources(maximum)

    async def read_queues(self, rest: Rest) -> None:
        """Read the queues again, with their present use."""
        self._root = await rest.queues()

    async def read_labels(self, rest: Rest) -> None:
        """Read the node labels again."""
        self._labels = await rest.labels()

    @property
    def exclusive_labels(self) -> frozenset[str]:
        return frozenset(name for name, is_exclusive in self._labels.items() if is_exclusive)

    def find(self, name: str) -> JsonObject | None:
        """Return YARN's report about the queue with this name or path; None if there is no such queue."""
        for queue in walk(self._root):
            if name in (queue.get("queueName"), queue.get("queuePath")):
                return queue
        return None

    def queue_of(self, request: Request) -> str:
        """Return the queue of a request."""
        return str(request.options.get("queue") or self._settings.queue)

    def check(self, request: Request) -> None:
        """Raise `ConfigError` or `NoNodeEver` for options and amounts that this cluster does not give."""
        self._check_amounts(request)
        name = self.queue_of(request)
        allowed = self._settings.allowed_queues
        if not any(fnmatchcase(name, pattern) for pattern in (*allowed, self._settings.queue)):
            raise ConfigError(
                f"queue = {name!r:.80} is not allowed here; the operator allows {', '.join(allowed) or 'none'}."
            )
        queue = self.find(name)
        if queue is not None and queue.get("state", "RUNNING") != "RUNNING":
            raise ConfigError(
                f"queue {name} of YARN is {queue['state'].lower()}: name another one (option queue)."
            )
        label = str(request.options.get("label", ""))
        if label and label not in self._labels:
            known = ", ".join(sorted(self._labels)) or "none"
            raise ConfigError(f"label = {label!r:.80} is no node label of this cluster; it has {known}.")
        if label and queue is not None and not _may_use(queue, label):
            raise ConfigError(
                f"queue {name} may not use the node label {label}: name another queue or label."
            )

    def _check_amounts(self, request: Request) -> None:
        gpu = self._settings.gpu_resource
        if request.gpus != int(request.gpus):
            raise ConfigError(f"YARN gives whole GPUs only: ask for 1 GPU instead of {request.gpus:g}.")
        known = self._maximum.others if self._maximum is not None else request.resources
        for name, amount in request.resources.items():
            if name == gpu:
                raise ConfigError(f"YARN gives no {amount:g} {name}: ask for it with gpus.")
            if amount != int(amount):
                raise ConfigError(f"YARN gives no {amount:g} {name!r:.80}: ask for a whole number.")
            if name not in known:
                raise ConfigError(
                    f"this cluster has no {name!r:.80}: it has {', '.join(sorted(known)) or 'none'}."
                )
        if self._maximum is None:
            return
        for short in find_short(count_resources(request, self._settings), self._maximum):
            raise NoNodeEver(
                f"the request is {short} larger than the largest container that YARN gives "
                "(yarn.scheduler.maximum-allocation-*, or the largest node)."
            )


def read_resources(raw: JsonObject) -> Resources:
    """Return the amounts in one of YARN's answers."""
    infos = (raw.get("resourceInformations") or {}).get("resourceInformation", ())
    others = {one["name"]: int(one["value"]) for one in infos if one["name"] not in ("memory-mb", "vcores")}
    return Resources(memory_mb=int(raw["memory"]), vcores=int(raw["vCores"]), others=others)


def _may_use(queue: JsonObject, label: str) -> bool:
    """True if a queue may use a node label, and has a share of its nodes."""
    if not {label, "*"} & set(queue.get("nodeLabels", [label])):
        return False
    shares = (queue.get("capacities") or {}).get("queueCapacitiesByPartition", ())
    return not shares or any(
        one.get("partitionName") == label and one.get("absoluteMaxCapacity", 100.0) > 0 for one in shares
    )


def walk(queue: JsonObject) -> Iterator[JsonObject]:
    """Yield a queue and all queues below it."""
    if queue:
        yield queue
    for child in (queue.get("queues") or {}).get("queue", ()):
        yield from walk(child)
