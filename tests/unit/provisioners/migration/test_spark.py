"""Spark's arguments: from cluster mode to client mode, with the resources of the driver."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roost.provisioners.migration import Translation
from roost.testing.deadlines import allow_s

TranslateNew = Callable[..., Translation]
HANDSHAKE = [
    "--RemoteProcessProxy.kernel-id",
    "{kernel_id}",
    "--RemoteProcessProxy.public-key",
    "{public_key}",
]
MODULE = "enterprise_gateway.services.processproxies"


def describe(
    words: str, *, mode: str = "lazy", class_name: str = "yarn.YarnClusterProcessProxy", **env: str
) -> Any:
    """Return a kernel.json of Enterprise Gateway with arguments of spark-submit."""
    argv = ["/k/bin/run.sh", *HANDSHAKE, "--RemoteProcessProxy.spark-context-initialization-mode", mode]
    config = {"image_name": "lab/driver:1", "executor_image_name": "lab/executor:1"}
    stanza = {"class_name": f"{MODULE}.{class_name}", "config": config}
    return {
        "argv": argv,
        "display_name": "Spark",
        "language": "python",
        "metadata": {"process_proxy": stanza},
        "env": {"SPARK_HOME": "/opt/spark", "SPARK_OPTS": words, "LAUNCH_OPTS": "", **env},
    }


def get_words(translation: Translation) -> list[str]:
    assert translation.kernel_json is not None, translation.refusal
    return shlex.split(translation.kernel_json["env"]["PYSPARK_SUBMIT_ARGS"])


def get_config(translation: Translation) -> Any:
    assert translation.kernel_json is not None, translation.refusal
    return translation.kernel_json["metadata"]["kernel_provisioner"]["config"]


def find_outcomes(translation: Translation, option: str) -> set[str]:
    return {line.outcome for line in translation.lines if line.option == f"env SPARK_OPTS {option}"}


def test_cluster_mode_becomes_client_mode(translate_new: TranslateNew) -> None:
    words = "--master yarn-cluster --conf spark.submit.deployMode=cluster --conf spark.yarn.am.waitTime=1d"
    found = translate_new(describe(words))
    new = ["--master", "yarn", "--deploy-mode", "client", "--conf", "spark.driver.host=${env:NM_HOST}"]
    assert get_words(found) == [*new, "pyspark-shell"]
    assert find_outcomes(found, "spark.yarn.am.waitTime") == {"dropped"}


def test_quotes_and_spaces_survive(translate_new: TranslateNew) -> None:
    """spark-submit gets one word with spaces, and no quote of its own."""
    words = """--conf spark.driver.extraJavaOptions='-Da=1 -Db="2"' --files a.zip#x --py-files "/a b.py" """
    new = get_words(translate_new(describe(words)))
    assert """spark.driver.extraJavaOptions=-Da=1 -Db="2\"""" in new
    assert new[new.index("--files") + 1] == "a.zip#x"
    assert new[new.index("--py-files") + 1] == "/a b.py"


def test_variables_stay_apart(translate_new: TranslateNew) -> None:
    words = "--name ${KERNEL_ID:-none} --conf a.b=${HOME}/x --conf a.c=${KERNEL_ID} --conf a.d=${ZONE:-west}"
    found = translate_new(describe(words))
    assert "a.b=${HOME}/x" in get_words(found)
    assert "a.d=west" in get_words(found)
    assert "a.c=${KERNEL_ID}" in get_words(found)  # the provisioner fills it in
    assert get_words(found)[:2] == ["--name", "${KERNEL_ID}"]
    assert find_outcomes(found, "a.d") == {"decision"}


def test_the_name_of_a_user_is_left_out(translate_new: TranslateNew) -> None:
    found = translate_new(describe("--name ${KERNEL_USERNAME}-${KERNEL_ID} --master yarn"))
    assert get_words(found)[:2] == ["--name", "${KERNEL_ID}"]


def test_a_strange_path_of_a_python_is_no_option(translate_new: TranslateNew) -> None:
    """roost refuses such a path at each start."""
    found = translate_new(describe("--master yarn", PYSPARK_PYTHON="/opt/a b/python"))
    assert "options" not in get_config(found)
    archives = "--archives hdfs:///a.jar#x --conf spark.yarn.appMasterEnv.PYSPARK_PYTHON=x/bin/python"
    assert "options" not in get_config(translate_new(describe(f"--master yarn {archives}")))


