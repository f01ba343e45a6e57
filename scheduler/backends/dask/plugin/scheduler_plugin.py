"""roost inside a Dask cluster: this plugin in its scheduler, and the worker and nanny plugins beside this file.

The plugins arrive pickled by value, and need only distributed and the standard library. Messages are builtin values.

The ledger in Dask's scheduler, which knows kernels, grants a lease first. Then the workers, which know tasks, grant
it. A worker subtracts claims from the resources for tasks before its first task. So a new worker cannot give a
kernel's resources away. If a task holds claimed resources, the claim waits for the task's end. It goes ahead of all
waiting tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Iterable
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

from roost.launchers.daemon.tasks import Timers, cancel_all, spawn
from roost.scheduler.backends.node_archive import Answer

from .slot_ledger import DIGITS, Refused, Slot, SlotLease, SlotLedger
from .sweep import sweep

NAME = "roost"
PROTOCOL = 1
"""The version of the messages between these plugins and roost's scheduler. Plugins of another one are left alone."""
_WISH_S = 10.0
"""How long a claim that was refused because of running tasks keeps its place for a retry."""
_ASK_S = 5.0
_MISSED_S = 5.0
"""If a nanny has reported no agent this long after its worker came, Dask never sent it the plugin: send it again."""
_BRING_UP_S = 40.0
_AGAIN_S = 1.0
_TRY_AGAIN_S = 30.0
"""How long to wait before an agent that could not be started is tried again. Its machine drains until then."""
_MOST_CLIENTS = 100
"""How many services of roost may use one cluster at a time."""

log = logging.getLogger(__name__)


