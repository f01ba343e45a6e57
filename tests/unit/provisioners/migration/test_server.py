"""The settings of an old server, from its environment, its files and its configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from roost.provisioners.migration import NotLiteral, Translation, read_server, translate_server
from roost.scheduler.errors import ConfigError

TranslateNew = Callable[..., Translation]
LOCAL = {
    "argv": ["python", "/k/launch_ipykernel.py", "--response-address", "{response_address}"],
    "display_name": "Old",
    "language": "python",
    "metadata": {"process_proxy": {"class_name": "distributed.DistributedProcessProxy"}},
}


def test_an_environment() -> None:
    assert read_server({"EG_PORT": "8888", "GP_APP_NAME": "x", "HOME": "/root"}) == {
        "EG_PORT": "8888",
        "GP_APP_NAME": "x",
    }


def test_lines_of_a_shell() -> None:
    text = "# comment\nexport EG_REMOTE_HOSTS='n1, n2'\nEG_PORT=1 EG_IP=10.0.0.1\nRP_X=$HOME\nPATH=/bin\nEG_L=a\\\n b\n"
    found = read_server(text)
    assert found["EG_REMOTE_HOSTS"] == "n1, n2"
    assert (found["EG_PORT"], found["EG_IP"]) == ("1", "10.0.0.1")
    assert found["RP_X"] == NotLiteral(4)
    assert "PATH" not in found


def test_a_unit_of_systemd(tmp_path: Path) -> None:
    unit = tmp_path / "gateway.service"
    command = "/bin/jupyter enterprisegateway --EnterpriseGatewayApp.max_kernels_per_user=3 --ip=::"
    unit.write_text(
        '[Service]\nEnvironment=EG_PORT=1 "EG_REMOTE_HOSTS=n1,n2"\nEnvironment="EG_BAD\n'
        f"EnvironmentFile=-/etc/gateway.env\nExecStart={command}\n"
    )
    found = read_server(unit)
    assert found["EG_REMOTE_HOSTS"] == "n1,n2"
    assert found["EnterpriseGatewayApp.max_kernels_per_user"] == 3
    assert found["Environment"] == NotLiteral(3)
    lines = {line.option: line for line in translate_server(found).lines}
    assert "read /etc/gateway.env too" in lines["server EnvironmentFile"].text


def test_a_configuration_in_python_is_parsed_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    file = tmp_path / "jupyter_enterprise_gateway_config.py"
    file.write_text(
        f"c = get_config()\nopen({str(marker)!r}, 'w')\n"
        "c.EnterpriseGatewayApp.remote_hosts = ['n1', 'n2']\n"
        "c.EnterpriseGatewayApp.authorized_users = {'ada'}\n"
        "c.EnterpriseGatewayApp.port_range = input()\n"
        "if True:\n    c.EnterpriseGatewayApp.yarn_endpoint = 'http://a'\n"
        "c.EnterpriseGatewayApp.client_envs.append('X')\nload_subconfig('other.py')\n"
        "c.EnterpriseGatewayApp.tags['a'] = 1\nother.EnterpriseGatewayApp.x = 1\n"
        "c['EnterpriseGatewayApp']['max_kernels'] = 5\nc.EnterpriseGatewayApp['max_age'] = 6\n"
    )
    found = read_server(file)
    assert not marker.exists()
    assert found["EnterpriseGatewayApp.remote_hosts"] == ["n1", "n2"]
    assert found["EnterpriseGatewayApp.port_range"] == NotLiteral(5)
    assert found["EnterpriseGatewayApp.yarn_endpoint"] == NotLiteral(7)
    assert found["EnterpriseGatewayApp.client_envs"] == NotLiteral(8)
    assert found["load_subconfig"] == NotLiteral(9)
    assert found["EnterpriseGatewayApp.tags"] == NotLiteral(10)
    assert (found["EnterpriseGatewayApp.max_kernels"], found["EnterpriseGatewayApp.max_age"]) == (5, 6)
    assert "EnterpriseGatewayApp.x" not in found
    lines = {line.option: line for line in translate_server(found).lines}
    assert "line 5 is no literal" in lines["server EnterpriseGatewayApp.port_range"].text


def test_a_configuration_in_json(tmp_path: Path) -> None:
    file = tmp_path / "jupyter_enterprise_gateway_config.json"
    file.write_text(
        json.dumps({"YarnProvisioner": {"yarn_endpoint": "http://rm:8088/ws/v1/cluster"}, "version": 1})
    )
    assert translate_server(read_server(file)).config == {"RoostYarnBackend": {"address": "http://rm:8088"}}


@pytest.mark.parametrize(
    ("name", "text", "clause"),
    [
        ("a.py", "c.X.y = = 1", "line 1 column 9: it is not Python"),
        ("a.py", "\0", "not Python"),
        ("a.json", "[]", "is not an object of sections"),
        ("a.json", "{", "is not JSON"),
        ("missing.env", None, "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str | None, clause: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=clause):
        read_server(tmp_path / name)


def test_settings_of_roosts() -> None:
    server = {
        "EG_AUTHORIZED_USERS": "ada,bob",
        "EG_UNAUTHORIZED_USERS": "{'root'}",
        "EG_MAX_KERNELS_PER_USER": "3",
        "EG_LOAD_BALANCING_ALGORITHM": "least-connection",
        "EG_YARN_ENDPOINT": "http://rm1:8088/ws/v1/cluster",
        "EG_ALT_YARN_ENDPOINT": "http://rm2:8088/ws/v1/cluster/",
        "EG_YARN_ENDPOINT_SECURITY_ENABLED": "True",
        "EG_REMOTE_HOSTS": "n1,n2",
        "EG_KERNEL_LAUNCH_TIMEOUT": "30",
        "RemoteMappingKernelManager.cull_idle_timeout": 3600,
        "KubernetesProvisioner.image_name": "lab/py:1",
    }
    found = translate_server(server)
    assert found.config == {
        "RoostScheduler": {
            "allowed_users": ["ada", "bob"],
            "denied_users": ["root"],
            "max_kernels_per_user": 3,
            "default_policy": "spread",
            "default_launch_timeout_s": 60,
            "idle_after_s": 3600,
        },
        "RoostYarnBackend": {"address": "http://rm1:8088,http://rm2:8088", "authentication": "kerberos"},
        "RoostSshBackend": {"hosts": {"n1": {}, "n2": {}}},
        "RoostKubernetesBackend": {"image": "lab/py:1"},
    }
    assert {line.outcome for line in found.lines} == {"translated"}


def test_values_that_need_nothing_or_are_wrong() -> None:
    server = {
        "EG_MAX_KERNELS_PER_USER": "-1",
        "EG_CULL_IDLE_TIMEOUT": 0,
        "EG_REMOTE_HOSTS": "localhost",
        "EG_NAMESPACE": "",
    }
    assert {line.outcome for line in translate_server(server).lines} == {"dropped"}
    wrong = {
        "EG_MAX_KERNELS_PER_USER": "many",
        "EG_LOAD_BALANCING_ALGORITHM": "best",
        "EG_KERNEL_LAUNCH_TIMEOUT": [],
    }
    found = translate_server(wrong)
    assert {line.outcome for line in found.lines} == {"decision"}
    assert found.config == {}


def test_a_secret_of_the_server() -> None:
    found = translate_server(
        {
            "EG_AUTH_TOKEN": "hunter2",
            "EG_YARN_ENDPOINT": "http://a:hunter2@rm:8088",
            "EG_CULL_IDLE_TIMEOUT": "hunter2",
        }
    )
    assert "hunter2" not in str(found)


def test_a_kernelspec_takes_its_servers_hosts_and_timeout(translate_new: TranslateNew) -> None:
    found = translate_new(LOCAL, server={"EG_REMOTE_HOSTS": "n1,n2", "EG_KERNEL_LAUNCH_TIMEOUT": "90"})
    assert found.backend == "ssh"
    assert found.config == {"RoostSshBackend": {"hosts": {"n1": {}, "n2": {}}}}
    assert found.kernel_json is not None
    config = found.kernel_json["metadata"]["kernel_provisioner"]["config"]
    assert config == {"backend": "ssh", "launch_timeout": 90}


def test_the_kernelspecs_own_options_win(translate_new: TranslateNew) -> None:
    document = LOCAL | {"env": {"EG_KERNEL_LAUNCH_TIMEOUT": "70"}}
    document["metadata"] = {
        "process_proxy": {"class_name": "DistributedProcessProxy", "config": {"remote_hosts": "n3"}}
    }
    found = translate_new(document, server={"EG_REMOTE_HOSTS": "n1", "EG_KERNEL_LAUNCH_TIMEOUT": "90"})
    assert list(found.config["RoostSshBackend"]["hosts"]) == ["n3"]
    assert found.kernel_json is not None
    assert found.kernel_json["metadata"]["kernel_provisioner"]["config"]["launch_timeout"] == 70


def test_a_host_with_a_password_is_a_decision(translate_new: TranslateNew) -> None:
    """roost gives ssh no password, and its settings would show it."""
    config = {"remote_hosts": "n1, ada:hunter2@n3"}
    document = LOCAL | {
        "metadata": {"process_proxy": {"class_name": "DistributedProcessProxy", "config": config}}
    }
    for found in (
        translate_new(document),
        translate_new(LOCAL, server={"EG_REMOTE_HOSTS": "ada:hunter2@n3"}),
        translate_server({"EG_REMOTE_HOSTS": "ada:hunter2@n3"}),
    ):
        assert "hunter2" not in str(found)
        assert "decision" in {line.outcome for line in found.lines}
        assert found.config == {}
