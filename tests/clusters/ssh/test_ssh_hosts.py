"""The SSH hosts of the tests have folders and names of their own. Without root, this machine's loopback is one host."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kit import TESTS
from kit.clusters.ssh_hosts import SshHosts, why_not
from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.skipif(why_not(2) is not None, reason=str(why_not(2)))

LONG_S = 60.0
WITHOUT_ROOT = """
import subprocess
from kit.clusters.faults import read_name
from kit.clusters.ssh_hosts import SshHosts, leftovers, why_not
from roost.testing.clusters.cluster_folder import wait_until
assert "root" in why_not(hosts=3)
with SshHosts(1) as hosts:
    def ssh(command):
        done = subprocess.run([*hosts.ssh(), "n1", command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return done.returncode, done.stdout.strip()
    print(hosts.users, ssh("id -un"), ssh("echo $ROOST_RUNTIME_DIR") == (0, f"{hosts.folder}/n1/run"))
    subprocess.Popen([*hosts.ssh(), "n1", "sleep 1000"], stdin=subprocess.DEVNULL)
    def names():
        return {read_name(process) for process in hosts.processes("n1", hosts.users[0])}
    wait_until(lambda: "sleep" in names(), "sleep does not run", timeout_s=60)
    hosts.off("n1")
    print(hosts.processes(), ssh("true")[0])
    hosts.on("n1")
    hosts.change_host_key("n1")
    print(ssh("true")[0])
    hosts.trust()
    print(ssh("true")[0])
print(leftovers(hosts.folder))
"""


def ssh(hosts: SshHosts, name: str, command: str) -> str:
    """Return what a command on a host prints."""
    return subprocess.run(
        [*hosts.ssh("ada"), name, command],
        stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL, timeout=allow_s(LONG_S),
    ).stdout  # fmt: skip


def test_a_host_has_folders_and_names_of_its_own(ssh_hosts: SshHosts) -> None:
    assert ssh(ssh_hosts, "n1", "touch /tmp/own ~/own /dev/shm/own /run/lock/own; hostname") == "n1\n"
    assert ssh(ssh_hosts, "n2", "ls /tmp/own ~/own /dev/shm/own /run/lock/own; hostname") == "n2\n"
    assert not Path("/tmp/own").exists()
    assert ssh(ssh_hosts, "n1", "rm /tmp/own ~/own /dev/shm/own /run/lock/own; hostname") == "n1\n"
    places = "from roost.launchers.machine_book.places import find_place; print(find_place().folder)"
    assert ssh_hosts.run("n1", "ada", [sys.executable, "-c", places]).stdout == "/run/lock\n"
    ids = "cat /etc/machine-id /proc/sys/kernel/random/boot_id"
    assert len({line for name in ("n1", "n2") for line in ssh(ssh_hosts, name, ids).splitlines()}) == 4


def test_without_root_the_loopback_is_one_host(ssh_hosts: SshHosts) -> None:
    program = ["env", f"PYTHONPATH={TESTS}", sys.executable, "-c", WITHOUT_ROOT]
    done = ssh_hosts.run("n1", "cleo", program)
    assert done.stdout.splitlines() == ["('cleo',) (0, 'cleo') True", "[] 255", "255", "0", "[]"], done.stderr
    assert ssh_hosts.processes("n1", "cleo") == []