class RoostSchedulerPlugin(SchedulerPlugin):  # type: ignore[misc,unused-ignore]
    """A plugin with the ledger, and with the handlers of the operations that roost's schedulers call."""

    name = NAME
    idempotent = True

    def __init__(self, version: str, mark: str) -> None:
        self.roost_version = version
        self.mark = mark
        self.ledger = SlotLedger()
        self.agents: dict[str, Answer] = {}
        self.clients: list[str] = []
        self.idle_timeout: Any = None

    def start(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.incarnation = uuid.uuid4().hex
        self.version = 0
        self.number = 0
        self._stamps: dict[str, int] = {}
        self.nannies: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._timers = Timers()
        self._tasks: set[asyncio.Task[Any]] = set()
        before = scheduler.plugins.get(NAME)
        if before is not None:  # the plugin of an earlier version, which hands its leases over
            fields = SlotLease.__dataclass_fields__  # its leases are of another class, sent with its code
            for held in before.ledger.leases.values():
                values = {name: getattr(held, name) for name in fields}
                self.ledger.leases[held.lease_id] = SlotLease(**values)
            self.agents, self.idle_timeout = dict(before.agents), before.idle_timeout
            self.clients = list(before.clients)
            self.number = before.number
        for worker in list(scheduler.workers):  # they report again, because the worker plugin is replaced too
            self.add_worker(scheduler, worker)
        scheduler.handlers.update(
            roost_hello=self.hello,
            roost_nodes=self.nodes,
            roost_metrics=self.metrics,
            roost_lease=self.lease,
            roost_release=self.release,
            roost_leases=self.leases,
            roost_agent=self.agent,
            roost_admit=self.admit,
            roost_clients=self.list_clients,
            roost_worker=self.on_worker,
            roost_free=self.on_free,
            roost_agent_up=self.on_agent_up,
            set_resources=self.on_set_resources,
        )
        self._spawn(sweep(self))

    # Operations for roost's schedulers

    async def hello(self) -> dict[str, Any]:
        """Return the protocol, version and `mark` of these plugins, and if all three are there (`is_whole`).

        `mark` is a digest of the agent's code and settings.
        """
        # Not whole: the service that brought the plugins died before it had registered the last one.
        is_whole = NAME in self.scheduler.worker_plugins and NAME in self.scheduler.nanny_plugins
        known = {"protocol": PROTOCOL, "version": self.roost_version, "mark": self.mark}
        return {**known, "is_whole": is_whole}

    async def nodes(self, since: int, incarnation: str, wait_s: float) -> dict[str, Any]:
        """Return the machines that changed since that version (None: gone). If none has, wait up to `wait_s`.

        Return all machines if `incarnation` is not that of this plugin: then `since` belongs to an earlier one.
        """
        if incarnation != self.incarnation:
            since = -1
        if since >= self.version and wait_s:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait_s)
        names = [name for name, stamp in self._stamps.items() if stamp > since]
        machines = {name: part.describe(name) for name, part in self.ledger.split_by_machine(names).items()}
        for name, machine in machines.items():
            if machine is not None:
                machine["agent"] = self.agents.get(name, {})
        return {"incarnation": self.incarnation, "version": self.version, "machines": machines}

    async def metrics(self) -> dict[str, Any]:
        """Return by machine the CPUs and the bytes of memory that its workers use."""
        found: dict[str, dict[str, float]] = {}
        for worker in self.scheduler.workers.values():
            of_machine = found.setdefault(worker.host, {"cpus": 0.0, "memory_bytes": 0})
            of_machine["cpus"] += worker.metrics.get("cpu", 0.0) / 100
            of_machine["memory_bytes"] += worker.metrics.get("memory", 0)
        return found

    async def lease(
        self, held: dict[str, Any], device_ids: Iterable[str], again: bool, wait_s: float
    ) -> dict[str, Any]:
        """Claim a slice of a machine; return {"device_ids"}, or {"refused"} with a sentence. May be repeated.

        `device_ids` are preferred. With `again`, a live kernel has exactly these, whatever tasks hold of them now.
        """
        asked = SlotLease(**held)
        before = self.ledger.leases.get(asked.lease_id)
        if before is not None and before.machine != asked.machine:  # a wish on another machine
            for slot in self._drop(before):
                self._spawn(self._settle(slot))
        try:
            if again:
                lease = self.ledger.take_again(asked, device_ids=list(device_ids))
            else:
                lease = self.ledger.take(asked, preferred=list(device_ids))
        except Refused as refusal:
            return {"refused": str(refusal)}
        if lease.is_wish and again:
            self._grant(lease)
            await asyncio.gather(*(self._settle(slot) for slot in lease.claims))
        elif lease.is_wish:
            self._on_change(lease)
            syncs = (self._sync(slot, lease.lease_id, wait_s) for slot in lease.claims)
            granted = await asyncio.gather(*syncs)
            # A release can arrive while the workers answer.
            if self.ledger.leases.get(lease.lease_id) is not lease:
                return {"refused": "it was given back meanwhile"}
            if not all(granted):
                self._timers.later(_WISH_S, lambda: self._expire(lease), key=lease.lease_id)
                return {"refused": f"tasks of the Dask cluster have it on {lease.machine}"}
            self._grant(lease)
        return {"device_ids": lease.device_ids}

    async def release(self, lease_id: str) -> bool:
        """Give a lease back. May be repeated, also without such a lease."""
        lease = self.ledger.leases.get(lease_id)
        if lease is not None:
            await asyncio.gather(*(self._settle(slot) for slot in self._drop(lease)))
        return True

    async def leases(self) -> list[dict[str, Any]]:
        """Return all granted leases, also on machines without workers, because the workers may come back."""
        return [dict(vars(lease)) for lease in self.ledger.leases.values() if not lease.is_wish]

    async def agent(self, machine: str) -> Answer:
        """Have a nanny of that machine find or start the agent.

        Return its answer, or an answer with a `problem`.
        """
        for server in self.servers(machine):
            try:
                answer: Answer | None = await asyncio.wait_for(
                    self.scheduler.rpc(server).roost_bring_up(clients=self.clients), _BRING_UP_S
                )
            except (OSError, asyncio.TimeoutError):
                self.nannies.pop(server, None)
                continue
            if answer is not None:  # else the nanny has not received its plugin
                report = self.agents.get(machine, {}).get("report") or uuid.uuid4().hex
                self._note_agent(machine, server, {**answer, "report": report})
                return self.agents[machine]
        return {"problem": "no nanny or worker of the Dask cluster that could start it is there now"}

    async def admit(self, client: str) -> bool:
        """Have all agents accept the service with this public key."""
        self.clients = [*(known for known in self.clients if known != client), client][-_MOST_CLIENTS:]
        for machine in self.agents:
            self._admit_at(machine)
        return True

    async def list_clients(self) -> list[str]:
        """Return the public keys of the services, for a nanny that starts an agent."""
        return self.clients

    def _admit_at(self, machine: str) -> None:
        """Have the agent of that machine accept the services that it does not know yet."""
        agent = self.agents[machine]
        if "endpoint" in agent and not set(self.clients) <= set(agent["clients"]):
            self._spawn(self.agent(machine))

    def servers(self, machine: str) -> list[str]:
        """Return a machine's nannies, also those whose worker is starting again, and its workers without a nanny."""
        there = (slot.nanny or slot.worker for slot in self.ledger.slots.values() if slot.machine == machine)
        known = (server for server, its in self.nannies.items() if its == machine)
        return list(dict.fromkeys([*there, *known]))

    # Reports from workers and nannies

    async def on_worker(
        self, worker: str, resources: dict[str, float], devices: list[str] | None, memory_bytes: int
    ) -> dict[str, Any]:
        """Receive a worker's resources before its first task; return the claims that it must hold back."""
        slot = self._find_slot(worker)
        if slot is None:
            return {"claims": {}, "number": 0}
        slot.resources, slot.free = dict(resources), dict(resources)
        slot.devices = self.ledger.number_devices(slot) if devices is None else list(devices)
        slot.memory_bytes = slot.memory_bytes or memory_bytes
        self.ledger.move(slot)
        slot.is_ready = True
        self._show(slot)
        self._mark_changed(slot.machine)
        if slot.nanny not in self.nannies:
            self._timers.later(_MISSED_S, lambda: self._check_nanny(slot.nanny))
        self.number += 1
        return {"claims": self.ledger.claims_of(slot.name), "number": self.number}

    async def on_free(self, worker: str, free: dict[str, float]) -> None:
        """Receive the amounts that neither tasks nor granted leases hold on a worker."""
        slot = self._find_slot(worker)
        if slot is not None:
            slot.free = dict(free)
            self._mark_changed(slot.machine)

    def on_set_resources(self, worker: str, resources: dict[str, float] | None = None) -> Any:
        """Handle `Worker.set_resources`: Dask notes the new resources, and the worker reports to roost again."""
        answer = self.scheduler.add_resources(worker=worker, resources=resources)
        self._spawn(self._call_server(worker, "roost_report"))
        return answer

    async def on_agent_up(self, machine: str, server: str, answer: Answer) -> None:
        """Receive the report of a nanny that has just started: its machine's agent, or the reason for its absence."""
        self._note_agent(machine, server, {**answer, "report": uuid.uuid4().hex})
        self._admit_at(machine)

    def _note_agent(self, machine: str, server: str, answer: Answer) -> None:
        self.nannies[server] = machine
        self.agents[machine] = answer
        self._mark_changed(machine)
        if "problem" in answer:
            again = f"agent of {machine}"
            self._timers.later(_TRY_AGAIN_S, lambda: self._spawn(self.agent(machine)), key=again)

    # Callbacks from Dask's scheduler

    def add_worker(self, scheduler: Any, worker: str) -> None:
        state = scheduler.workers[worker]
        slot = Slot(
            name=state.nanny or worker,
            machine=state.host,
            worker=worker,
            nanny=state.nanny or "",
            threads=state.nthreads,
            memory_bytes=state.memory_limit or 0,
        )
        self.ledger.slots[slot.name] = slot  # the worker reports its abstract resources itself: `on_worker`
        self._mark_changed(slot.machine)

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        slot = self._find_slot(worker)
        if slot is not None:
            del self.ledger.slots[slot.name]
            self._mark_changed(slot.machine)

    def log_event(self, topic: str, msg: Any) -> None:
        if isinstance(msg, dict) and msg.get("action") == "worker-status-change":
            slot = self._find_slot(topic)
            if slot is not None:
                slot.is_leaving = self.scheduler.workers[topic].status.name == "closing_gracefully"
                self._mark_changed(slot.machine)

    def valid_workers_downscaling(self, scheduler: Any, workers: list[Any]) -> list[Any]:
        """Keep machines with kernels from being removed by adaptive scaling."""
        held = {lease.machine for lease in self.ledger.leases.values()}
        return [worker for worker in workers if worker.host not in held]

    async def close(self) -> None:
        self._timers.close()
        await cancel_all(self._tasks)

    # Steps

    def _find_slot(self, worker: str) -> Slot | None:
        return next((slot for slot in self.ledger.slots.values() if slot.worker == worker), None)

    def _mark_changed(self, machine: str) -> None:
        self.version += 1
        self._stamps[machine] = self.version
        self._changed.set()
        self._changed = asyncio.Event()  # callers that arrive later wait for the next change

    def _grant(self, lease: SlotLease) -> None:
        lease.is_wish = False
        self._timers.cancel(lease.lease_id)
        self._on_change(lease)
        self._log("lease", lease)

    def _drop(self, lease: SlotLease) -> list[str]:
        """Forget a lease; return the slots whose workers must be informed."""
        del self.ledger.leases[lease.lease_id]
        self._timers.cancel(lease.lease_id)
        self._on_change(lease)
        self._log("release", lease)
        return list(lease.claims)

    def _on_change(self, lease: SlotLease) -> None:
        for slot in lease.claims:
            if slot in self.ledger.slots:
                self._show(self.ledger.slots[slot])
        self._stay_awake()
        self._mark_changed(lease.machine)

    def _show(self, slot: Slot) -> None:
        """Inform Dask's scheduler how much a worker has left for tasks, because it sends tasks where resources are."""
        state = self.scheduler.workers.get(slot.worker)
        if state is None or not slot.is_ready:
            return
        leased, is_more = self.ledger.leased(slot.name), False
        for name, amount in slot.resources.items():
            left = max(0.0, round(amount - leased.get(name, 0.0), DIGITS))
            is_more = is_more or left > state.resources.get(name, 0.0)
            state.resources[name] = left
            self.scheduler.resources.setdefault(name, {})[slot.worker] = left
        if is_more:
            tasks = self.scheduler.bulk_schedule_unrunnable_after_adding_worker(state)
            self.scheduler.transitions(tasks, stimulus_id=f"roost-{time.time()}")

    def _check_nanny(self, nanny: str) -> None:
        """Send the plugin to a nanny without it: Dask sends plugins only to nannies that have a worker just then."""
        plugin = self.scheduler.nanny_plugins.get(NAME)
        is_there = any(slot.nanny == nanny for slot in self.ledger.slots.values())
        if nanny and nanny not in self.nannies and is_there and plugin is not None:
            self._spawn(self._call_server(nanny, "plugin_add", plugin=plugin, name=NAME))

    async def _call_server(self, server: str, operation: str, **arguments: Any) -> None:
        # A server that has gone is not asked again; a nanny is, for its next worker.
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(getattr(self.scheduler.rpc(server), operation)(**arguments), _ASK_S)

    def _stay_awake(self) -> None:
        """Keep Dask's scheduler from shutting an idle cluster down while kernels run there."""
        if self.ledger.leases and self.scheduler.idle_timeout:
            self.idle_timeout, self.scheduler.idle_timeout = self.scheduler.idle_timeout, None
        elif not self.ledger.leases and self.idle_timeout:
            self.scheduler.idle_timeout, self.idle_timeout = self.idle_timeout, None
            self.scheduler.idle_since = None

    async def _sync(self, name: str, asked: str = "", wait_s: float = 0.0) -> bool:
        """Send a worker its claims. True if the worker holds back the whole claim of the lease `asked`."""
        slot = self.ledger.slots.get(name)
        if slot is None or not slot.is_ready:
            return False
        self.number += 1  # calls can overtake each other, and the worker ignores the earlier one then
        call = self.scheduler.rpc(slot.worker).roost_claims(
            claims=self.ledger.claims_of(name), number=self.number, asked=asked, wait_s=wait_s
        )
        try:
            return bool(await asyncio.wait_for(call, _ASK_S + wait_s))
        except (OSError, asyncio.TimeoutError):
            return False

    async def _settle(self, name: str) -> None:
        """Send a worker its claims until it has received them, so that it never holds back released resources."""
        if not await self._sync(name):
            self._spawn(self._settle_later(name))

    async def _settle_later(self, name: str) -> None:
        while name in self.ledger.slots:
            await asyncio.sleep(_AGAIN_S)
            if await self._sync(name):
                return

    def _expire(self, lease: SlotLease) -> None:
        if self.ledger.leases.get(lease.lease_id) is lease and lease.is_wish:
            self._spawn(self.release(lease.lease_id))

    def _spawn(self, coroutine: Any) -> None:
        spawn(coroutine, self._tasks, log)

    def _log(self, action: str, lease: SlotLease) -> None:
        """Log an event for people: `client.get_events("roost")`."""
        described = {"kernel": lease.kernel_id, "user": lease.user, "machine": lease.machine}
        amounts = {"cpus": lease.cpus, "devices": lease.device_ids}
        self.scheduler.log_event(NAME, {"action": action, **described, **amounts})
