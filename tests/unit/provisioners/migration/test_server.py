"""The settings of an old server, from its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from roost.provisioners.migration import NotLiteral, read_server, translate_server
from roost.scheduler.errors import ConfigError


def read(folder: Path, name: str, text: str) -> dict[str, Any]:
    (folder / name).write_text(text)
    return read_server(folder / name)


def test_lines_of_a_shell_and_a_unit_of_systemd(tmp_path: Path) -> None:
    text = (
        "# comment\nexport EG_REMOTE_HOSTS='n1, n2'\nEG_PORT=1 EG_IP=10.0.0.1\nRP_X=$HOME\nPATH=/bin\nEG_L=a\\\n b\n"
        'Environment=EG_MAX_AGE=1 "EG_ALLOW_ORIGIN=a b"\nEG_BAD="\nEnvironmentFile=-/etc/gateway.env\n'
        "ExecStart=/bin/jupyter enterprisegateway --EnterpriseGatewayApp.max_kernels_per_user=3 --ip=::\n"
    )
    assert read(tmp_path, "gateway.service", text) == {
        "EG_REMOTE_HOSTS": "n1, n2",
        "EG_PORT": "1",
        "EG_IP": "10.0.0.1",
        "RP_X": NotLiteral(4),
        "EG_L": "a",
        "EG_MAX_AGE": "1",
        "EG_ALLOW_ORIGIN": "a b",
        "a line": NotLiteral(9),
        "EnvironmentFile": "/etc/gateway.env",
        "EnterpriseGatewayApp.max_kernels_per_user": "3",
    }


def test_a_configuration_in_python_is_parsed_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    text = (
        f"c = get_config()\nopen({str(marker)!r}, 'w')\n"
        "c.EnterpriseGatewayApp.remote_hosts = ['n1', 'n2']\n"
        "c.EnterpriseGatewayApp.authorized_users = {'ada'}\n"
        "c.EnterpriseGatewayApp.port_range = input()\n"
        "if True:\n    c.EnterpriseGatewayApp.yarn_endpoint = 'http://a'\n"
        "c.EnterpriseGatewayApp.client_envs.append('X')\nload_subconfig('other.py')\n"
        "c.EnterpriseGatewayApp.tags['a'] = 1\nother.EnterpriseGatewayApp.x = 1\n"
        "c['EnterpriseGatewayApp']['max_kernels'] = 5\nc.EnterpriseGatewayApp['max_age'] = 6\n"
    )
    found = read(tmp_path, "config.py", text)
    assert not marker.exists()
    assert found == {
        "EnterpriseGatewayApp.remote_hosts": ["n1", "n2"],
        "EnterpriseGatewayApp.authorized_users": {"ada"},
        "EnterpriseGatewayApp.port_range": NotLiteral(5),
        "EnterpriseGatewayApp.yarn_endpoint": NotLiteral(7),
        "EnterpriseGatewayApp.client_envs": NotLiteral(8),
        "load_subconfig": NotLiteral(9),
        "EnterpriseGatewayApp.tags": NotLiteral(10),
        "EnterpriseGatewayApp.max_kernels": 5,
        "EnterpriseGatewayApp.max_age": 6,
    }
    lines = {line.option: line for line in translate_server(found).lines}
    assert "line 5 is no literal" in lines["server EnterpriseGatewayApp.port_range"].text


@pytest.mark.parametrize(
    ("name", "text", "clause"),
    [
        ("a.py", "c.X.y = = 1", "line 1 column 9: it is not Python"),
        ("a.py", "\0", "not Python"),
        ("a.json", "[]", "is not an object of sections"),
        ("a.json", "{", "is not JSON"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, clause: str) -> None:
    with pytest.raises(ConfigError, match=clause):
        read(tmp_path, name, text)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_server(tmp_path / "missing")


def test_settings_of_roosts(tmp_path: Path) -> None:
    server = {
        "EG_AUTHORIZED_USERS": "ada,bob",
        "EG_UNAUTHORIZED_USERS": "{'root'}",
        "EG_MAX_KERNELS_PER_USER": "3",
        "EG_LOAD_BALANCING_ALGORITHM": "least-connection",
        "EG_ALT_YARN_ENDPOINT": "http://rm2:8088/ws/v1/cluster/",
        "EG_YARN_ENDPOINT": "http://rm1:8088/ws/v1/cluster",
        "EG_YARN_ENDPOINT_SECURITY_ENABLED": "True",
        "EG_REMOTE_HOSTS": "n1,n2",
        "EG_KERNEL_LAUNCH_TIMEOUT": "90",
        "RemoteMappingKernelManager.cull_idle_timeout": 3600,
    }
    found = translate_server(server | read(tmp_path, "a.json", json.dumps({"P": {"image_name": "lab/py:1"}})))
    assert found.list_settings() == {
        "RoostScheduler": {
            "allowed_users": ["ada", "bob"],
            "denied_users": ["root"],
            "max_kernels_per_user": 3,
            "default_policy": "spread",
            "default_launch_timeout_s": 90,
            "idle_after_s": 3600,
        },
        "RoostYarnBackend": {"address": "http://rm1:8088,http://rm2:8088", "authentication": "kerberos"},
        "RoostSshBackend": {"hosts": {"n1": {}, "n2": {}}},
        "RoostKubernetesBackend": {"image": "lab/py:1"},
    }
    assert {line.kind for line in found.lines} == {"taken over"}


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("EG_MAX_KERNELS_PER_USER", "-1", "not needed"),
        ("EG_CULL_IDLE_TIMEOUT", 0, "not needed"),
        ("EG_KERNEL_LAUNCH_TIMEOUT", 30, "not needed"),
        ("EG_REMOTE_HOSTS", "localhost", "not needed"),
        ("EG_NAMESPACE", "", "not needed"),
        ("EG_IMPERSONATION_ENABLED", "False", "not needed"),
        ("EG_RESPONSE_IP", "10.0.0.1", "not needed"),
        ("EG_MAX_KERNELS_PER_USER", "many", "please decide"),
        ("EG_LOAD_BALANCING_ALGORITHM", "best", "please decide"),
        ("EG_KERNEL_LAUNCH_TIMEOUT", [], "please decide"),
        ("EG_IMPERSONATION_ENABLED", "True", "please decide"),
        ("EG_PORT_RANGE", "40000..41000", "please decide"),
        ("EG_AUTH_TOKEN", "hunter2", "please decide"),
        ("EG_YARN_ENDPOINT", "http://a:hunter2@rm:8088", "please decide"),
        ("EG_REMOTE_HOSTS", "ada:hunter2@n3", "please decide"),
        ("ServerApp.port", 8888, "please decide"),
    ],
)
def test_other_settings(name: str, value: Any, kind: str) -> None:
    found = translate_server({name: value})
    assert [line.kind for line in found.lines] == [kind]
    assert found.list_settings() == {}
    assert "hunter2" not in str(found.lines)
