"""roost inside a Dask cluster: a plugin in its scheduler, one in each worker, one in each nanny.

They arrive pickled by value: what they need there is distributed and the standard library. All that they say to each
other, and to roost's scheduler, are builtin values.

A lease is granted by the ledger in Dask's scheduler, which knows of kernels alone, and then by the workers, which know
of tasks: a worker takes what is claimed out of the resources that it starts tasks with. It does so before it starts
its first task, so a worker that is started again cannot give to a task what a kernel holds. What a task still has,
the claim waits for, ahead of all tasks that wait for it.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from distributed.diagnostics.plugin import NannyPlugin, SchedulerPlugin, WorkerPlugin

from .dask_ledger import GPU, Held, Ledger, Refused, Slot
from .node_side import Answer, agent_name, bring_up

NAME = "roost"
PROTOCOL = 1
"""Of what is said between these plugins and roost's scheduler: an older one is replaced."""
_WISH_S = 10.0
"""So long what was refused because of tasks is kept free for who asks again."""
_ASK_S = 5.0
_GONE_S = 1.0
"""A scheduler that has not said who it is by then is gone."""
_MISSED_S = 5.0
"""A nanny whose worker has been there so long and that has not told of an agent was not told of this plugin."""
_AGAIN_S = 1.0
_GATHER_S = 0.02
"""Changes of what is free on a worker are told together, after this time."""
_CRUMB = 1e-6
_DIGITS = 6

Amounts = Mapping[str, float]


