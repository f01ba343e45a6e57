"""The SSH hosts of the tour: three machines with a real sshd each, in namespaces of this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

HOSTS = 3
_IDLE_EXIT_S = 6


def why_not() -> str | None:
    """Return why no hosts can start here, in one sentence, or None."""
    from kit.clusters.ssh_hosts import why_not as why_no_hosts

    return why_no_hosts(HOSTS)


class HostsCluster:
    """Hosts of `tests/kit/clusters/ssh_hosts`. `address` is the configuration of the client that logs in to them."""

    def __init__(self) -> None:
        from kit.clusters.ssh.shared_cluster import RULES
        from kit.clusters.ssh_hosts import SshHosts

        self.rules = RULES
        self._hosts = SshHosts(HOSTS, rules=RULES)

    @property
    def folder(self) -> Path:
        return self._hosts.folder

    @property
    def address(self) -> str:
        return str(self._hosts.client() / "config")

    @property
    def addresses(self) -> dict[str, str]:
        """The IP address of each host, by its name."""
        return {name: self._hosts.address(name) for name in self._hosts.names}

    def __enter__(self) -> HostsCluster:
        self._hosts.__enter__()
        return self

    def close(self) -> None:
        """End the hosts with all of their processes. May be repeated."""
        self._hosts.close()

    def settings(self, folder: Path) -> dict[str, Any]:
        """Return roost's settings for these hosts. Agents leave soon after their last kernel."""
        from kit.clusters.ssh.shared_cluster import cluster_settings

        return {**cluster_settings(self._hosts), "agent_idle_exit_s": _IDLE_EXIT_S}

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the hosts."""
        return self._hosts.processes()

    def kernel_processes(self) -> list[psutil.Process]:
        """Return the processes of roost on the hosts: agents, kernels and what they have started."""
        return self._hosts.processes(user=self._hosts.users[0])

    def leftovers(self) -> list[str]:
        """Return the hosts' remains after their end: folders, network devices, mounts, processes."""
        from kit.clusters.ssh_hosts import leftovers

        return leftovers(self.folder)


ASK = """
import json, subprocess, sys
left = []
for host in ("n1", "n2", "n3"):
    command = ["ssh", "-F", sys.argv[1], host, "ls /run/lock/ /run/roost/ 2>/dev/null || true"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    left += [f"{host}: {name}" for name in listed if name.startswith("roost-") and name.endswith(".json")]
print(json.dumps(left))
"""
"""A program that prints the promises that are left in the books of the hosts."""
