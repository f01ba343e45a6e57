"""Three SSH hosts for the whole run, started by the first test that asks for them.

All tests share the hosts and leave them as they found them. A test that turns one off starts its own `SshHosts`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from kit.clusters.ssh_hosts import SshHosts, leftovers, why_not

RULES = {"n1": 'gpus = 2\ngpu_model = "T4"\n', "n2": 'gpus = 1\ngpu_model = "A100"\n', "n3": ""}
"""What root declares on each host. Its CPUs and memory are this machine's."""
COUNT = len(RULES)


@pytest.fixture(scope="session")
def ssh_hosts(private_environment: None) -> Iterator[SshHosts]:
    """Start three hosts with the accounts ada, bob and cleo, or one host without root. Skip without sshd.

    A test of several hosts skips itself with the reason `why_not(hosts=2)`.
    """
    count = COUNT if why_not(COUNT) is None else 1
    if reason := why_not(count):
        pytest.skip(reason)
    with SshHosts(count, rules=RULES) as hosts:
        yield hosts
    left = leftovers(hosts.folder)
    assert not left, "the hosts have left behind:\n" + "\n".join(left)


def cluster_settings(hosts: SshHosts, user: str = "") -> dict[str, Any]:
    """Return the settings of the backend for these hosts, with the login of a user."""
    return {
        "hosts": {name: {"rack": name[-1]} for name in hosts.names},
        "ssh": list(hosts.ssh(user)),
        "python": sys.executable,
    }