class OnScheduler(SchedulerPlugin):  # type: ignore[misc,unused-ignore]
    """The ledger, and what roost's schedulers ask Dask's for (`handlers`)."""

    name = NAME
    idempotent = True

    def __init__(self, version: str) -> None:
        self.roost_version = version
        self.ledger = Ledger()
        self.agents: dict[str, Answer] = {}
        self.idle_timeout: Any = None

    def start(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.incarnation = uuid.uuid4().hex
        self.version = 0
        self.number = 0
        self._stamps: dict[str, int] = {}
        self._devices: dict[str, list[str]] = {}
        self._nannies: set[str] = set()
        self._waiting: set[asyncio.Future[None]] = set()
        self._expiry: dict[str, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        before = scheduler.plugins.get(NAME)
        if before is not None:
            self.ledger = Ledger.of(before.ledger.state())
            self.agents, self.idle_timeout = dict(before.agents), before.idle_timeout
            self.number = before.number
        self.ledger.slots.clear()
        for worker in list(scheduler.workers):
            self.add_worker(scheduler, worker)
        scheduler.handlers.update(
            roost_hello=self.hello,
            roost_nodes=self.nodes,
            roost_metrics=self.metrics,
            roost_lease=self.lease,
            roost_release=self.release,
            roost_leases=self.leases,
            roost_agent=self.agent,
            roost_worker=self.on_worker,
            roost_free=self.on_free,
            roost_agent_up=self.on_agent_up,
        )

    # What roost's schedulers ask

    async def hello(self) -> dict[str, Any]:
        """Which roost's plugins these are."""
        return {"protocol": PROTOCOL, "version": self.roost_version}

    async def nodes(self, since: int, incarnation: str, wait_s: float) -> dict[str, Any]:
        """The machines that have changed since that version of that incarnation, None for those that are gone.

        Where there are none, waits for them that long.
        """
        if incarnation != self.incarnation:
            since = -1
        if since >= self.version and wait_s:
            changed = asyncio.get_running_loop().create_future()
            self._waiting.add(changed)
            await asyncio.wait([changed], timeout=wait_s)
            self._waiting.discard(changed)
        return {
            "incarnation": self.incarnation,
            "version": self.version,
            "machines": {name: self._machine(name) for name, stamp in self._stamps.items() if stamp > since},
        }

    async def metrics(self) -> dict[str, Any]:
        """By machine, what its workers use: CPUs, and bytes of memory."""
        found: dict[str, dict[str, float]] = {}
        for worker in self.scheduler.workers.values():
            of_machine = found.setdefault(worker.host, {"cpus": 0.0, "memory_bytes": 0})
            of_machine["cpus"] += worker.metrics.get("cpu", 0.0) / 100
            of_machine["memory_bytes"] += worker.metrics.get("memory", 0)
        return found

    async def lease(
        self, held: dict[str, Any], preferred: Iterable[str], exactly: bool, wait_s: float
    ) -> dict[str, Any]:
        """Claim a slice of a machine: {"device_ids"}, or {"refused"} with a sentence. May be repeated."""
        asked = Held(**{**held, "resources": dict(held["resources"])})
        try:
            lease = self.ledger.take(asked, preferred=list(preferred), exactly=exactly)
        except Refused as refusal:
            return {"refused": str(refusal)}
        if lease.is_wish:
            self._changed(lease)
            granted = await asyncio.gather(
                *(self._sync(slot, lease.lease_id, wait_s) for slot in lease.claims)
            )
            if self.ledger.leases.get(lease.lease_id) is not lease:
                return {"refused": "it was given back meanwhile"}
            if not all(granted):
                self._expire_later(lease)
                return {"refused": f"tasks of the Dask cluster have it on {lease.machine}"}
            lease.is_wish = False
            if (timer := self._expiry.pop(lease.lease_id, None)) is not None:
                timer.cancel()
            self._changed(lease)
            self._log("lease", lease)
        return {"device_ids": lease.device_ids}

    async def release(self, lease_id: str) -> bool:
        """Give a lease back. May be repeated, also where there is none."""
        lease = self.ledger.leases.pop(lease_id, None)
        if (timer := self._expiry.pop(lease_id, None)) is not None:
            timer.cancel()
        if lease is not None:
            self._changed(lease)
            self._log("release", lease)
            await asyncio.gather(*(self._settle(slot) for slot in lease.claims))
        return True

    async def leases(self) -> list[dict[str, Any]]:
        """All leases that are granted; `machine` is empty where no worker of it is left."""
        there = {slot.machine for slot in self.ledger.slots.values()}
        return [
            {
                "lease_id": lease.lease_id,
                "kernel_id": lease.kernel_id,
                "user": lease.user,
                "machine": lease.machine if lease.machine in there else "",
                "cpus": lease.cpus,
                "memory_bytes": lease.memory_bytes,
                "gpus": lease.gpus,
                "resources": lease.resources,
                "device_ids": lease.device_ids,
            }
            for lease in self.ledger.leases.values()
            if not lease.is_wish
        ]

    async def agent(self, machine: str) -> Answer:
        """Have the agent of that machine be found, or started, by a nanny of it."""
        servers = [
            slot.nanny or slot.worker for slot in self.ledger.slots.values() if slot.machine == machine
        ]
        for server in servers:
            try:
                answer: Answer | None = await self.scheduler.rpc(server).roost_bring_up()
            except OSError:
                continue
            if answer is not None:  # else it has not been told of this plugin
                await self.on_agent_up(machine, server, answer)
                return self.agents[machine]
        return {"problem": "no nanny or worker of the Dask cluster that could start it is there now"}

    # What workers and nannies say

    async def on_worker(
        self, worker: str, resources: dict[str, float], devices: list[str] | None, memory_bytes: int
    ) -> dict[str, Any]:
        """A worker is about to start its first task: what it is to hold back, as for its `claims`."""
        slot = next((slot for slot in self.ledger.slots.values() if slot.worker == worker), None)
        if slot is None:
            return {"claims": {}, "number": 0}
        slot.resources, slot.free = dict(resources), dict(resources)
        slot.devices = self._numbered(slot) if devices is None else list(devices)
        slot.memory_bytes = slot.memory_bytes or memory_bytes
        self.ledger.move(slot)
        slot.is_ready = True
        self._show(slot)
        self._tell(slot.machine)
        if slot.nanny not in self._nannies:
            asyncio.get_running_loop().call_later(_MISSED_S, self._check_nanny, slot.nanny)
        self.number += 1
        return {"claims": self.ledger.claims_of(slot.name), "number": self.number}

    async def on_free(self, worker: str, free: dict[str, float]) -> None:
        """What neither tasks nor leases have of a worker; a lease that waits is none."""
        for slot in self.ledger.slots.values():
            if slot.worker == worker:
                slot.free = dict(free)
                self._tell(slot.machine)

    async def on_agent_up(self, machine: str, server: str, answer: Answer) -> None:
        """Where the agent of a machine listens, or why there is none. `told` is another each time."""
        self._nannies.add(server)
        self.agents[machine] = {**answer, "told": uuid.uuid4().hex}
        self._tell(machine)

    # What Dask's scheduler says

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
        self.ledger.slots[slot.name] = slot  # what it has of GPUs and the like it says itself: `on_worker`
        self._tell(slot.machine)

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        for slot in [slot for slot in self.ledger.slots.values() if slot.worker == worker]:
            del self.ledger.slots[slot.name]
            self._tell(slot.machine)

    def log_event(self, topic: str, msg: Any) -> None:
        if isinstance(msg, dict) and msg.get("action") == "worker-status-change":
            for slot in self.ledger.slots.values():
                if slot.worker == topic:
                    slot.is_leaving = self.scheduler.workers[topic].status.name == "closing_gracefully"
                    self._tell(slot.machine)

    def valid_workers_downscaling(self, scheduler: Any, workers: list[Any]) -> list[Any]:
        """A machine with kernels is not taken by adaptive scaling."""
        held = {lease.machine for lease in self.ledger.leases.values()}
        return [worker for worker in workers if worker.host not in held]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    # How that is done

    def _machine(self, name: str) -> dict[str, Any] | None:
        slots = self.ledger.of_machine(name)
        if not slots:
            return None
        staying = [slot for slot in slots if not slot.is_leaving]
        leases = [lease for lease in self.ledger.leases_on(name) if not lease.is_wish]
        totals: dict[str, float] = {}
        free: dict[str, float] = {}
        for slot in staying or slots:
            for what, amount in slot.resources.items():
                totals[what] = totals.get(what, 0.0) + amount
                left = amount - sum(lease.claims.get(slot.name, {}).get(what, 0.0) for lease in leases)
                free[what] = free.get(what, 0.0) + max(0.0, min(slot.free.get(what, 0.0), left))
        by_device = self.ledger.devices(name)
        return {
            "threads": sum(slot.threads for slot in staying or slots),
            "memory_bytes": sum(slot.memory_bytes for slot in staying or slots),
            "resources": totals,
            "free": free,
            "devices": [device for device, slot in by_device.items() if slot in (staying or slots)],
            "shares": self.ledger.shares(name),
            "cpus_promised": sum(lease.cpus for lease in leases),
            "memory_promised_bytes": sum(lease.memory_bytes for lease in leases),
            "leases": [lease.lease_id for lease in leases],
            "is_draining": not staying,
            "agent": self.agents.get(name, {}),
        }

    def _tell(self, machine: str) -> None:
        self.version += 1
        self._stamps[machine] = self.version
        for changed in self._waiting:
            if not changed.done():
                changed.set_result(None)

    def _changed(self, lease: Held) -> None:
        for slot in lease.claims:
            if slot in self.ledger.slots:
                self._show(self.ledger.slots[slot])
        self._stay_awake()
        self._tell(lease.machine)

    def _show(self, slot: Slot) -> None:
        """Tasks are sent where their resources are: Dask's scheduler is to know of those that are left for them."""
        state = self.scheduler.workers.get(slot.worker)
        if state is None or not slot.is_ready:
            return
        leased, is_more = self.ledger.leased(slot.name), False
        for name, amount in slot.resources.items():
            left = max(0.0, round(amount - leased.get(name, 0.0), _DIGITS))
            is_more = is_more or left > state.resources.get(name, 0.0)
            state.resources[name] = left
            self.scheduler.resources.setdefault(name, {})[slot.worker] = left
        if is_more:
            tasks = self.scheduler.bulk_schedule_unrunnable_after_adding_worker(state)
            self.scheduler.transitions(tasks, stimulus_id=f"roost-{time.time()}")

    def _check_nanny(self, nanny: str) -> None:
        """Dask tells of plugins only those nannies whose workers are there at that moment."""
        plugin = self.scheduler.nanny_plugins.get(NAME)
        is_there = any(slot.nanny == nanny for slot in self.ledger.slots.values())
        if nanny and nanny not in self._nannies and is_there and plugin is not None:
            self._spawn(self._tell_nanny(nanny, plugin))

    async def _tell_nanny(self, nanny: str, plugin: bytes) -> None:
        try:
            await asyncio.wait_for(self.scheduler.rpc(nanny).plugin_add(plugin=plugin, name=NAME), _ASK_S)
        except (OSError, asyncio.TimeoutError):
            pass  # it has gone, or is asked with the next of its workers

    def _stay_awake(self) -> None:
        """A cluster that only kernels use is not idle."""
        if self.ledger.leases and self.scheduler.idle_timeout:
            self.idle_timeout, self.scheduler.idle_timeout = self.scheduler.idle_timeout, None
        elif not self.ledger.leases and self.idle_timeout:
            self.scheduler.idle_timeout, self.idle_timeout = self.idle_timeout, None
            self.scheduler.idle_since = None

    def _numbered(self, slot: Slot) -> list[str]:
        """Ids for the GPUs of a worker that does not say which it sees: the next numbers on its machine."""
        taken = {device for other in self.ledger.of_machine(slot.machine) for device in other.devices}
        known = self._devices.get(slot.name, [])
        if known and not taken.intersection(known):
            return known
        count = math.ceil(slot.resources.get(GPU, 0.0))
        numbers = (str(number) for number in range(len(taken) + count) if str(number) not in taken)
        self._devices[slot.name] = [next(numbers) for _ in range(count)]
        return self._devices[slot.name]

    async def _sync(self, name: str, asked: str = "", wait_s: float = 0.0) -> bool:
        """Tell a worker what it is to hold back; whether it does so for the lease that is asked for."""
        slot = self.ledger.slots.get(name)
        if slot is None or not slot.is_ready:
            return False
        self.number += 1
        call = self.scheduler.rpc(slot.worker).roost_claims(
            claims=self.ledger.claims_of(name), number=self.number, asked=asked, wait_s=wait_s
        )
        try:
            return bool(await asyncio.wait_for(call, _ASK_S + wait_s))
        except (OSError, asyncio.TimeoutError):
            return False

    async def _settle(self, name: str) -> None:
        """Tell it for as long as that worker is there: it must not hold back for ever what nobody has."""
        if not await self._sync(name):
            self._spawn(self._settle_later(name))

    async def _settle_later(self, name: str) -> None:
        while name in self.ledger.slots:
            await asyncio.sleep(_AGAIN_S)
            if await self._sync(name):
                return

    def _expire_later(self, lease: Held) -> None:
        if (timer := self._expiry.pop(lease.lease_id, None)) is not None:
            timer.cancel()
        self._expiry[lease.lease_id] = asyncio.get_running_loop().call_later(_WISH_S, self._expire, lease)

    def _expire(self, lease: Held) -> None:
        if self.ledger.leases.get(lease.lease_id) is lease and lease.is_wish:
            self._spawn(self.release(lease.lease_id))

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _log(self, action: str, lease: Held) -> None:
        """For people: `client.get_events("roost")`."""
        said = {"kernel": lease.kernel_id, "user": lease.user, "machine": lease.machine, "cpus": lease.cpus}
        self.scheduler.log_event(NAME, {"action": action, **said, "devices": lease.device_ids})


class OnWorker(WorkerPlugin):  # type: ignore[misc,unused-ignore]
    """Holds back from tasks what leases claim. `agents`: for workers without a nanny."""

    name = NAME
    idempotent = True

    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    async def setup(self, worker: Any) -> None:
        self.worker = worker
        self._number = -1
        self._moved = asyncio.Event()
        self._told: Amounts | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        # What an earlier plugin of this worker has claimed stands: by lease, and those of them that are granted.
        self._claims, self._granted = worker.__dict__.setdefault("_roost_claims", ({}, set()))
        worker.handlers["roost_claims"] = self.claims
        if not worker.nanny:
            worker.handlers["roost_bring_up"] = self.bring_up
        while True:
            try:
                answer = await asyncio.wait_for(
                    worker.scheduler.roost_worker(
                        worker=worker.contact_address or worker.address,
                        resources=dict(worker.state.total_resources),
                        devices=self._devices(),
                        memory_bytes=_machine_memory(),
                    ),
                    _ASK_S,
                )
                break
            except (OSError, asyncio.TimeoutError):
                await asyncio.sleep(_AGAIN_S)
        await self.claims(**answer)
        self._tell()
        if not worker.nanny:
            self._spawn(self._agents.come(worker))

    async def bring_up(self) -> Answer:
        return await self._agents.bring_up(self.worker)

    async def claims(
        self, claims: dict[str, dict[str, float]], number: int, asked: str = "", wait_s: float = 0.0
    ) -> bool:
        """Hold back just this; whether `asked` has all of it, after waiting for tasks to end for so long."""
        if number > self._number:
            self._number = number
            self._apply(claims)
        if not asked:
            return True
        give_up_at = time.monotonic() + wait_s
        while asked in self._claims and asked not in self._granted and time.monotonic() < give_up_at:
            self._moved.clear()
            try:
                await asyncio.wait_for(self._moved.wait(), give_up_at - time.monotonic())
            except asyncio.TimeoutError:
                break
        return asked in self._granted

    def transition(self, key: Any, start: Any, finish: Any, **_: Any) -> None:
        if self.worker.state.total_resources:
            self._look()

    async def teardown(self, worker: Any) -> None:
        if self._telling is not None:
            self._telling.cancel()
        if not worker.nanny:
            await self._agents.end(worker)

    def _apply(self, claims: dict[str, dict[str, float]]) -> None:
        available = self.worker.state.available_resources
        for lease_id in self._claims.keys() - claims.keys():
            for name, amount in self._claims.pop(lease_id).items():
                available[name] = round(available[name] + amount, _DIGITS)
            self._granted.discard(lease_id)
        for lease_id, claim in claims.items():
            if lease_id not in self._claims and claim.keys() <= available.keys():
                self._claims[lease_id] = dict(claim)
                for name, amount in claim.items():
                    available[name] = round(available[name] - amount, _DIGITS)
        self._look()
        self._hand_back()
        self._wake_tasks()

    def _look(self) -> None:
        """Grant claims in their order, as far as what tasks have left goes."""
        left = dict(self.worker.state.available_resources)
        waiting = {name: claim for name, claim in self._claims.items() if name not in self._granted}
        for claim in waiting.values():
            for name, amount in claim.items():
                left[name] += amount
        for lease_id, claim in waiting.items():
            if any(left[name] < amount - _CRUMB for name, amount in claim.items()):
                break
            self._granted.add(lease_id)
            for name, amount in claim.items():
                left[name] -= amount
            self._moved.set()
        if left != self._told and self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(_GATHER_S, self._tell)

    def _tell(self) -> None:
        self._telling = None
        left = dict(self.worker.state.available_resources)
        for lease_id, claim in self._claims.items():
            if lease_id not in self._granted:
                for name, amount in claim.items():
                    left[name] += amount
        self._told = {name: max(0.0, round(amount, _DIGITS)) for name, amount in left.items()}
        self._spawn(self._say(self._told))

    async def _say(self, free: Amounts) -> None:
        try:
            address = self.worker.contact_address or self.worker.address
            await self.worker.scheduler.roost_free(worker=address, free=dict(free))
        except OSError:
            self._told = None  # with the next change

    def _hand_back(self) -> None:
        """Tasks that came before a kernel, and wait for what it has now, are to run elsewhere."""
        from distributed.worker_state_machine import CancelComputeEvent

        left = dict(self.worker.state.total_resources)
        for claim in self._claims.values():
            for name, amount in claim.items():
                left[name] -= amount
        for task in list(self.worker.state.constrained):
            if any(amount > left[name] + _CRUMB for name, amount in task.resource_restrictions.items()):
                stimulus = f"roost-{time.time()}"
                self.worker.handle_stimulus(CancelComputeEvent(key=task.key, stimulus_id=stimulus))
                self.worker.batched_stream.send(
                    {"op": "reschedule", "key": task.key, "stimulus_id": stimulus}
                )

    def _wake_tasks(self) -> None:
        """Start tasks that have waited for what is free again."""
        from distributed.worker_state_machine import UnpauseEvent

        if self.worker.state.running:
            self.worker.handle_stimulus(UnpauseEvent(stimulus_id=f"roost-{time.time()}"))

    def _devices(self) -> list[str] | None:
        """The GPUs that this worker's tasks use, where its environment says so: the first of those that they see."""
        count = math.ceil(self.worker.state.total_resources.get(GPU, 0.0))
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        return None if seen is None else [name.strip() for name in seen.split(",") if name.strip()][:count]

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class OnNanny(NannyPlugin):  # type: ignore[misc,unused-ignore]
    """Brings the machine's agent up. It is this nanny's neighbour, not its child: it outlives all workers."""

    name = NAME
    idempotent = True
    restart = False

    def __init__(self, agents: Agents) -> None:
        self._agents = agents

    async def setup(self, nanny: Any) -> None:
        async def bring() -> Answer:
            return await self._agents.bring_up(nanny)

        nanny.handlers["roost_bring_up"] = bring
        self._coming = asyncio.get_running_loop().create_task(self._agents.come(nanny))

    async def teardown(self, nanny: Any) -> None:
        await self._agents.end(nanny)


class Agents:
    """How an agent is brought up, by a nanny or by a worker that has none (`server`)."""

    def __init__(
        self, *, archive: bytes, digest: str, settings: Mapping[str, Any], grace_s: float, python: str
    ) -> None:
        self._node_side = (archive, digest)
        self._settings = dict(settings)
        self._grace_s = grace_s
        self._python = python
        self._cluster = ""

    async def come(self, server: Any) -> None:
        """Bring it up, and say so to Dask's scheduler."""
        self._cluster = await _scheduler_id(server)
        answer = await self.bring_up(server)
        try:
            await server.scheduler.roost_agent_up(
                machine=_host(server.address), server=server.address, answer=answer
            )
        except OSError:
            pass  # roost's scheduler asks for it

    async def end(self, server: Any) -> None:
        """The server ends. If that is because its scheduler is gone, kernels stay, though another may be there now."""
        if await _scheduler_id(server) != self._cluster:
            await self.bring_up(server, is_gone=True)

    async def bring_up(self, server: Any, *, is_gone: bool = False) -> Answer:
        """Its address and keys, and what kernels find in their `environment`."""
        import json

        machine, cluster = _host(server.address), server.scheduler.address
        settings = {**self._settings, "address": socket.gethostbyname(machine)}
        manager = {
            "name": "Dask",
            "pid": os.getpid(),
            "address": cluster.rpartition("://")[2],
            "grace_s": self._grace_s,
            "is_gone": is_gone,
        }
        try:
            answer = await asyncio.to_thread(
                bring_up,
                *self._node_side,
                agent_name("dask", cluster, machine),
                json.dumps(settings),
                manager,
                self._python,
                dict(os.environ),
            )
        except OSError as problem:
            return {"problem": str(problem)}
        return {**answer, "environment": _environment(server.security, cluster)}


async def _scheduler_id(server: Any) -> str:
    """Which Dask scheduler answers now; empty if none does."""
    try:
        return str((await asyncio.wait_for(server.scheduler.identity(), _GONE_S))["id"])
    except (OSError, asyncio.TimeoutError):
        return ""


def _environment(security: Any, cluster: str) -> dict[str, str]:
    """With this `Client()` finds the cluster; the files are those of the worker, as they are on this machine."""
    found = {"DASK_SCHEDULER_ADDRESS": cluster}
    if cluster.startswith("tls://"):
        tls = {
            "CA_FILE": security.tls_ca_file,
            "CLIENT__CERT": security.tls_worker_cert,
            "CLIENT__KEY": security.tls_worker_key,
        }
        found |= {f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(value) for name, value in tls.items() if value}
        found["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] = "True"
    return found


def _host(address: str) -> str:
    from distributed.comm import get_address_host

    return str(get_address_host(address))


def _machine_memory() -> int:
    """For a worker without a limit."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT)
