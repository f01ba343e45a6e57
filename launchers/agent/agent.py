"""The operations of the agent's protocol, on its ledger and its kernels."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from roost.launchers.daemon.daemon import Hold, name_owner
from roost.launchers.daemon.process import is_running
from roost.launchers.daemon.supervision import keep_running
from roost.launchers.daemon.tasks import Timers, cancel_all, in_thread, spawn
from roost.launchers.machine_book.book import Conflict
from roost.launchers.protocol import messages
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.launch_checks import find_impossible
from roost.launchers.protocol.messages import KernelProcess, KernelUse, Lease
from roost.launchers.protocol.process_context import UNKNOWN, ProcessContext
from roost.launchers.protocol.process_log import hide_output
from roost.launchers.protocol.rpc import RemoteError, ServerKeys
from roost.launchers.protocol.rpc_server import PEER, Operation, RpcServer
from roost.placement.model import Node

from .launch.kernels import Kernels
from .launch.launch_changes import LaunchChanges, build_node_environment
from .launch.place import Place
from .launch.start import writing
from .leases.address_report import report_address
from .leases.address_watch import watch_address
from .leases.lease_rules import LeaseRules
from .leases.ledger import LeaseLedger
from .leases.machine_share import MachineShare
from .leases.manager_watch import ManagerWatch
from .limits.limits import Limits, name_group
from .limits.usage import RunningKernel, UsageMeter
from .machine.disk_room import DiskRoom
from .machine.node_metrics import NodeMetrics
from .machine.status_feed import StatusFeed
from .warm.kernel_command import parse_ipykernel_command
from .warm.zygote_pool import ZygotePool

log = logging.getLogger(__name__)

_QUIET_GPU = 0.02
"""A GPU that is busy for less than this share of the time is quiet."""
_SPARE_BYTES = 32 << 20
"""How much memory counts for one spare: more than a spare with the usual preloads takes."""
_UNREACHED_S = 60.0
"""How long kernels in a deleted folder live on without a subscribed scheduler. No other scheduler finds them."""
_UNREACHED = "unreached"  # the key of the timer for that
_ZYGOTE_LOG = "zygote.log"
_REHEARSALS = "rehearsal-*"  # see zygote/rehearsal.py
_SUBREAPER = (
    "{0} is set up as a subreaper: it ends all processes that its jobs leave behind, so kernels would end with it. "
    "Start {0} without that"
)


class Agent:
    """The operations of the agent's protocol, on its ledger and kernels.

    The agent runs until `left` is set.
    """

    def __init__(
        self,
        folder: Path,
        settings: AgentSettings,
        place: Place,
        keys: ServerKeys,
    ) -> None:
        self._folder = folder
        self._held: Hold | None = None
        self._settings = settings
        self._place = place
        machine = self._machine = NodeMetrics(settings)
        devices = machine.devices.read()
        self._ledger = LeaseLedger(
            folder / "leases", cpus=machine.cpus, memory_bytes=machine.memory_bytes, devices=devices
        )
        book = machine.open_book(name_owner(folder)) if settings.divides_machine else None
        self._usage, self._measuring = UsageMeter(place.session), asyncio.Lock()
        self._timers = Timers()
        self._share = MachineShare(self._ledger, book, gpu_ids=machine.devices.ids, timers=self._timers)
        feed = self._feed = StatusFeed(self._status, self._report_status, self._timers)
        self._limits = Limits(
            name_group(name_owner(folder)),
            settings.enforcement,
            place.session,
            cpus=machine.cpus,
            own_group=place.own_group,
            list_others=self._list_unlimited,
            on_near=lambda lease_id, sentence: self._publish("warned", lease_id=lease_id, reason=sentence),
        )
        self._zygotes = ZygotePool(
            settings.forking,
            output=folder / _ZYGOTE_LOG,
            scratch=folder,
            on_spawned=self._limits.add_other,
            on_problems=feed.begin,  # reports them now
        )
        self._room = DiskRoom(folder, self._list_logs)
        self._changes = LaunchChanges(settings, self._limits, machine.devices, has_devices=bool(devices))
        self._kernels = Kernels(
            folder / "kernels",
            self._zygotes,
            self._room,
            self._limits,
            prepare=self._changes.prepare,
            on_launched=self._on_launched,
            on_exited=self._on_exited,
            place=place,
            book=book,
        )
        self.left = asyncio.Event()
        self.leases = LeaseRules(
            self._ledger,
            self._kernels,
            clear=self._clear,
            publish=self._publish,
            on_change=self._limit_spares,
            leave=self.left.set,
            idle_exit_s=settings.idle_exit_s,
            exit_after_release_s=place.exit_after_release_s,
        )
        self._managed = ManagerWatch(
            folder / "manager.json",
            self.leases.lose_all,
            lambda reason: self._publish("lost", reason=reason, ends_at=self._managed.ends_at),
            promised_s=lambda: max((entry.grace_s for entry in self._ledger.entries()), default=0.0),
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self.server = RpcServer(
            {
                "reserve": Operation(self._reserve, messages.Reserve),
                "release": Operation(self._release),
                "transfer": Operation(self._transfer),
                "manage": Operation(self._manage, messages.Manager),
                "admit": Operation(self._admit),
                "launch": Operation(self._launch, messages.Launch),
                "signal": Operation(self._signal),
                "stop": Operation(self._kernels.stop),
                "list": Operation(self._list),
                "logs": Operation(self._logs),
                "journal": Operation(self._kernels.journal),
                "status": Operation(self._status),
                "stats": Operation(self._stats),
                "warm": Operation(self._warm),
                "leave": Operation(self._leave),
            },
            keys=keys,
            on_subscribed=self._on_subscribed if place.speaks_for_node else lambda: None,
        )

    async def adopt(self) -> None:
        for left in self._folder.glob(_REHEARSALS):  # by a zygote of an earlier agent that was killed
            shutil.rmtree(left, ignore_errors=True)
        # Kernels first: a kernel whose lease is gone ends, and no lease expires whose kernel lives.
        self._kernels.adopt(self._ledger)
        self._room.cut()  # the next files need room
        pids = self._kernels.pids()
        self._limits.adopt(
            {entry.lease.id: (entry.lease, pids.get(entry.lease.id, 0)) for entry in self._ledger.entries()}
        )
        keep_running(self._limits.watch, self._tasks, log, "the watch of memory limits")
        with writing(self._folder):
            taken = await self._share.adopt(self._kernels.running())
        self.leases.adopt()
        for lease_id in taken:
            log.warning(
                "lease=%s is given back: another user has taken its slice, while no agent was here", lease_id
            )
            spawn(self.leases.release(lease_id), self._tasks, log)
        self._managed.resume()

    async def begin(self, assignment: messages.Assignment) -> None:
        """Record the assigned lease and begin its launch, unless the ledger has the lease. Raises `RemoteError`."""
        if assignment.reserve.lease.id in self._ledger:
            return
        await self._reserve(assignment.reserve)
        settings = self._settings
        if settings.daemon_address:
            watch = partial(
                watch_address,
                settings.daemon_address,
                settings.daemon_name,
                self._folder,
                settings.daemon_grace_s,
                self.leases.lose_all,
            )
            keep_running(watch, self._tasks, log, "the watch of the manager's daemon")

    def report(self, assignment: messages.Assignment, endpoint: str) -> None:
        """Report to the service that this agent listens at `endpoint`."""
        port = int(endpoint.rpartition(":")[2])
        spawn(report_address(assignment, self._settings.address, port), self._tasks, log)

    def watch_folder(self, held: Hold) -> None:
        """Watch this agent's folder. If it was deleted, start no kernel, and leave once there are no leases.

        A minute after the last scheduler has gone, all leases are lost. A daemon with an address may remove the folder
        of its agent, which then loses its leases: see `watch_address`.
        """
        self._held = held
        if self._settings.daemon_address:
            return
        watch = partial(held.watch, is_needed=self._is_needed_without_folder, leave=self.left.set)
        keep_running(watch, self._tasks, log, "the watch of the agent's folder")

    def _is_needed_without_folder(self) -> bool:
        """True while there are leases. Called every two seconds once the folder was deleted."""
        if self.server.subscribers or not self._place.speaks_for_node:  # the service knows a pod's address
            self._timers.cancel(_UNREACHED)
        elif _UNREACHED not in self._timers:
            self._timers.later(
                _UNREACHED_S, lambda: spawn(self._lose_unreached(), self._tasks, log), key=_UNREACHED
            )
        return not self._ledger.is_empty

    async def _lose_unreached(self) -> None:
        if self._held is None or self._held.is_intact or self.server.subscribers:
            return  # the folder was moved back, or a scheduler is there again
        reason = "its folder was deleted"
        log.warning("all leases are lost: %s", reason)
        await self.leases.lose_all(reason)

    async def close(self) -> None:
        self._publish("leaving")
        self._timers.close()
        await self.leases.close()
        await cancel_all(self._tasks)
        self._managed.close()
        await self._kernels.close()
        self._room.close()
        await self._zygotes.close()
        await self._limits.close(has_leases=not self._ledger.is_empty)
        await self.server.close()
        self._share.unwatch()
        self._machine.devices.close()
        self._changes.close()

    async def _reserve(self, request: messages.Reserve) -> Lease:
        for name in (request.lease.id, request.lease.kernel_id):
            if not name.isprintable():  # it would forge lines in the log
                raise RemoteError("bad_request", f"an id has characters that cannot be shown: {name!a:.80}")
        if request.lease.id not in self._ledger:
            # After a conflict, a scheduler would count a slice as free, although its manager has granted it.
            self._check_folder("internal" if request.is_granted else "conflict")
        is_new = False

        def record(granted: messages.Reserve) -> Lease:
            nonlocal is_new
            is_new = granted.lease.id not in self._ledger
            return self._ledger.reserve(granted)

        try:
            with writing(self._folder):
                lease = await self._share.reserve(request, record)
        except Conflict as problem:
            raise RemoteError("conflict", str(problem)) from None
        if is_new:
            self.leases.begin(request)
        if request.launch is not None:
            self._begin_launch(request.launch)
        return lease

    def _check_folder(self, kind: str) -> None:
        """Raise `RemoteError` if this agent's folder was deleted: the next agent would not find its new kernels."""
        if self._held is not None and not self._held.is_intact:
            remedy = "no kernel starts here until those that run have ended"
            raise RemoteError(kind, f"{self._folder} was deleted: {remedy}")

    async def _clear(self, lease_id: str) -> None:
        """Remove what a lease has besides its entry in the ledger."""
        await self._limits.release(lease_id)
        self._share.give_back(lease_id)

    def _transfer(self, lease_id: str, owner: messages.Owner) -> None:
        with writing(self._folder):
            self._ledger.transfer(lease_id, owner)

    def _list_logs(self) -> list[Path]:
        logs = self._kernels.find_logs()
        return [*logs, self._folder / _ZYGOTE_LOG] if logs else []

    def _list_unlimited(self) -> set[int]:
        """Return the pids of the zygotes, and of all processes of kernels without limits."""
        pids = [pid for lease_id, pid in self._kernels.pids().items() if self._limits.get(lease_id) is None]
        return {*self._zygotes.pids, *(member for member, _ in self._place.session.find_members(pids))}

    def _limit_spares(self) -> None:
        """Limit the zygotes' spares to the number that fits in memory that is neither promised nor in use."""
        room_bytes = self._machine.find_free_memory(self._ledger, self._share.view)
        zygotes = max(1, len(self._zygotes.interpreters()))
        self._zygotes.limit_spares(room_bytes // _SPARE_BYTES // zygotes)

    async def _release(self, lease_id: str) -> None:
        """Give a lease back and stop its kernel."""
        self._share.withdraw(lease_id)
        await self.leases.release(lease_id)

    def _manage(self, manager: messages.Manager) -> None:
        if not is_running(manager.pid, manager.process_started_at):
            raise RemoteError("bad_request", f"no process {manager.pid} of {manager.name} runs here")
        # This agent is a child of the manager, or of a job of it (then Ray's workers are subreapers, too).
        if manager.pid in [parent.pid for parent in psutil.Process().parents()]:
            self.left.set()
            raise RemoteError("bad_request", _SUBREAPER.format(manager.name))
        self._managed.watch(manager)
        self.leases.stay()

    def _admit(self, client: str) -> None:
        self.server.admit(client)

    def _begin_launch(self, request: messages.Launch) -> None:
        """Launch a kernel, and only log a failure. A call with the same launch joins it and gets the error."""

        async def launch() -> None:
            try:
                await self._launch(request)
            except RemoteError as problem:
                log.info("kernel=%s its launch failed: %s", request.kernel_id, hide_output(problem))

        spawn(launch(), self._tasks, log)

    async def _launch(self, request: messages.Launch) -> KernelProcess:
        self._check_folder("internal")
        lease = self.leases.occupy(request.lease_id, request.kernel_id)
        try:
            return await self._kernels.launch(request, lease)
        finally:
            self.leases.let_expire(request.lease_id)

    def _signal(self, kernel_id: str, signum: int) -> dict[str, bool]:
        if not 0 <= signum < signal.NSIG:
            raise RemoteError("bad_request", f"{signum} is no signal")
        return {"delivered": self._kernels.signal(kernel_id, signum)}

    def _list(self) -> messages.Holdings:
        leases = tuple(entry.lease for entry in self._ledger.entries())
        return messages.Holdings(leases=leases, kernels=self._kernels.list(), ends_at=self._managed.ends_at)

    def _logs(self, kernel_id: str, tail_bytes: int = 65_536) -> dict[str, str]:
        return {"text": self._kernels.log_text(kernel_id, max(0, min(tail_bytes, 1 << 20)))}

    def _status(self) -> Node:
        self._share.look()
        return self._describe()

    def _describe(self) -> Node:
        """Return the node, with what others held at the last look."""
        status = self._machine.status(self._ledger, self._share.view)
        if self._share.is_outdated:
            self.leases.leave_when_empty()
        self._limit_spares()
        warm = tuple(sorted(set(self._zygotes.interpreters().values())))
        problems = (*self._zygotes.problems(), *self._share.problems())
        return replace(
            status,
            warm=warm,
            is_draining=self._managed.is_cut_off,
            enforcement=self._limits.describe(),
            problems=problems,
        )

    async def _stats(self) -> tuple[KernelUse, ...]:
        running = {kernel.pid: kernel for kernel in self._kernels.list() if kernel.is_running}
        busy = {device.id for device in self._machine.devices.read() if (device.used or 0.0) > _QUIET_GPU}
        measured = {
            pid: RunningKernel(
                kernel_id=kernel.kernel_id,
                held=self._limits.get(kernel.lease_id),
                is_on_busy_gpu=not busy.isdisjoint(kernel.device_ids),
            )
            for pid, kernel in running.items()
        }
        async with self._measuring:  # in a thread: with a thousand kernels it takes half a second
            uses = await in_thread(
                lambda: self._usage.read(measured, self._machine.devices.memory_by_pid), name="roost-use"
            )
        return tuple(map(self._with_activity, uses))

    def _with_activity(self, use: KernelUse) -> KernelUse:
        state, idle_s = self._kernels.activity(use.kernel_id)
        return replace(use, execution_state=state, idle_s=idle_s)

    async def _warm(
        self, argv: tuple[str, ...], env: Mapping[str, str], context: ProcessContext = UNKNOWN
    ) -> None:
        """Start a zygote for kernels with this command and environment, if such kernels can be forked."""
        if impossible := find_impossible(argv, env):
            raise RemoteError("bad_command", impossible)
        command = parse_ipykernel_command(argv)
        if command is not None:
            await self._zygotes.warm(
                command,
                {**build_node_environment(), **env} if self._settings.is_remote else env,
                context=context,
            )

    def _leave(self) -> None:
        self._timers.later(0.05, self.left.set)  # after the answer has been sent

    def _on_launched(self, process: KernelProcess) -> None:
        """Report the kernel to all but the scheduler that has launched it, which gets it as its answer."""
        event = messages.AgentEvent(kind="launched", lease_id=process.lease_id, kernel=process)
        self.server.publish(event, but=PEER.get())

    def _on_exited(self, process: KernelProcess) -> None:
        self.leases.let_expire(process.lease_id)

        def report() -> None:
            self._publish("exited", lease_id=process.lease_id, kernel=process)

        if self.left.is_set():  # an end by the manager is reported already
            report()
        else:
            self._place.report_exit(process.exit_code, report)

    def terminate(self) -> None:
        """Leave, because the machine or the cluster manager has sent a signal."""
        self._place.terminate(self.leases)
        self.left.set()

    def _on_subscribed(self) -> None:
        self._share.watch(lambda: self._report_status(self._status()))
        self._feed.begin()

    def _report_status(self, status: Node) -> bool:
        self._publish("status", node=status)
        if not self.server.subscribers:
            self._share.unwatch()
        return bool(self.server.subscribers)

    def _publish(self, kind: Any, **fields: Any) -> None:
        # The node arrives before the answer to the call that has changed the ledger. A grant has just looked.
        if kind in ("reserved", "released") and self._place.speaks_for_node:
            fields["node"] = self._describe() if kind == "reserved" else self._status()
        self.server.publish(messages.AgentEvent(kind=kind, **fields))