def test_an_open_quote(translate_new: TranslateNew) -> None:
    found = translate_new(describe("--master yarn --conf 'a=b"))
    assert "decision" in {line.outcome for line in found.lines if line.option == "env SPARK_OPTS"}


@pytest.mark.parametrize(
    ("words", "memory", "cpus"),
    [
        ("", "2GiB", 1),
        ("--driver-memory 2g", "3GiB", 1),
        ("--driver-memory=8g --driver-cores 2", "10GiB", 2),
        ("--conf spark.driver.memoryOverhead=3g --conf spark.driver.memory=4096", "8GiB", 1),
    ],
)
def test_the_kernel_has_room_for_the_driver(
    translate_new: TranslateNew, words: str, memory: str, cpus: int
) -> None:
    config = get_config(translate_new(describe(f"--master yarn {words}")))
    assert (config["memory"], config["cpus"]) == (memory, cpus)


def test_the_kernel_has_the_queue_and_the_variables_of_the_driver(translate_new: TranslateNew) -> None:
    words = "--master yarn --queue lab --conf spark.yarn.appMasterEnv.PYTHONUSERBASE=.local --proxy-user eve"
    found = translate_new(describe(words, PYSPARK_PYTHON="/opt/py/bin/python"))
    assert found.kernel_json is not None
    assert get_config(found)["options"] == {"queue": "lab", "python": "/opt/py/bin/python"}
    assert found.kernel_json["env"]["PYTHONUSERBASE"] == ".local"
    assert found.kernel_json["argv"][0] == "/opt/py/bin/python"
    assert get_words(found)[2:4] == ["--queue", "lab"]
    assert find_outcomes(found, "--proxy-user") == {"decision"}


def test_kubernetes(translate_new: TranslateNew) -> None:
    words = (
        "--master k8s://https://${KUBERNETES_SERVICE_HOST}:${KUBERNETES_SERVICE_PORT} --deploy-mode cluster "
        "--conf spark.kubernetes.namespace=${KERNEL_NAMESPACE} "
        "--conf spark.kubernetes.executor.label.app=lab "
        "--conf spark.kubernetes.driver.container.image=${KERNEL_IMAGE} "
        "--conf spark.kubernetes.executor.container.image=${KERNEL_EXECUTOR_IMAGE} "
        "--conf spark.kubernetes.authenticate.driver.serviceAccountName=spark"
    )
    found = translate_new(describe(words, class_name="k8s.KubernetesProcessProxy"))
    options = [word for word in get_words(found) if word != "--conf"]
    assert options == [
        "--master",
        "k8s://https://kubernetes.default.svc",
        "--deploy-mode",
        "client",
        "spark.kubernetes.executor.label.app=lab",
        "spark.kubernetes.executor.container.image=lab/executor:1",
        "spark.driver.host=${env:ROOST_POD_IP}",
        "spark.kubernetes.driver.pod.name=${env:ROOST_POD_NAME}",
        "spark.kubernetes.namespace=${env:ROOST_POD_NAMESPACE}",
        "pyspark-shell",
    ]
    assert get_config(found)["options"] == {"image": "lab/driver:1", "service_account": "spark"}
    assert found.config["RoostKubernetesBackend"] == {"token_service_accounts": ["spark"]}


def test_executors_on_kubernetes_always_have_an_image(translate_new: TranslateNew) -> None:
    found = translate_new(
        describe("--master k8s://https://api:6443", class_name="k8s.KubernetesProcessProxy")
    )
    assert "spark.kubernetes.executor.container.image=lab/executor:1" in get_words(found)


def test_the_clients_options_come_first(translate_new: TranslateNew) -> None:
    found = translate_new(describe("--master yarn", KERNEL_EXTRA_SPARK_OPTS="--conf a.b=1"))
    assert get_words(found)[:2] == ["--conf", "a.b=1"]
    assert found.kernel_json is not None
    assert "KERNEL_EXTRA_SPARK_OPTS" not in found.kernel_json["env"]


def test_first_lines_of_ones_own_stay(translate_new: TranslateNew) -> None:
    document = describe("--master yarn")
    document["argv"] += ["--IPKernelApp.exec_lines=['import os']"]
    found = translate_new(document)
    assert found.kernel_json is not None
    assert found.kernel_json["argv"][5:] == ["--IPKernelApp.exec_lines=['import os']"]
    assert found.needs_decision


