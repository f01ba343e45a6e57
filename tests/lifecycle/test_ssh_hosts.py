"""The SSH hosts of the tests: accounts log in, hosts lose power and network, and nothing stays on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kit.clusters.faults import read_command
from kit.clusters.ssh_hosts import ACCOUNTS, SshHosts, leftovers, why_not
from roost.bench.clusters.cluster_folder import wait_until
from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.skipif(
    why_not(2, tuple(ACCOUNTS)) is not None, reason=str(why_not(2, tuple(ACCOUNTS)))
)

TESTS = Path(__file__).parents[1]
LONG_S = 60.0
OWNER = """
import sys
from kit.clusters.ssh_hosts import SshHosts
with SshHosts(1) as hosts:
    print(hosts.folder, flush=True)
    sys.stdin.read()
"""
WITHOUT_ROOT = """
import subprocess
from kit.clusters.faults import read_name
from kit.clusters.ssh_hosts import SshHosts, leftovers, why_not
from roost.bench.clusters.cluster_folder import wait_until
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


@pytest.fixture(scope="module")
def hosts() -> Iterator[SshHosts]:
    with SshHosts(2, accounts=tuple(ACCOUNTS)) as hosts:
        yield hosts
    assert not leftovers(hosts.folder)


def ssh(
    hosts: SshHosts, name: str, command: str, *, user: str = "ada", options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command on a host through OpenSSH's client."""
    return subprocess.run(
        [*hosts.ssh(user), *options, name, command],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=allow_s(LONG_S),
    )  # fmt: skip


def start(hosts: SshHosts, name: str, command: str) -> psutil.Process:
    """Start a process on a host that outlives its session, and return it."""
    assert ssh(hosts, name, f"setsid {command} < /dev/null > /dev/null 2>&1 &").returncode == 0

    def find() -> list[psutil.Process]:
        return [each for each in hosts.processes(name, "ada") if read_command(each) == command]

    wait_until(find, f"{command} does not run on {name}", timeout_s=allow_s(LONG_S))
    (found,) = find()
    return found


def test_each_account_logs_in_and_runs_this_python(hosts: SshHosts) -> None:
    command = f"id -un; '{sys.executable}' -c 'import zmq, roost; print(roost.__file__)'"
    running = {
        user: subprocess.Popen(
            [*hosts.ssh(user), "n1", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        for user in hosts.users
    }
    expected = str(TESTS.parent / "__init__.py")
    printed = {user: process.communicate(timeout=allow_s(LONG_S))[0] for user, process in running.items()}
    assert {user: lines.split("\n")[-3:-1] for user, lines in printed.items()} == {
        user: [user, expected] for user in ACCOUNTS
    }
    assert printed["noisy"].startswith("Welcome to the lab\n")
    assert printed["ada"] == f"ada\n{expected}\n"


def test_hard_accounts_are_hard(hosts: SshHosts) -> None:
    script = "cp /bin/true ~ && ~/true"
    assert "Permission denied" in ssh(hosts, "n1", script, user="noexec").stderr
    assert ssh(hosts, "n1", script).returncode == 0
    assert "No space left" in ssh(hosts, "n1", "echo text > ~/file", user="full").stderr
    assert ssh(hosts, "n1", "test -e ~", user="nohome").returncode == 1
    assert hosts.run("n1", "csh", ["sh", "-c", "echo $SHELL"]).stdout == "/bin/tcsh\n"
    assert "csh" in ssh(hosts, "n1", "echo $version", user="csh").stdout
    assert "3" in ssh(hosts, "n1", "echo $FISH_VERSION", user="fish").stdout
    assert ssh(hosts, "n1", "ls -d /run/user/*").stdout.split().count("/run/user/3003") == 0


def test_a_host_has_folders_and_names_of_its_own(hosts: SshHosts) -> None:
    assert ssh(hosts, "n1", "touch /tmp/own ~/own /dev/shm/own /run/lock/own; hostname").stdout == "n1\n"
    assert ssh(hosts, "n2", "ls /tmp/own ~/own /dev/shm/own /run/lock/own; hostname").stdout == "n2\n"
    assert not Path("/tmp/own").exists()
    places = "from roost.launchers.machine_book.places import find_place; print(find_place().folder)"
    assert hosts.run("n1", "ada", [sys.executable, "-c", places]).stdout == "/run/lock\n"
    ids = "cat /etc/machine-id /proc/sys/kernel/random/boot_id"
    assert len({line for name in ("n1", "n2") for line in ssh(hosts, name, ids).stdout.splitlines()}) == 4


def test_hosts_of_two_tests_do_not_meet(hosts: SshHosts, ssh_hosts: SshHosts) -> None:
    addresses = [each.address(name) for each in (hosts, ssh_hosts) for name in each.names]
    assert len(set(addresses)) == 5
    command = "ssh -o BatchMode=yes n3 'hostname; id -un'"
    assert ssh(ssh_hosts, "n1", command, user="bob").stdout == "n3\nbob\n"
    assert ssh(hosts, "n1", command, user="bob").returncode == 255


def test_a_start_that_fails_leaves_nothing() -> None:
    hosts = SshHosts(2, accounts=["ada"], sshd_options=["Nonsense yes"])
    with pytest.raises(RuntimeError, match="Bad configuration option: Nonsense"):
        hosts.__enter__()
    assert hosts.folder.name.startswith("ssh-hosts-")
    assert not leftovers(hosts.folder)


def test_a_host_loses_power_and_comes_back_with_its_homes_only(hosts: SshHosts) -> None:
    process = start(hosts, "n1", "sleep 1001")
    boot = ssh(hosts, "n1", "touch ~/stays /tmp/goes; cat /proc/sys/kernel/random/boot_id").stdout
    with socket.create_connection((hosts.address("n1"), 22), timeout=allow_s(LONG_S)) as connection:
        assert connection.recv(100).startswith(b"SSH-2.0")
        hosts.off("n1")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):  # nobody reports the end
            connection.recv(100)
    assert hosts.processes("n1") == []
    assert not process.is_running()
    assert ssh(hosts, "n1", "true", options=("-o", "ConnectTimeout=1")).returncode == 255
    assert ssh(hosts, "n2", "true").returncode == 0
    hosts.off("n1")
    hosts.on("n1")
    after = ssh(hosts, "n1", "ls ~/stays /tmp; cat /proc/sys/kernel/random/boot_id").stdout
    assert "stays" in after
    assert "goes" not in after
    assert boot not in after


def test_a_cut_host_is_silent_and_its_processes_live(hosts: SshHosts) -> None:
    process = start(hosts, "n1", "sleep 1002")
    hosts.cut("n1")
    assert ssh(hosts, "n1", "true", options=("-o", "ConnectTimeout=1")).returncode == 255
    assert ssh(hosts, "n2", "true").returncode == 0
    hosts.mend("n1")
    assert ssh(hosts, "n1", "true").returncode == 0
    assert process.is_running()
    process.kill()


def test_a_changed_host_key_is_refused_until_clients_know_it(hosts: SshHosts) -> None:
    hosts.change_host_key("n2")
    assert "HOST IDENTIFICATION HAS CHANGED" in ssh(hosts, "n2", "true").stderr
    assert ssh(hosts, "n1", "ssh -o BatchMode=yes n2 true").returncode == 255
    hosts.trust()
    assert ssh(hosts, "n2", "true").returncode == 0
    assert ssh(hosts, "n1", "ssh -o BatchMode=yes n2 true").returncode == 0


def test_a_killed_sshd_is_started_again_and_sessions_live(hosts: SshHosts) -> None:
    process = start(hosts, "n1", "sleep 1003")
    (sshd,) = [each for each in hosts.processes("n1", "root") if "[listener]" in read_command(each)]
    sshd.kill()
    wait_until(
        lambda: ssh(hosts, "n1", "true").returncode == 0, "sshd does not come back", timeout_s=allow_s(LONG_S)
    )
    assert process.is_running()
    process.kill()


def test_hosts_may_share_the_homes_and_have_other_rules() -> None:
    rules = ['ForceCommand echo forced; exec $SHELL -c "$SSH_ORIGINAL_COMMAND"']
    with SshHosts(2, accounts=["ada"], shared_home=True, sshd_options=rules) as hosts:
        assert ssh(hosts, "n1", "echo text > ~/file").stdout == "forced\n"
        assert ssh(hosts, "n2", "cat ~/file").stdout == "forced\ntext\n"
    assert not leftovers(hosts.folder)


def test_without_root_the_loopback_is_one_host(hosts: SshHosts) -> None:
    program = ["env", f"PYTHONPATH={TESTS}", sys.executable, "-c", WITHOUT_ROOT]
    done = hosts.run("n1", "cleo", program)
    assert done.stdout.splitlines() == ["('cleo',) (0, 'cleo') True", "[] 255", "255", "0", "[]"], done.stderr
    assert hosts.processes("n1", "cleo") == []


def test_nothing_outlives_a_killed_test() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    ) as owner:  # fmt: skip
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        assert {line.partition(" ")[0] for line in leftovers(folder)} == {"process", "folder", "device"}
        os.kill(owner.pid, signal.SIGKILL)
    left = f"folder {folder}"
    wait_until(lambda: leftovers(folder) == [left], "processes outlive the test", timeout_s=allow_s(LONG_S))
    with SshHosts(1, accounts=["ada"]):
        assert not folder.exists(), "the next start removes the files"
