"""The findings of `roost doctor`: disagreements between kernels, leases and agents, and policies that fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from shlex import quote

from roost.launchers.daemon.supervision import list_failures
from roost.placement import Snapshot
from roost.placement.model.format import format_age, format_count
from roost.placement.model.node import MEMORY_ONLY
from roost.placement.shipped_policies import ENTRY_POINTS
from roost.scheduler.errors import BackendUnavailable, RoostError
from roost.scheduler.messages import Finding, format_names
from roost.scheduler.policies.catalog import FALLBACK, PolicyCatalog

from .backend_access import BackendAccess
from .ender import KernelEnder
from .kernel_record import KernelRecord, Phase
from .kernel_table import KernelTable
from .owner_watch import OwnerWatch
from .reconcile import Reading, Reconciler

_FIX = "run `roost doctor --fix`"


@dataclass(frozen=True, slots=True)
class _Disagreement:
    """A disagreement between kernels, leases and processes.

    `repair` ends it, and `fix` says what `repair` does.
    """

    what: str
    fix: str
    repair: Callable[[], Awaitable[object]]


class Doctor:
    """Compares kernels, leases and processes; `repair` ends the disagreements."""

    def __init__(
        self,
        access: BackendAccess,
        table: KernelTable,
        ender: KernelEnder,
        reconciler: Reconciler,
        owners: OwnerWatch,
        policies: PolicyCatalog,
    ) -> None:
        self._access = access
        self._table = table
        self._ender = ender
        self._reconciler = reconciler
        self._owners = owners
        self._policies = policies

    async def diagnose(self) -> list[Finding]:
        """Return all findings, in no fixed order; at least one of level ok if nothing is wrong.

        Changes nothing.
        """
        reading = await self._reconciler.read(only_own=False)
        found: list[Finding] = [
            {"level": "error", "what": each.what, "do": _FIX, "fix": each.fix}
            for each in self._compare(reading)
        ]
        agrees = not found
        for setting, problem in (await self._policies.check_configuration()).items():
            what, do = f"{setting}: {problem.rstrip('.')}", f"correct {setting}, or the file that it names"
            found.append({"level": "error", "what": what, "do": do})
        for what, problem in sorted(list_failures().items()):
            do = "report this as a defect of roost, with the service's log"
            found.append(
                {"level": "error", "what": f"{what} fails, and is tried again ({problem})", "do": do}
            )
        found += self._find_forgotten()
        about_cluster = await self._ask_cluster(reading)
        found += about_cluster
        found += await self._find_broken_packages()
        for name, problem in sorted(self._policies.failed.items()):
            do = f"correct it: until then {FALLBACK} ranks the nodes"
            found.append({"level": "warning", "what": f"policy {name} {problem}", "do": do})
        if agrees and not any(each["level"] == "error" for each in about_cluster):
            found += self._report_agreement(reading)
        return found

    def _report_agreement(self, reading: Reading) -> list[Finding]:
        """Return the finding that nothing disagrees; none if an agent is silent, or if leases are lost.

        It is about kernels only: settings and drained nodes have findings of their own.
        """
        if self._find_unreachable(reading) or any(lease.state == "lost" for lease in reading.leases):
            return []
        kernels = format_count(len(self._table.records), "kernel")
        ended = sum(record.phase is Phase.EXITED for record in self._table.records.values())
        waiting = sum(record.ticket is not None for record in self._table.records.values())
        if parts := [
            f"{number} {what}" for number, what in ((ended, "ended"), (waiting, "in the queue")) if number
        ]:
            kernels += f" ({', '.join(parts)})"
        leases = format_count(len({lease.id for lease in reading.leases}), "lease")
        running = sum(process.is_running for process in reading.processes.values())
        processes = format_count(running, "process", "processes")
        return [{"level": "ok", "what": f"{kernels}, {leases} and {processes} agree", "do": ""}]

    async def _find_broken_packages(self) -> list[Finding]:
        """Return a warning for each policy of an installed package that cannot be used."""
        do = f"repair or remove the package that has this entry point of the group {ENTRY_POINTS}"
        return [
            {"level": "warning", "what": f"policy {name!r:.80}: {problem.rstrip('.')}", "do": do}
            for name, problem in (await self._policies.check_installed()).items()
        ]

    async def repair(self) -> list[Finding]:
        """Repair all disagreements. Return a finding for each repair, and then the findings of `diagnose`."""
        steps: list[Finding] = []
        for each in self._compare(await self._reconciler.read(only_own=False)):
            try:
                await each.repair()
            except RoostError as problem:
                steps.append({"level": "error", "what": each.what, "do": f"it cannot be repaired: {problem}"})
            else:
                steps.append({"level": "fixed", "what": each.what, "do": "", "fix": each.fix})
        return steps + await self.diagnose()

    def _compare(self, reading: Reading) -> Iterator[_Disagreement]:
        """Yield what disagrees: leases without a kernel, kernels without a lease, kernels without a process."""
        table = self._table
        lease_ids = {lease.id for lease in reading.leases}
        running = {process.kernel_id for process in reading.processes.values() if process.is_running}
        for lease in reading.leases:
            is_silent = lease.id in reading.unanswered  # then it goes once its agent answers
            if table.is_own(lease) and lease.kernel_id not in table.records and not is_silent:
                release = partial(self._access.backend.release, lease)
                yield _Disagreement(f"lease {lease.id} has no kernel", "the lease is released", release)
        for record in [each for each in table.records.values() if each.start is None]:
            is_unknown = record.lease is not None and record.lease.id in reading.unanswered
            if record.lease is not None and record.lease.id not in lease_ids:
                what = f"kernel {record.kernel_id} has lost its lease"
                yield _Disagreement(what, "the kernel is dropped", partial(self._drop, record))
            elif record.phase is Phase.RUNNING and record.kernel_id not in running and not is_unknown:
                what = f"kernel {record.kernel_id} is listed but does not run"
                end = partial(self._ender.stop, record, 0.0, "its process is gone")
                yield _Disagreement(what, "its lease is released, and it is dropped", end)

    async def _drop(self, record: KernelRecord) -> None:
        self._table.drop(record, "its lease is gone")

    def _find_forgotten(self) -> Iterator[Finding]:
        for record in self._table.records.values():
            if not self._owners.is_alive(record.owner):
                what = (
                    f"kernel {record.kernel_id} has outlived {record.owner.application or record.owner.user}"
                )
                do = f"run `roost stop {quote(record.kernel_id)}` if nobody wants it"
                yield {"level": "warning", "what": what, "do": do}

    async def _ask_cluster(self, reading: Reading) -> list[Finding]:
        found: list[Finding] = []
        unreachable = self._find_unreachable(reading)
        try:
            snapshot = await self._access.snapshot()
        except BackendUnavailable as away:
            # Agents without leases may have left: nobody needs them.
            needed = {lease.node_id or lease.id for lease in reading.leases if lease.state != "lost"}
            silent = [*_report_unreachable(unreachable & needed), *_report_doubtful(unreachable - needed)]
            return [*self._report_away(away), *silent]
        left = self._access.backend.left_nodes()
        found += _report_silent(unreachable, left, snapshot, self._access.backend.name)
        found += _report_lost(reading)
        found += _judge_limits(snapshot)
        found += _list_problems(snapshot)
        found += _list_closed(snapshot)
        try:
            found += await self._access.backend.diagnose()
        except BackendUnavailable as away:
            found += self._report_away(away)
        for node_id in sorted(self._access.draining):
            here = "" if node_id in snapshot else ", and is not in the cluster now"
            do = f"run `roost drain {quote(node_id)} --off` to use it again"
            found.append({"level": "warning", "what": f"node {node_id} drains{here}", "do": do})
        return found

    def _find_unreachable(self, reading: Reading) -> Set[str]:
        """Return the names of agents that should answer and do not.

        The agent of a start may not listen yet, and that of a lost lease is not needed any more.
        """
        records = self._table.records.values()
        starting = {record.lease.id for record in records if record.start and record.lease}
        silent = {
            lease.node_id or lease.id
            for lease in reading.leases
            if lease.id in reading.unanswered - starting and lease.state != "lost"
        }
        return silent | self._reconciler.unreachable

    def _report_away(self, away: BackendUnavailable) -> list[Finding]:
        do = "look at the cluster: no kernel starts until it is back"
        return [{"level": "error", "what": away.user_message, "do": do}]


def _report_doubtful(names: Set[str]) -> list[Finding]:
    """Return a warning for each agent that does not answer while the manager cannot say what runs there."""
    what = "the agent on {0} does not answer, and kernels that are not listed may live there"
    do = "look at that machine"
    return [{"level": "warning", "what": what.format(name), "do": do} for name in sorted(names)]


def _report_unreachable(names: Set[str]) -> list[Finding]:
    do = "look at that machine; its kernels may be well"
    return [
        {"level": "error", "what": f"the agent on {name} does not answer", "do": do} for name in sorted(names)
    ]


def _report_silent(
    names: Set[str], left: Mapping[str, float], snapshot: Snapshot, backend: str
) -> list[Finding]:
    """Return the findings about agents that do not answer, and about nodes that have `left`, and for how long.

    Only an agent on a node that should be well is an error. A cluster with types of nodes lets nodes go by itself. The
    manager itself may be among the names, as the name of the backend.
    """
    found: list[Finding] = []
    lost = {name for name in names if name not in snapshot and name != backend}
    for name in sorted(lost if snapshot.node_types else lost | left.keys()):
        ago = f" {format_age(left[name])} ago" if name in left else ""
        silence = ", and its agent does not answer" if name in lost else ""
        what = f"node {name} has left the cluster{ago}{silence}"
        found.append({"level": "warning", "what": what, "do": "bring it back, if kernels need it"})
    causes = {name: snapshot.node(name).drains_because for name in names - lost if name in snapshot}
    closed = {name: cause for name, cause in sorted(causes.items()) if cause}
    for name, cause in closed.items():
        what = f"the agent on {name} does not answer: {cause}"
        found.append({"level": "warning", "what": what, "do": ""})
    return found + _report_unreachable(names - lost - closed.keys())


def _report_lost(reading: Reading) -> list[Finding]:
    """Return a finding for each reason why the manager has taken leases back whose kernels are about to end."""
    kernels: dict[str, list[str]] = {}
    for lease in reading.leases:
        if lease.state == "lost":
            kernels.setdefault(lease.reason, []).append(lease.kernel_id)
    return [
        {"level": "warning", "what": f"{format_count(len(ids), 'kernel')} will end: {reason}", "do": ""}
        for reason, ids in kernels.items()
    ]


def _judge_limits(snapshot: Snapshot) -> list[Finding]:
    """Return a finding for each cause why nodes can limit the memory of kernels but not their CPUs."""
    by_cause: dict[str, list[str]] = {}
    for node_id in snapshot.nodes:
        way, _, cause = snapshot.node(node_id).enforcement.partition(": ")
        if way == MEMORY_ONLY:
            by_cause.setdefault(cause, []).append(node_id)
    found: list[Finding] = []
    for cause, nodes in by_cause.items():
        what = f"kernels on {format_names(nodes)} have a limit of memory, but no share of the CPUs: {cause}"
        found.append({"level": "ok", "what": what, "do": ""})
    return found


def _list_problems(snapshot: Snapshot) -> list[Finding]:
    """Return a finding for each thing that agents were set to do and cannot do."""
    nodes: dict[str, list[str]] = {}
    for node_id in snapshot.nodes:
        for problem in snapshot.node(node_id).problems:
            nodes.setdefault(problem, []).append(node_id)
    do = "correct the setting or the machine: until then, kernels start later, take more memory or wait"
    return [
        {"level": "warning", "what": f"on {format_names(where)}, {problem}", "do": do}
        for problem, where in nodes.items()
    ]


def _list_closed(snapshot: Snapshot) -> list[Finding]:
    """Return a finding for each cause why nodes take no kernels, unless an operator drains them by roost."""
    nodes: dict[str, list[str]] = {}
    for node_id in snapshot.nodes:
        if cause := snapshot.node(node_id).drains_because:
            nodes.setdefault(cause, []).append(node_id)
    return [
        {"level": "not now", "what": f"no kernel starts on {format_names(where)}: {cause}", "do": ""}
        for cause, where in nodes.items()
    ]
