"""Accounts that have defeated other programs: each one runs kernels, on two hosts that share the homes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.clusters.faults import say, show_logs
from kit.clusters.ssh.faults import SshWorld, on_host
from kit.clusters.ssh_hosts import ACCOUNTS, HARD, SshHosts, leftovers, why_not
from kit.machine.daemons import settle
from roost.scheduler.client.client import disconnect
from roost.scheduler.errors import KernelDied
from roost.testing.deadlines import allow_s


@pytest.fixture(scope="module")
def hard_hosts(private_environment: None) -> Iterator[SshHosts]:
    accounts = ("ada", *HARD)
    if reason := why_not(2, accounts):
        pytest.skip(reason)
    with SshHosts(2, accounts=accounts, shared_home=True) as hosts:
        yield hosts
    assert not leftovers(hosts.folder)


def test_hard_accounts_are_hard(hard_hosts: SshHosts) -> None:
    def ssh(user: str, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*hard_hosts.ssh(user), "n1", command],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=allow_s(60),
        )  # fmt: skip

    script = "cp /bin/true ~/true && ~/true && rm ~/true"
    assert "Permission denied" in ssh("noexec", script).stderr
    assert ssh("ada", script).returncode == 0
    assert "No space left" in ssh("full", "echo text > ~/file").stderr
    assert ssh("nohome", "test -e ~").returncode == 1
    assert "csh" in ssh("csh", "echo $version").stdout
    assert "3" in ssh("fish", "echo $FISH_VERSION").stdout
    assert ssh("noisy", "true").stdout.startswith("Welcome to the lab\n")


@pytest.mark.parametrize("user", ["ada", *HARD])
async def test_each_account_runs_kernels(
    user: str, hard_hosts: SshHosts, runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ada shows that two hosts may share a home: nothing of roost is in it."""
    world = SshWorld(hard_hosts, runtime_dir, tmp_path, monkeypatch, user=user)
    try:
        with show_logs(runtime_dir):
            if user == "full":
                with pytest.raises(KernelDied, match="No space left on device") as problem:
                    await world.open(**on_host("n1"))
                say(problem.value.user_message)
                # IPython itself needs a folder that it can write to.
                world.set_environment(IPYTHONDIR="/tmp/ipython")
            notebooks = [await world.open(**on_host("n1"))]
            if user == "ada":
                notebooks.append(await world.open(**on_host("n2")))
            await world.lives(*notebooks)
            home = hard_hosts.root("n1") / "home" / user
            assert not [path for path in home.rglob("*roost*") if ".ssh" not in path.parts]
            assert await notebooks[0].value("os.getuid()") == str(ACCOUNTS[user].uid)
            await world.close()
    finally:
        disconnect()
        settle(runtime_dir)
