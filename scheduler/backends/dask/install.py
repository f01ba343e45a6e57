"""Brings roost's plugins into a Dask cluster."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from typing import Any

import cloudpickle

from roost.launchers.daemon import tasks
from roost.launchers.protocol.shared_values import VERSION, parse_version
from roost.placement.model.json_codec import encode
from roost.scheduler.backends import node_archive
from roost.scheduler.backends.agent_per_node.manager import shorten_error
from roost.scheduler.errors import BackendUnavailable, ConfigError

from .settings import RoostDaskBackend

_CALL_S = 8.0


async def install_plugins(client: Any, settings: RoostDaskBackend, public: str) -> None:
    """Register roost's plugins, unless the cluster has them with the same settings, or newer ones.

    All agents of the cluster then accept the service with this public key.
    Raises `BackendUnavailable`, or `ConfigError` if the cluster's plugins have another protocol.
    """
    from .plugin import nanny_plugin, scheduler_plugin, slot_ledger, sweep, worker_plugin

    # Dask logs an operation that it does not know as an error, so ask whether the plugin is there first.
    has_plugin = await _ask(client.run_on_scheduler(lambda dask_scheduler: "roost" in dask_scheduler.plugins))
    there: dict[str, Any] | None = await _ask(client.scheduler.roost_hello()) if has_plugin else None
    if there is not None and there["protocol"] != scheduler_plugin.PROTOCOL:
        raise ConfigError(
            f"roost {there['version']} uses this Dask cluster already, and its protocol is not that of roost {VERSION};"
            " to end its kernels, start Dask's scheduler and workers again"
        )
    archive, digest = node_archive.pack()
    sent: dict[str, Any] = {
        "settings": encode(settings.agent_settings()),
        "grace_s": settings.manager_grace_s,
        "python": settings.python,
    }
    mark = hashlib.sha256(f"{digest} {json.dumps(sent)}".encode()).hexdigest()
    if there is not None and there["is_whole"]:
        theirs, ours = parse_version(there["version"]), parse_version(VERSION)
        if theirs > ours or (theirs == ours and there["mark"] == mark):
            await _ask(client.scheduler.roost_admit(client=public))
            return
    starter = nanny_plugin.AgentStarter(archive=archive, digest=digest, **sent)
    plugins = (
        scheduler_plugin.RoostSchedulerPlugin(VERSION, mark),
        worker_plugin.RoostWorkerPlugin(starter),
        nanny_plugin.RoostNannyPlugin(starter),
    )
    with contextlib.ExitStack() as stack:
        # The modules' code is sent along, because the cluster need not have roost.
        for module in (
            slot_ledger,
            nanny_plugin,
            worker_plugin,
            scheduler_plugin,
            sweep,
            node_archive,
            tasks,
        ):
            cloudpickle.register_pickle_by_value(module)
            stack.callback(cloudpickle.unregister_pickle_by_value, module)
        for plugin in plugins:
            plugin.idempotent = there is None
            try:
                await _ask(client.register_plugin(plugin, name=plugin.name), "does not take roost's plugins")
            except BackendUnavailable as problem:
                # Dask's scheduler waits until no nanny is starting. By then it knows the last plugin already.
                if plugin is not plugins[-1] or not isinstance(problem.__cause__, asyncio.TimeoutError):
                    raise
            if plugin is plugins[0]:  # before the first agent is started
                await _ask(client.scheduler.roost_admit(client=public))


async def _ask(question: Any, failure: str = "does not answer") -> Any:
    try:
        return await asyncio.wait_for(question, _CALL_S)
    except Exception as problem:
        is_late = isinstance(problem, asyncio.TimeoutError)
        why = f"no answer for {_CALL_S:g} s" if is_late else shorten_error(problem)
        raise BackendUnavailable(f"Dask's scheduler {failure}: {why}") from problem
