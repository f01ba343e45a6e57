"""This process as a client of a Dask cluster: asked with deadlines, told of changes, and away when Dask is."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import cloudpickle

from roost.launchers.agent.node_metrics import AgentSettings
from roost.launchers.protocol.json_codec import encode
from roost.launchers.protocol.version import VERSION, parse_version
from roost.scheduler.backends.agent_per_node.bootstrap import packed
from roost.scheduler.backends.agent_per_node.driver import Driver, OnNodes, in_short
from roost.scheduler.config.settings import DaskSettings
from roost.scheduler.errors import BackendUnavailable, ConfigError

from . import join
from .nodes import DaskNode

_CALL_S = 8.0
_LOOK_S = 2.0
"""A change is told at once; so long it takes to see that Dask's scheduler is gone without a word."""


class DaskDriver(Driver[DaskNode]):
    """`metrics`: by node, what its workers use (cpus, memory_bytes), since `ask_metrics`."""

    manager = "Dask"
    daemon = "last nanny"

    def __init__(self, settings: DaskSettings, on_nodes: OnNodes) -> None:
        super().__init__(on_nodes)
        self.metrics: Mapping[str, Mapping[str, float]] = {}
        self._settings = settings
        self._client: Any = None
        self._version = -1
        self._incarnation = ""

    async def close(self) -> None:
        await super().close()
        await self._leave()

    async def look(self) -> None:
        """Wait for a change."""
        with contextlib.suppress(BackendUnavailable):  # the next reading says so
            await self._see(_LOOK_S)

    async def ask(self, operation: str, deadline_s: float = _CALL_S, /, **arguments: Any) -> Any:
        """What the plugin in Dask's scheduler answers; raises `BackendUnavailable`."""
        self._check()
        return await self._call(operation, deadline_s, **arguments)

    async def ask_metrics(self) -> None:
        self.metrics = await self.ask("roost_metrics")

    async def until_seen(self, within_s: float) -> None:
        """Wait until an agent has looked at the GPUs of each machine, or cannot: Dask itself knows no models.

        Before that a kernel that asks for one would be refused for good.
        """
        give_up_at = time.monotonic() + within_s
        with contextlib.suppress(BackendUnavailable):  # whoever asks next is told
            while any(node.devices and not node.agent for node in self.nodes.values()):
                left_s = give_up_at - time.monotonic()
                if left_s <= 0:
                    return
                await self._see(left_s)
                await self.read()

    async def _join(self, address: str) -> str:
        await self._leave()
        joined = await join.join(self._settings, address)
        self._client = joined.client
        await self._install()
        self._version, self._incarnation = -1, ""
        return joined.address

    async def _fetch(self) -> Iterable[DaskNode]:
        return await self._see(0.0)

    async def _see(self, wait_s: float) -> Iterable[DaskNode]:
        """The nodes, after waiting for a change of them."""
        asked = (self._version, self._incarnation)
        said = await self.ask(
            "roost_nodes", _CALL_S + wait_s, since=asked[0], incarnation=asked[1], wait_s=wait_s
        )
        if wait_s:
            return ()  # whoever waited reads them then
        nodes = dict(self.nodes) if said["incarnation"] == asked[1] else {}
        for name, machine in said["machines"].items():
            nodes.pop(name, None)
            if machine is not None:
                nodes[name] = DaskNode.of(name, machine)
        self._version, self._incarnation = said["version"], said["incarnation"]
        return nodes.values()

    async def _install(self) -> None:
        """Have roost's plugins in the cluster, unless the same with the same settings, or newer ones, are there."""
        from roost.scheduler.backends.agent_per_node import bootstrap

        from .plugin import nanny_plugin, scheduler_plugin, slot_ledger, sweep, worker_plugin

        there = None
        if await self._has_plugin():  # Dask logs a question that it does not know as an error
            there = await self._call("roost_hello", _CALL_S)
        if there is not None and there["protocol"] > scheduler_plugin.PROTOCOL:
            raise ConfigError(
                f"roost {there['version']} uses this Dask cluster already, and this is {VERSION}: upgrade roost"
            )
        archive, digest = packed()
        settings = AgentSettings(
            idle_exit_s=self._settings.agent_idle_exit_s,
            preload=self._settings.preload,
            is_remote=True,
            gpu_visibility="manager",
        )
        sent: dict[str, Any] = {
            "settings": encode(settings),
            "grace_s": self._settings.manager_grace_s,
            "python": self._settings.python,
        }
        mark = hashlib.sha256(f"{digest} {json.dumps(sent)}".encode()).hexdigest()
        if there is not None and there["is_whole"]:
            theirs, ours = parse_version(there["version"]), parse_version(VERSION)
            if theirs > ours or (theirs == ours and there["mark"] == mark):
                return
        agents = nanny_plugin.Agents(archive=archive, digest=digest, **sent)
        modules = (slot_ledger, nanny_plugin, worker_plugin, scheduler_plugin, sweep, bootstrap)
        plugins = (
            scheduler_plugin.OnScheduler(VERSION, mark),
            worker_plugin.OnWorker(agents),
            nanny_plugin.OnNanny(agents),
        )
        with _by_value(modules):
            for plugin in plugins:
                plugin.idempotent = there is None
                await self._register(plugin, is_last=plugin is plugins[-1])

    async def _register(self, plugin: Any, *, is_last: bool) -> None:
        try:
            await asyncio.wait_for(self._client.register_plugin(plugin, name=plugin.name), _CALL_S)
        except asyncio.TimeoutError:
            if not is_last:  # else it is known already, and Dask's scheduler waits until no nanny is starting
                raise BackendUnavailable("Dask's scheduler does not take roost's plugins in time") from None
        except Exception as problem:
            raise BackendUnavailable(
                f"Dask's scheduler does not take roost's plugins: {in_short(problem)}"
            ) from problem

    async def _has_plugin(self) -> bool:
        try:
            question = self._client.run_on_scheduler(lambda dask_scheduler: "roost" in dask_scheduler.plugins)
            return bool(await asyncio.wait_for(question, _CALL_S))
        except Exception as problem:
            raise BackendUnavailable(f"Dask's scheduler does not answer: {in_short(problem)}") from problem

    async def _call(self, operation: str, deadline_s: float, **arguments: Any) -> Any:
        if self._client is None:
            raise BackendUnavailable("Dask's scheduler has been left")
        try:
            call = getattr(self._client.scheduler, operation)
            answer = await asyncio.wait_for(call(**arguments), deadline_s)
        except asyncio.TimeoutError:
            raise BackendUnavailable(f"Dask's scheduler has not answered for {deadline_s:g} s") from None
        except OSError as error:
            raise BackendUnavailable("Dask's scheduler has gone") from error
        except Exception as error:
            raise BackendUnavailable(f"Dask's scheduler failed: {in_short(error)}") from error
        if answer is None:  # Dask's way to say that it does not know what is asked
            raise BackendUnavailable("Dask's scheduler has been started anew")
        return answer

    async def _leave(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await join.leave(client)


@contextlib.contextmanager
def _by_value(modules: Iterable[ModuleType]) -> Iterator[None]:
    """What is of these modules is sent with its code: roost need not be there where it comes to."""
    modules = list(modules)
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
