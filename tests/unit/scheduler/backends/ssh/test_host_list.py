"""The hosts of the backend `ssh`: names and labels from each setting, and one sentence for each bad input."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from traitlets import TraitError

from kit.machine.cases import find_wrong
from roost.scheduler.backends.ssh.host import make_host
from roost.scheduler.backends.ssh.host_list import Host, list_hosts
from roost.scheduler.backends.ssh.settings import RoostSshBackend
from roost.scheduler.config.files import load_settings
from roost.scheduler.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty home folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def list_all(**settings: Any) -> list[Host]:
    return list(list_hosts(RoostSshBackend(**settings)))


def list_names(**settings: Any) -> list[str]:
    return [host.name for host in list_all(**settings)]


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def refuse(**settings: Any) -> str:
    """Return the sentence with which these settings are refused."""
    with pytest.raises(ConfigError) as caught:
        list_hosts(RoostSshBackend(**settings))
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert sentence.isprintable()
    return sentence


# Names


@pytest.mark.parametrize(
    "name",
    [
        "n1", "N1.Lab.example", "ada@n1", "ada.b@lab@n1", "10.0.0.1", "2001:db8::1", "ada@fe80::1%eth0", "_x", "büro",
        "ssh://n1", "ssh://n1:2222", "ssh://ada@n1:2222", "ssh://10.0.0.1:22",
    ],
)  # fmt: skip
def test_a_name_that_ssh_reads_is_taken(name: str) -> None:
    assert make_host(name, {}).name == name


def test_a_name_that_is_an_option_or_a_command_is_refused() -> None:
    names = [
        "", "-oProxyCommand=x", "-V", "ada@-oProxyCommand", "-lada@n1", "ssh://-oProxyCommand", "ssh://ada@-x:22",
        "ssh://-x@n1", "n 1", "n\t1", "n1\n", "n1\0", "n\x7f", "n\u202e1", "n\ud8001", "n'1", 'n"1', "n`id`", "$(id)",
        "n1;id", "n1|id", "n1&", "a\\b", "<n1", ">n1", "{n1}", "n*", "n?", "!n1", "n1,n2", "rack=a", "[gpu]", "#n1",
        "/etc/hosts", "n1:22", "@n1", "ada@", "ssh://", "ssh://n1:0", "ssh://n1:99999", "ssh://n1/x", "ssh://a%27b@n1",
        "ssh://n1:",
        "ssh://_x:22", "ssh://[2001:db8::1]:22", "x" * 256,
    ]  # fmt: skip

    def check(name: str) -> None:
        with pytest.raises(ValueError, match="cannot be the name of a host"):
            make_host(name, {})
        with pytest.raises(TraitError, match="cannot be the name of a host"):
            RoostSshBackend(hosts=[name])

    assert find_wrong(names, check) == []


def test_no_accepted_name_reaches_ssh_as_an_option_or_a_shell() -> None:
    """Each single character, before, in and after a name."""
    for code in [*range(0x180), 0x2028, 0x202E, 0xFEFF, 0xD800, 0x1F600]:
        for name in (f"{chr(code)}n1", f"n{chr(code)}1", f"n1{chr(code)}", f"a@{chr(code)}n1"):
            try:
                make_host(name, {})
            except ValueError:
                continue
            assert not name.startswith("-")
            assert "@-" not in name
            assert not set(name) & set("'\"`$\\;&<>|(){}*?! \t\r\n\0"), ascii(name)


# The setting `hosts`


def test_hosts_are_a_list_or_an_object_with_labels() -> None:
    assert list_all(hosts=["n1", "ada@n2", "n1"]) == [Host(name="n1"), Host(name="ada@n2")]
    given = {"n1": {"rack": "a", "address": "10.0.0.1"}, "n2": {}}
    assert list_all(hosts=given) == [
        Host(name="n1", labels={"rack": "a"}, address="10.0.0.1"),
        Host(name="n2"),
    ]


@pytest.mark.parametrize(
    ("hosts", "says"),
    [
        (
            "n1",
            "hosts = 'n1' is not possible: give a list of names of hosts, or an object of names and labels.",
        ),
        (7, "hosts = 7 is not possible"),
        ([7], "hosts: 7 is no name of a host: write it in quotes."),
        ({"n1": "a"}, "hosts: 'a' of the host 'n1' are no labels"),
        ({"n1": {"rack": 1}}, "hosts: {'rack': 1} of the host 'n1' are no labels"),
        ({"n1": {"": "a"}}, "hosts: '' of the host n1 cannot be a label: write it as label=value."),
        ({"n1": {"a": "x\ny"}}, "hosts: 'x\\ny' of the host n1 cannot be a value of a label"),
        ({"n1": {"address": "eth0"}}, "address=eth0 of the host n1 is no IP address"),
        (["-oProxyCommand=id"], "begins with `-` like an option of ssh"),
    ],
)
def test_wrong_hosts_are_one_sentence(hosts: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings("ssh", {"hosts": hosts}, path=[])
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


def test_hosts_come_from_a_file_of_settings_and_from_options(tmp_path: Path) -> None:
    (tmp_path / "jupyter_roost_config.json").write_text(
        json.dumps({"RoostSshBackend": {"hosts": {"N1": {"Rack": "a"}}, "ssh": ["ssh", "-v"]}})
    )
    _, own = load_settings("ssh", {}, path=[str(tmp_path)])
    assert isinstance(own, RoostSshBackend)
    assert list_hosts(own) == (Host(name="N1", labels={"Rack": "a"}),)
    assert own.ssh == ["ssh", "-v"]
    _, own = load_settings("ssh", {"hosts": ["n9"]}, path=[str(tmp_path)])
    assert isinstance(own, RoostSshBackend)
    assert list_hosts(own) == (Host(name="n9"),)


@pytest.mark.parametrize("ssh", [[], [""], ["ssh", "-o\0"], "ssh -v", 7])
def test_a_wrong_command_is_refused(ssh: Any) -> None:
    with pytest.raises(ConfigError, match="ssh"):
        load_settings("ssh", {"ssh": ssh}, path=[])


def test_without_hosts_the_sentence_names_the_settings() -> None:
    sentence = refuse()
    for name in ("RoostSshBackend.hosts", "hosts_file"):
        assert name in sentence


# The setting `hosts_file`


def test_a_file_has_a_host_on_each_line(tmp_path: Path) -> None:
    file = write(
        tmp_path / "hosts",
        "\ufeff# the lab\r\nn1 rack=a gpu=A100#40 \t # old\n\n  n2\nada@n3 note=a=b address=10.0.0.3\nn1 floor=2\n",
    )
    assert list_all(hosts_file=file) == [
        Host(name="n1", labels={"rack": "a", "gpu": "A100#40", "floor": "2"}),
        Host(name="n2"),
        Host(name="ada@n3", labels={"note": "a=b"}, address="10.0.0.3"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("n1\n-oProxyCommand=x\n", "line 2: '-oProxyCommand=x' cannot be the name of a host"),
        ("n1 gpu\n", "line 1: 'gpu' after the host 'n1' is no label: write it as label=value."),
        ("n1 =a\n", "line 1: '=a' after the host 'n1' is no label"),
        ("n1 a=1 a=2\n", "line 1: the label 'a' of the host 'n1' has two values: keep one."),
        ("n1 a=1\n\nn1 a=2\n", "line 3: the host n1 has a=2 here, and a=1 in an earlier line: keep one."),
        ("n1 address=10.0.0.1\nn1 address=10.0.0.2", "line 2: the host n1 has address=10.0.0.2 here"),
        ("n1 a='x'\n", "line 1: \"'x'\" of the host n1 cannot be a value of a label"),
        ("[gpu]\nn1\n", "line 1: '[gpu]' cannot be the name of a host (it has the character '[')"),
        ("n1 address=host", "line 1: address=host of the host n1 is no IP address"),
        ("n1\x0bx=1 a\n", "line 1: 'a' after the host 'n1' is no label"),
    ],
)
def test_a_wrong_line_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    file = write(tmp_path / "hosts", text)
    sentence = refuse(hosts_file=file)
    assert sentence.startswith(f"{file}, line ")
    assert says in sentence


def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    assert refuse(hosts_file=str(tmp_path / "none")).endswith(
        "none cannot be read: No such file or directory."
    )
    assert "is a folder" in refuse(hosts_file=str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe" in refuse(hosts_file=str(tmp_path / "pipe"))
    (tmp_path / "latin").write_bytes(b"n1 # B\xfcro\n")
    assert "is not UTF-8 (byte 6)" in refuse(hosts_file=str(tmp_path / "latin"))
    with open(tmp_path / "large", "wb") as file:
        file.truncate(17 << 20)
    assert "has more than 16 MiB" in refuse(hosts_file=str(tmp_path / "large"))
    assert "begin it with / or ~/" in refuse(hosts_file="hosts")
    assert "cannot be the name of a file" in refuse(hosts_file="/a\0b")
    empty = write(tmp_path / "empty", "# nothing\n")
    assert refuse(hosts_file=empty) == f"there is no SSH host in {empty}: name one there."
    many = write(tmp_path / "many", "\n".join(f"n{number}" for number in range(10_001)))
    assert refuse(hosts_file=many) == f"{many} names more than 10,000 hosts: name fewer."


def test_a_file_in_the_home_folder_is_found(home: Path) -> None:
    write(home / "hosts", "n1")
    assert list_names(hosts_file="~/hosts") == ["n1"]


# Together


def test_settings_combine_and_one_name_is_one_host(tmp_path: Path) -> None:
    file = write(tmp_path / "hosts", "n2 rack=b floor=2 address=10.0.0.2\nn3\n")
    assert list_all(
        hosts={"n1": {}, "n2": {"rack": "a"}},
        hosts_file=file,
    ) == [
        Host(name="n1"),
        Host(name="n2", labels={"rack": "a", "floor": "2"}, address="10.0.0.2"),
        Host(name="n3"),
    ]
