"""Known holes in old versions of Ray. roost works with these versions, because a driver needs its cluster's version."""

from __future__ import annotations

from roost.launchers.protocol.shared_values import parse_version
from roost.scheduler.messages import Finding

_BROWSER_HOLE = "CVE-2025-62593"
"""GHSA-q279-jhrf-cc6v: the dashboard starts jobs for requests of a browser. Firefox and Safari let a page send them."""
_CLOSED_IN = "2.52"


def find_holes(ray_version: str) -> list[Finding]:
    """Return what `roost doctor` should say about a cluster with this version of Ray; nothing if it is unknown."""
    if not ray_version or parse_version(ray_version)[:2] >= parse_version(_CLOSED_IN):
        return []
    what = (
        f"this cluster has Ray {ray_version}, and a page in Firefox or Safari can run code on it through "
        f"Ray's dashboard ({_BROWSER_HOLE})"
    )
    return [{"level": "warning", "what": what, "do": f"upgrade the cluster to Ray {_CLOSED_IN} or later"}]
