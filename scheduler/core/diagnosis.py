"""The findings of `roost doctor`: disagreements between kernels, leases and agents, and policies that fail."""

from __future__ import annotations

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
    found = [
        _finding("error", f"lease {lease.id} has no kernel", "nothing: it is released now")
        for lease in reading.leases
        if table.is_own(lease) and lease.kernel_id not in table.records
    ]
    found += [
        _finding("error", f"kernel {record.kernel_id} has lost its lease", "nothing: it is dropped now")
        for record in settled
        if record.lease is not None and record.lease.id not in lease_ids
    ]
    found += [
        _finding("error", f"kernel {record.kernel_id} is listed but does not run", "nothing: it is noted now")
        for record in settled
        if record.phase is Phase.RUNNING and record.kernel_id not in running
        if record.lease is None or record.lease.id not in reading.unanswered
    ]
    if found:
        reconciler.soon()
    found += [
        _finding(
            "error", f"{setting}: {problem.rstrip('.')}", f"correct {setting}, or the file that it names"
        )
        for setting, problem in (await policies.check_configuration()).items()
    ]
    found += [
        _finding(
            "warning",
            f"kernel {record.kernel_id} has outlived {record.owner.application or record.owner.user}",
            f"run `roost stop {record.kernel_id}` if nobody wants it",
        )
        for record in table.records.values()
        if not owners.is_alive(record.owner)
    ]
    if away := await _why_away(cluster):
        found.append(_finding("error", away, "look at the cluster: no kernel starts until it is back"))
    found += [
        _finding(
            "error", f"the agent on {name} does not answer", "look at that machine; its kernels may be well"
        )
        for name in sorted(reading.unreachable)
    ]
    found += [
        _finding("warning", f"node {node_id} drains", f"run `roost drain {node_id} --off` to use it again")
        for node_id in sorted(cluster.draining)
    ]
    found += [
        _finding("warning", f"policy {name} {problem}", f"correct it: until then {FALLBACK} ranks the nodes")
        for name, problem in sorted(policies.failed.items())
    ]
    agree = (
        f"{len(table.records)} kernels, {len(lease_ids)} leases and {len(reading.processes)} processes agree"
    )
    return found or [_finding("ok", agree, "")]


async def _why_away(cluster: Cluster) -> str:
    try:
        await cluster.snapshot()
    except BackendUnavailable as problem:
        return problem.user_message
    return ""


def _finding(level: str, what: str, do: str) -> Finding:
    return {"level": level, "what": what, "do": do}
