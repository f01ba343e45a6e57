"""What disagrees between kernels, leases and agents, and which policies fail: for `roost doctor`."""

from __future__ import annotations

from roost.scheduler.errors import BackendUnavailable
from roost.scheduler.policies.catalog import FALLBACK, PolicyCatalog
from roost.scheduler.service.messages import Finding

from .cluster import Cluster
from .keeper import Keeper


async def findings(cluster: Cluster, keeper: Keeper, policies: PolicyCatalog) -> list[Finding]:
    """All findings, worst first; one of level ok when there is nothing to find. Has the keeper mend what it can."""
    leases = {lease.id: lease for lease in (await cluster.backend.leases()).leases}
    processes, silent = await keeper.processes(list(leases.values()))
    records = keeper.records
    away = await _why_away(cluster)
    found = [
        _finding("error", f"lease {lease.id} has no kernel", "nothing: it is given back now")
        for lease in leases.values()
        if keeper.is_own(lease) and lease.kernel_id not in records
    ]
    found += [
        _finding("error", f"kernel {record.kernel_id} has lost its lease", "nothing: it is dropped now")
        for record in records.values()
        if record.start is None and record.lease is not None and record.lease.id not in leases
    ]
    running = {process.kernel_id for process in processes.values() if process.is_running}
    found += [
        _finding(
            "error", f"kernel {record.kernel_id} is said to run but does not", "nothing: it is noted now"
        )
        for record in records.values()
        if record.start is None and record.state == "running" and record.kernel_id not in running
        if record.lease is None or record.lease.node_id not in silent
    ]
    if found:
        keeper.reconcile_soon()
    found += [
        _finding("error", f"{setting}: {problem.rstrip('.')}", f"mend {setting}, or what it names")
        for setting, problem in (await policies.check_configuration()).items()
    ]
    found += [
        _finding(
            "warning",
            f"kernel {record.kernel_id} has outlived {record.owner.application or record.owner.user}",
            f"run `roost stop {record.kernel_id}` if nobody wants it",
        )
        for record in records.values()
        if not keeper.owners.is_alive(record.owner)
    ]
    if away:
        found.append(_finding("error", away, "look at the cluster: no kernel starts until it is back"))
    found += [
        _finding(
            "error",
            f"the agent on {node_id} does not answer",
            "look at that machine; its kernels may be well",
        )
        for node_id in sorted(silent)
    ]
    found += [
        _finding("warning", f"node {node_id} drains", f"run `roost drain {node_id} --off` to use it again")
        for node_id in sorted(cluster.draining)
    ]
    found += [
        _finding("warning", f"policy {name} {problem}", f"mend it: meanwhile {FALLBACK} ranks in its stead")
        for name, problem in sorted(policies.failed.items())
    ]
    agree = f"{len(records)} kernels, {len(leases)} leases and {len(processes)} processes agree"
    return found or [_finding("ok", agree, "")]


async def _why_away(cluster: Cluster) -> str:
    try:
        await cluster.snapshot()
    except BackendUnavailable as problem:
        return problem.user_message
    return ""


def _finding(level: str, what: str, do: str) -> Finding:
    return {"level": level, "what": what, "do": do}
