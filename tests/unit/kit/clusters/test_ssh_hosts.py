"""The pure parts of the SSH hosts: missing packages, files of accounts and clients, remains."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from kit.clusters.ssh_hosts import ACCOUNTS, HARD, PLAIN, leftovers, remains, requirements, why_not
from kit.clusters.ssh_hosts.accounts import home_script
from kit.clusters.ssh_hosts.client_folder import Place, write_client, write_known_hosts
from kit.clusters.ssh_hosts.visible_paths import closed_folders, hide_script
from roost.launchers.daemon.process import start_time


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have all programs on this machine, and no root. Return the path of its sshd."""
    sshd = tmp_path / "sshd"
    sshd.touch()
    monkeypatch.setattr(requirements, "SSHD", sshd)
    monkeypatch.setattr(requirements, "_SHELLS", {})
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return sshd


def test_without_root_there_is_one_host_with_one_account(sshd: Path) -> None:
    assert why_not() is None
    assert why_not(hosts=3) == "several SSH hosts need root, which gives each host namespaces of its own"
    assert "need root" in str(why_not(1, HARD))


def test_the_missing_packages_are_named(sshd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sshd.unlink()
    assert str(why_not()).endswith("apt-get install --no-install-recommends openssh-server")
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "ssh" else f"/bin/{name}")
    assert str(why_not()).endswith(" openssh-client openssh-server")


def test_only_accounts_with_a_missing_shell_need_its_package(
    sshd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(requirements, "_may_make_namespaces", lambda: True)
    monkeypatch.setattr(requirements, "_SHELLS", {ACCOUNTS["fish"].shell: "fish"})
    monkeypatch.setattr(Path, "exists", lambda path: path == sshd)
    assert str(why_not(1, HARD)).endswith("--no-install-recommends fish")
    assert why_not(3, PLAIN) is None


def test_root_without_namespaces_has_no_hosts(sshd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(requirements, "_may_make_namespaces", lambda: False)
    assert "namespaces" in str(why_not())


def test_a_client_knows_its_hosts_by_their_names(tmp_path: Path) -> None:
    for name, text in {"key": "private", "host": "", "host.pub": "ssh-ed25519 AAAA a comment\n"}.items():
        (tmp_path / name).write_text(text)
    client = tmp_path / "client"
    write_client(
        client, "ada", tmp_path / "key", {"n1": Place("10.249.1.11"), "n2": Place("127.0.0.1", 2222)}
    )
    write_known_hosts(client, {"n1": tmp_path / "host"})
    config = (client / "config").read_text()
    assert "Host n2\n  HostName 127.0.0.1\n  Port 2222\n  HostKeyAlias n2\n" in config
    assert f"Host n1 n2\n  User ada\n  IdentityFile {client}/key\n" in config
    assert (client / "known_hosts").read_text() == "n1 ssh-ed25519 AAAA\n"
    assert (client / "key").stat().st_mode & 0o777 == 0o600
    assert client.stat().st_mode & 0o777 == 0o700


def test_paths_in_closed_and_in_own_folders_are_shown_again(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "python").mkdir(parents=True)
    closed.chmod(0o700)
    (tmp_path / "open" / "python").mkdir(parents=True)
    tmp_path.chmod(0o755)
    outside = Path("/usr/lib")
    above = [parent for parent in reversed(tmp_path.parents) if not parent.stat().st_mode & 0o001]
    assert closed_folders([closed / "python", outside]) == (above[:1] or [closed])
    script = hide_script([closed / "python", outside], "mounts of others")
    assert str(outside) not in script
    before, _, after = script.partition("mounts of others")
    assert f"mount --bind {closed}/python /dev/shm/" in before
    assert f" {closed}/python\n" in after


def test_each_special_home_has_its_mounts() -> None:
    scripts = {name: home_script(account) for name, account in ACCOUNTS.items()}
    assert "noexec /home/noexec" in scripts["noexec"]
    assert "filler" in scripts["full"]
    assert scripts["ada"] == "mkdir -m 700 /run/user/3001\nchown 3001:3001 /run/user/3001"
    assert scripts["cleo"] == ""


def test_a_start_removes_the_remains_of_ended_processes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remains, "_BASE", tmp_path)
    own = {"pid": os.getpid(), "start_time": start_time(os.getpid())}
    owners = {
        "ssh-hosts-lives": own,
        "ssh-hosts-ended": {**own, "start_time": 1.0},
        "other": {**own, "pid": 0},
    }
    for name, owner in owners.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "owner.json").write_text(json.dumps(owner))
    for name, age_s in {"ssh-hosts-begins": 0, "ssh-hosts-broken": 3600}.items():
        (tmp_path / name).mkdir()
        then = (tmp_path / name).stat().st_mtime - age_s
        os.utime(tmp_path / name, (then, then))
    folder = remains.make_folder()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"ssh-hosts-lives", "other", "ssh-hosts-begins", folder.name}
    assert leftovers(folder) == [f"folder {folder}"]
    remains.remove(folder)
    assert leftovers(folder) == []
