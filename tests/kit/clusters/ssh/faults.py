"""Kernels on SSH hosts that fail, and the checks that follow each fault.

roost's service runs on this machine, and logs in to the hosts as ada.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kit.clusters.faults import ClusterWorld, read_command
from kit.clusters.ssh_hosts import ACCOUNTS, SshHosts
from kit.jupyter.notebook import Notebook
from roost.scheduler.messages import Kernel

from .shared_cluster import cluster_settings

AGENT = "roost.launchers.agent.main"
IDLE_EXIT_S = 3.0
"""How long an agent without leases stays on a host."""
CONNECT_S = 3.0
"""How long ssh waits for a host that is silent."""


class SshWorld(ClusterWorld):
    """SSH hosts with roost's service, and its notebooks. Each host has a label `host` with its name."""

    clean_s = 60.0
    """How long an idle agent may need to leave."""

    def __init__(
        self,
        hosts: SshHosts,
        home: Path,
        folder: Path,
        patch: pytest.MonkeyPatch,
        *,
        user: str = "ada",
        **settings: Any,
    ) -> None:
        super().__init__("ssh", home, folder, cpus=0.1)
        self.hosts, self.user = hosts, user
        patch.setenv("JUPYTER_CONFIG_DIR", str(folder))
        self.configure(**cluster_settings(hosts, user))
        self.configure(
            hosts={name: {"host": name} for name in hosts.names},
            connect_timeout_s=CONNECT_S,
            agent_idle_exit_s=IDLE_EXIT_S,
            **settings,
        )

    def set_environment(self, **variables: str) -> None:
        """Set variables of the kernels that are opened from now on."""
        self._spec["env"] = variables

    def held(self) -> dict[str, str]:
        """Return the host of each lease that an agent of the user has noted."""
        return {
            json.loads(path.read_text())["lease"]["id"]: name
            for name in self.hosts.names
            for path in self._agent_files(name, "leases/*.json")
        }

    def key_of(self, notebook: Notebook, kernel: Kernel) -> str:
        return kernel.lease_id

    def left(self) -> list[str]:
        """Return a line for each lease and each process that is left: promises, the user's on hosts, and ssh here."""
        found = [
            f"{name}: promise {path.name}" for name in self.hosts.names for path in promises(self.hosts, name)
        ]
        found += [f"{name}: lease {lease}" for lease, name in self.held().items()]
        for process in self.hosts.processes(user=self.user):
            with contextlib.suppress(psutil.Error):
                found.append(f"process {process.pid} {' '.join(process.cmdline())[:200]}")
        return found + [f"ssh process {process.pid}" for process in self.contacts()]

    def contacts(self, name: str = "") -> list[psutil.Process]:
        """Return the ssh processes on this machine that contact a host of this world, or all hosts."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                is_ours = words and words[0] == "ssh" and str(self.home) in " ".join(words)
                if is_ours and process.status() != psutil.STATUS_ZOMBIE and (not name or name in words):
                    found.append(process)
        return found

    def agents(self, name: str) -> list[psutil.Process]:
        """Return the user's agents on a host."""
        return [each for each in self.hosts.processes(name, self.user) if AGENT in read_command(each)]

    def process_of(self, notebook: Notebook, name: str) -> psutil.Process:
        """Return the process of a kernel on a host, whose pid there is the notebook's."""
        for process in self.hosts.processes(name, self.user):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                (pids,) = (line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
                if int(pids[-1]) == notebook.pid:
                    return process
        raise AssertionError(f"no process {notebook.pid} on {name}")

    def _agent_files(self, name: str, pattern: str) -> Iterator[Path]:
        """Yield files in the folders of the user's agents on a host. A host that is off has none."""
        if self.hosts.is_on(name):
            base = self.hosts.root(name) / f"tmp/roost-{ACCOUNTS[self.user].uid}"
            yield from base.glob(f"agent-*/{pattern}")


def promises(hosts: SshHosts, name: str) -> list[Path]:
    """Return the files in the book of a host, of all users. A host that is off has none."""
    if not hosts.is_on(name):
        return []
    return [
        path for book in ("run/lock", "run/roost") for path in (hosts.root(name) / book).glob("roost-*.json")
    ]


def on_host(name: str) -> dict[str, Any]:
    """Return the request of a kernel for this host."""
    return {"labels": {"host": name}}


def kill_process(process: psutil.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