def test_r_gets_its_arguments_for_a_shell(translate_new: TranslateNew) -> None:
    document = describe("--master yarn") | {"language": "R"}
    found = translate_new(document)
    assert found.kernel_json is not None
    arguments = found.kernel_json["env"]["SPARKR_SUBMIT_ARGS"]
    assert "'spark.driver.host=${env:NM_HOST}'" in arguments
    assert arguments.endswith("sparkr-shell")


def test_the_shell_of_toree_passes_its_words_on(translate_new: TranslateNew, tmp_path: Path) -> None:
    """Run the new command with a program in the place of spark-submit."""
    document = describe("", mode="lazy")
    del document["env"]["SPARK_OPTS"]
    document["env"] |= {
        "__TOREE_SPARK_OPTS__": "--master yarn --conf a.b='c d'",
        "__TOREE_OPTS__": "--alternate-sigint USR2",
    }
    found = translate_new(document | {"language": "scala"})
    assert found.kernel_json is not None
    submit = tmp_path / "bin" / "spark-submit"
    submit.parent.mkdir()
    submit.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    submit.chmod(0o755)
    argv = [word.replace("{connection_file}", "/run/a file.json") for word in found.kernel_json["argv"]]
    env = found.kernel_json["env"] | {
        "SPARK_HOME": str(tmp_path),
        "KERNEL_EXTRA_SPARK_OPTS": "--num-executors 2",
    }
    shown = subprocess.run(
        argv, env=os.environ | env, capture_output=True, text=True, check=True, timeout=allow_s(60)
    )
    words = shown.stdout.splitlines()
    assert words[:2] == ["--master", "yarn"]
    assert "a.b=c d" in words
    assert words[words.index("--num-executors") + 1] == "2"
    assert words[-4:] == ["--profile", "/run/a file.json", "--spark-context-initialization-mode", "lazy"]


_PROGRAM = """
import os, sys
from ipykernel.kernelapp import IPKernelApp
app = IPKernelApp.instance(connection_file=sys.argv[1])
app.initialize([word for word in sys.argv[2:]])
names = app.shell.user_ns
print("ARGUMENTS", os.environ["PYSPARK_SUBMIT_ARGS"], file=sys.__stdout__)
print("BEFORE", type(names["spark"]).__name__, file=sys.__stdout__)
print("SUM", names["sql"]("one"), names["sc"].version, type(names["spark"]).__name__, file=sys.__stdout__)
import pyspark
class Jobs:
    def cancelAllJobs(self):
        print("CANCELLED", file=sys.__stdout__)
pyspark.SparkContext._active_spark_context = Jobs()
app.shell.run_cell("1/0")
print("INTERRUPT", file=sys.__stdout__)
app.shell.run_cell("raise KeyboardInterrupt")
sys.__stdout__.flush()
os._exit(0)
"""
_PYSPARK = """
class SparkSession:
    class builder:
        getOrCreate = staticmethod(lambda: SparkSession())
    sparkContext = type("Context", (), {"version": "3.5"})()
    sql = staticmethod(lambda query: f"ran {query}")
    stop = staticmethod(lambda: None)
"""


def test_a_real_ipykernel_has_spark_at_its_first_use(translate_new: TranslateNew, tmp_path: Path) -> None:
    """ipykernel reads the first lines from its command, and a stand-in for pyspark makes the session."""
    found = translate_new(describe("--master yarn"))
    assert found.kernel_json is not None
    (tmp_path / "pyspark").mkdir()
    (tmp_path / "pyspark" / "__init__.py").write_text(
        "class SparkContext:\n    _active_spark_context = None\n"
    )
    (tmp_path / "pyspark" / "sql.py").write_text(_PYSPARK)
    options = found.kernel_json["argv"][5:]
    env = os.environ | found.kernel_json["env"]
    env |= {
        "PYTHONPATH": str(tmp_path),
        "KERNEL_EXTRA_SPARK_OPTS": "--num-executors 2",
        "IPYTHONDIR": str(tmp_path),
    }
    argv = [sys.executable, "-c", _PROGRAM, str(tmp_path / "kernel.json"), *options]
    shown = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=allow_s(120), cwd=tmp_path)
    lines = shown.stdout.splitlines()
    assert "BEFORE Later" in lines, shown.stderr
    assert "SUM ran one 3.5 SparkSession" in lines
    assert lines.index("INTERRUPT") < lines.index("CANCELLED")
    (arguments,) = (line for line in lines if line.startswith("ARGUMENTS"))
    assert arguments.split()[1:5] == ["--num-executors", "2", "--master", "yarn"]
