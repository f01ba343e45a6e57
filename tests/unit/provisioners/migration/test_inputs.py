"""Ten kernelspecs as users write them, and the right translation of each."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from roost.provisioners.kernel_json import read_document
from roost.provisioners.kernelspecs import check_config
from roost.provisioners.migration import Line, Translation, is_theirs, translate
from roost.provisioners.spark_mode import check_deploy_mode
from roost.scheduler.backends.registry import backend_names
from roost.scheduler.errors import ConfigError

INPUTS = Path(__file__).parent / "inputs"
IPYKERNEL = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
GOOD = [folder.name for folder in sorted(INPUTS.iterdir()) if folder.name != "08_trailing_comma"]


def read(name: str) -> Translation:
    return translate(INPUTS / name)


def get_document(translation: Translation) -> Any:
    assert translation.kernel_json is not None, translation.refusal
    return translation.kernel_json


def get_config(translation: Translation) -> Any:
    return get_document(translation)["metadata"]["kernel_provisioner"]["config"]


def find_line(translation: Translation, option: str) -> Line:
    (line,) = (line for line in translation.lines if line.option == option)
    return line


@pytest.mark.parametrize("name", GOOD)
def test_roost_can_read_the_new_kernelspec(name: str, tmp_path: Path) -> None:
    document, config = get_document(read(name)), get_config(read(name))
    (tmp_path / "kernel.json").write_text(json.dumps(document))
    assert read_document(tmp_path)[1] == ""
    check_deploy_mode(document["argv"], document.get("env", {}))
    if config["backend"] in backend_names():
        check_config(config, document.get("env", {}))


@pytest.mark.parametrize("name", GOOD)
def test_names_and_language_stay(name: str) -> None:
    old, new = json.loads((INPUTS / name / "kernel.json").read_text()), get_document(read(name))
    assert is_theirs(old)
    assert (new["display_name"], new["language"]) == (old["display_name"], old["language"])


def test_a_stanza_at_the_top() -> None:
    found = read("01_stanza_at_top")
    document = get_document(found)
    assert get_config(found) == {"backend": "local"}
    words = "--master yarn --deploy-mode client --name ${KERNEL_ID} pyspark-shell"
    assert document["argv"][:5] == ["/opt/anaconda3/bin/python", *IPYKERNEL]
    assert document["env"]["PYSPARK_SUBMIT_ARGS"] == words
    assert "since 2.0" in find_line(found, "env SPARK_YARN_USER_ENV").text
    assert "SPARK_YARN_USER_ENV" not in document["env"]
    assert "process_proxy" not in document
    assert not found.needs_decision


def test_a_launcher_without_a_public_key() -> None:
    found = read("02_no_public_key")
    assert get_config(found) == {
        "backend": "docker",
        "options": {"image": "registry.example/kernels/py:2.2.0"},
    }
    assert found.waits_for == ("" if "docker" in backend_names() else "docker")
    assert get_document(found)["argv"] == ["python", *IPYKERNEL]


def test_docker_run_in_the_command() -> None:
    found = read("03_docker_run_in_argv")
    assert get_config(found)["options"] == {"image": "registry.example/lab/kernel-cpu:1"}
    assert get_document(found)["argv"] == ["python3", *IPYKERNEL]
    assert get_document(found)["env"] == {"NODE_IP": "10.0.0.12"}
    assert find_line(found, "argv --network").outcome == "decision"
    assert find_line(found, "argv --gpus").default == "1"
    assert find_line(found, "env KERNEL_USERNAME").outcome == "dropped"


def test_server_variables_in_the_environment() -> None:
    found = read("04_server_variables_in_env")
    config, env = get_config(found), get_document(found)["env"]
    assert (config["backend"], config["launch_timeout"]) == ("yarn", 120)
    assert not [name for name in env if name.startswith("EG_")]
    assert "HADOOP_CONF_DIR" not in env
    words = shlex.split(env["PYSPARK_SUBMIT_ARGS"])
    assert words[:4] == ["--master", "yarn", "--deploy-mode", "client"]
    assert "spark.sql.catalogImplementation=hive" in words
    assert find_line(found, "env EG_IMPERSONATION_ENABLED").outcome == "dropped"
    assert find_line(found, "env HADOOP_CONF_DIR").outcome == "dropped"


def test_an_environment_in_an_archive() -> None:
    found = read("05_packed_environment")
    config, words = get_config(found), shlex.split(get_document(found)["env"]["PYSPARK_SUBMIT_ARGS"])
    assert config["backend_options"] == {"address": "http://rm1.example:8088,http://rm2.example:8088"}
    assert (config["memory"], config["cpus"], config["options"]["queue"]) == ("10GiB", 4, "research")
    assert config["options"]["archive"].endswith("/envs/cluster.zip")
    assert config["options"]["python"] == "bin/python3"
    assert words[words.index("--queue") + 1] == "research"
    assert "spark.yarn.dist.archives=hdfs:///envs/cluster.zip#cluster" in words
    assert "spark.yarn.executorEnv.PYSPARK_PYTHON=cluster/bin/python3" in words
    assert found.needs_decision


def test_a_class_of_another_team() -> None:
    found = read("06_foreign_class")
    assert get_config(found)["options"]["image"] == "registry.example/kubeflow/kernel:2.5"
    assert find_line(found, "metadata.process_proxy.class_name").default == "backend kubernetes"
    assert find_line(found, "argv").outcome == "decision"


def test_a_command_that_roost_can_run() -> None:
    found = read("07_local_with_own_start")
    old = json.loads((INPUTS / "07_local_with_own_start" / "kernel.json").read_text())
    assert get_document(found)["argv"] == old["argv"]
    assert get_document(found)["env"] == old["env"]
    assert not found.needs_decision
    assert "secret" in find_line(found, "env SESSION_TOKEN").text
    assert not [line for line in found.lines if "not-a-real-token" in str(line)]


def test_a_trailing_comma() -> None:
    with pytest.raises(ConfigError, match=r"kernel\.json is not JSON: .* line \d+ column \d+"):
        read("08_trailing_comma")


def test_hosts_and_users() -> None:
    found = read("09_gp_hosts_and_users")
    config = get_config(found)
    assert list(found.config["RoostSshBackend"]["hosts"]) == ["priv_host1", "priv_host2"]
    assert (config["backend"], config["policy"], config["launch_timeout"]) == ("ssh", "spread", 60)
    kernel_class = "--IPKernelApp.kernel_class=echo_kernel.kernel.EchoKernel"
    assert get_document(found)["argv"] == ["/opt/py/bin/python", *IPYKERNEL, kernel_class]
    users = found.config["RoostScheduler"]["kernelspec_users"]["09_gp_hosts_and_users"]
    assert users == {"allowed": ["alice", "bob"]}
    assert find_line(found, "metadata.kernel_provisioner.config.port_range").outcome == "decision"


def test_resources_in_the_environment() -> None:
    found = read("10_k8s_resources_in_env")
    config = get_config(found)
    assert (config["cpus"], config["memory"], config["gpus"]) == (2.5, "6GiB", 1)
    options = {name: config["options"][name] for name in ("namespace", "service_account", "volumes")}
    assert options == {"namespace": "team-ml", "service_account": "notebooks", "volumes": "team-data:/data"}
    assert not [name for name in get_document(found).get("env", {}) if name.startswith("KERNEL_")]
    for name in ("KERNEL_MEMORY_LIMIT", "KERNEL_UID", "KERNEL_GID"):
        assert "decision" in {line.outcome for line in found.lines if line.option == f"env {name}"}
    assert find_line(found, "metadata.process_proxy.config.executor_image_name").outcome == "dropped"
