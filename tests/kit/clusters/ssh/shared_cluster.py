"""Three SSH hosts for the whole run, started by the first test that asks for them.

All tests share the hosts and leave them as they found them. A test that turns one off starts its own `SshHosts`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kit.clusters.ssh_hosts import SshHosts, leftovers, why_not

COUNT = 3


@pytest.fixture(scope="session")
def ssh_hosts(private_environment: None) -> Iterator[SshHosts]:
    """Start three hosts with the accounts ada, bob and cleo, or one host without root. Skip without sshd.

    A test of several hosts skips itself with the reason `why_not(hosts=2)`.
    """
    count = COUNT if why_not(COUNT) is None else 1
    if reason := why_not(count):
        pytest.skip(reason)
    with SshHosts(count) as hosts:
        yield hosts
    left = leftovers(hosts.folder)
    assert not left, "the hosts have left behind:\n" + "\n".join(left)
