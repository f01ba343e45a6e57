"""Clusters whose nodes have files and process ids of their own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

import psutil

from kit.clusters.docker.shared_cluster import HOME as HOME_IN_CONTAINERS
from kit.clusters.kubernetes.shared_cluster import HOME

HOMES: Mapping[str, str] = {"docker": HOME_IN_CONTAINERS, "kubernetes": HOME} | (
    {"ssh": "/home/ada"} if os.geteuid() == 0 else {}
)
"""Where kernels start on the nodes of such a backend, if the folder of their application is missing there."""


OWN_PYTHONS = ("docker", "kubernetes")
"""The backends whose kernels have another Python, which is called python3 there."""


def kernel_pid(kernel_id: str) -> int:
    """Return the pid of a kernel as this machine sees it, or 0 if the kernel is not found."""
    folder = hashlib.sha256(kernel_id.encode()).hexdigest()[:32]
    for process in psutil.process_iter(["cmdline"]):
        names = (f"/kernels/{folder}/", f"/kernel-{kernel_id}.json")
        if any(name in part for part in process.info["cmdline"] or () for name in names):
            return int(process.pid)
    return 0
