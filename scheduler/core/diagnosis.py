"""The findings of `roost doctor`: disagreements between kernels, leases and agents, and policies that fail."""

from __future__ import annotations

from roost.placement import Snapshot
from roost.placement.format import format_count
from roost.placement.model import MEMORY_ONLY
from roost.scheduler.errors import BackendUnavailable
from roost.scheduler.policies.catalog import FALLBACK, PolicyCatalog
from roost.scheduler.service.messages import Finding

from .cluster import Cluster
from .kernel_record import Phase
from .kernel_table import KernelTable
from .owner_watch import OwnerWatch
from .reconcile import Reconciler


async def diagnose(
    cluster: Cluster,
    table: KernelTable,
    reconciler: Reconciler,
    owners: OwnerWatch,
    policies: PolicyCatalog,
) -> list[Finding]:
    """Return all findings, worst first; one of level ok if nothing is wrong. Repairs what can be repaired."""
    reading = await reconciler.read(only_own=False)
    lease_ids = {lease.id for lease in reading.leases}
    settled = [record for record in table.records.values() if record.start is None]
    running = {process.kernel_id for process in reading.processes.values() if process.is_running}
    found: list[Finding] = []

    def report(level: str, what: str, do: str) -> None:
        found.append({"level": level, "what": what, "do": do})

    for lease in reading.leases:
        if table.is_own(lease) and lease.kernel_id not in table.records:
            report("error", f"lease {lease.id} has no kernel", "nothing: it is released now")
    for record in settled:
        if record.lease is not None and record.lease.id not in lease_ids:
            report("error", f"kernel {record.kernel_id} has lost its lease", "nothing: it is dropped now")
        is_unknown = record.lease is not None and record.lease.id in reading.unanswered
        if record.phase is Phase.RUNNING and record.kernel_id not in running and not is_unknown:
            what = f"kernel {record.kernel_id} is listed but does not run"
            report("error", what, "nothing: it is noted now")
    if found:
        reconciler.soon()
    for setting, problem in (await policies.check_configuration()).items():
        what, do = f"{setting}: {problem.rstrip('.')}", f"correct {setting}, or the file that it names"
        report("error", what, do)
    for record in table.records.values():
        if not owners.is_alive(record.owner):
            what = f"kernel {record.kernel_id} has outlived {record.owner.application or record.owner.user}"
            report("warning", what, f"run `roost stop {record.kernel_id}` if nobody wants it")
    unreachable = set(reading.unreachable)
    try:
        found += _judge_limits(await cluster.snapshot())
        found += await cluster.backend.diagnose()
    except BackendUnavailable as away:
        report("error", away.user_message, "look at the cluster: no kernel starts until it is back")
        unreachable.discard(cluster.backend.name)
    for name in sorted(unreachable):
        what = f"the agent on {name} does not answer"
        report("error", what, "look at that machine; its kernels may be well")
    for node_id in sorted(cluster.draining):
        report("warning", f"node {node_id} drains", f"run `roost drain {node_id} --off` to use it again")
    for name, problem in sorted(policies.failed.items()):
        do = f"correct it: until then {FALLBACK} ranks the nodes"
        report("warning", f"policy {name} {problem}", do)
    kernels, leases = format_count(len(table.records), "kernel"), format_count(len(lease_ids), "lease")
    processes = format_count(len(reading.processes), "process", "processes")
    if all(finding["level"] == "ok" for finding in found):
        report("ok", f"{kernels}, {leases} and {processes} agree", "")
    return found


def _judge_limits(snapshot: Snapshot) -> list[Finding]:
    """Say which nodes can limit memory only, once for each cause."""
    by_cause: dict[str, list[str]] = {}
    for node_id in snapshot.nodes:
        way, _, cause = snapshot.node(node_id).enforcement.partition(": ")
        if way == MEMORY_ONLY:
            by_cause.setdefault(cause, []).append(node_id)
    found: list[Finding] = []
    for cause, nodes in by_cause.items():
        where = ", ".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
        what = f"kernels on {where} have a limit of memory, but no share of the CPUs: {cause}"
        found.append({"level": "ok", "what": what, "do": ""})
    return found
