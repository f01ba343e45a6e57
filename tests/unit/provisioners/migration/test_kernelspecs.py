"""The kernelspecs that Enterprise Gateway ships and Gateway Provisioners generates, in the same shapes.

`ready` has no decision, `decision` has one, and `refused` is not written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roost.provisioners.kernel_json import read_document
from roost.provisioners.kernelspecs import check_config
from roost.provisioners.migration import Translation, is_theirs
from roost.scheduler.backends.registry import backend_names

TranslateNew = Callable[..., Translation]
HANDSHAKE = [
    "--kernel-id",
    "{kernel_id}",
    "--port-range",
    "{port_range}",
    "--response-address",
    "{response_address}",
]
RUN = "/k/bin/run.sh"
POD = ("python", "/k/scripts/launch_kubernetes.py")
DOCKER = ("python", "/k/scripts/launch_docker.py")
LAZY = ["--spark-context-initialization-mode", "lazy"]
YARN = {"SPARK_HOME": "/opt/spark", "LAUNCH_OPTS": ""}
CLUSTER = (
    "--master yarn --deploy-mode cluster --name ${KERNEL_ID:-ERROR} --conf spark.yarn.maxAppAttempts=1 "
    "${KERNEL_EXTRA_SPARK_OPTS}"
)
CLIENT = "--master yarn --deploy-mode client --name ${KERNEL_ID:-ERROR} ${KERNEL_EXTRA_SPARK_OPTS}"
IN_POD = (
    "--master k8s://https://${KUBERNETES_SERVICE_HOST}:${KUBERNETES_SERVICE_PORT} --deploy-mode cluster "
    "--name ${KERNEL_USERNAME}-${KERNEL_ID} --conf spark.kubernetes.namespace=${KERNEL_NAMESPACE} "
    "--conf spark.kubernetes.executor.label.kernel_id=${KERNEL_ID} "
    "--conf spark.kubernetes.executor.container.image=${KERNEL_EXECUTOR_IMAGE} "
    "--conf spark.kubernetes.authenticate.driver.serviceAccountName=${KERNEL_SERVICE_ACCOUNT_NAME} "
    "${KERNEL_EXTRA_SPARK_OPTS}"
)


def python_spark(words: str) -> dict[str, str]:
    return {**YARN, "PYSPARK_PYTHON": "/opt/conda/bin/python", "SPARK_OPTS": words}


def toree(words: str) -> dict[str, str]:
    return {
        **YARN,
        "__TOREE_SPARK_OPTS__": words,
        "__TOREE_OPTS__": "--alternate-sigint USR2",
        "DEFAULT_INTERPRETER": "Scala",
    }


def jeg(
    class_name: str, language: str, command: Any, env: Any = None, image: str = "", **config: Any
) -> dict[str, Any]:
    """Return a kernel.json of Enterprise Gateway."""
    command = [command] if isinstance(command, str) else list(command)
    flags = [word.replace("--", "--RemoteProcessProxy.") for word in HANDSHAKE]
    stanza: dict[str, Any] = {"class_name": f"enterprise_gateway.services.processproxies.{class_name}"}
    config |= {"image_name": image, "executor_image_name": image} if image else {}
    stanza |= {"config": config} if config else {}
    return {
        "language": language,
        "display_name": "Old",
        "metadata": {"process_proxy": stanza},
        "env": env or {},
        "argv": [*command, *flags, *LAZY],
    }


def gp(
    name: str, language: str, command: Any, env: Any = None, image: str = "", **config: Any
) -> dict[str, Any]:
    """Return a kernel.json of Gateway Provisioners."""
    command = [command] if isinstance(command, str) else list(command)
    config = {"launch_timeout": 30, **config} | ({"image_name": image} if image else {})
    stanza = {"provisioner_name": f"{name}-provisioner", "config": config}
    return {
        "argv": [*command, *HANDSHAKE, "--public-key", "{public_key}", *LAZY],
        "env": env or {},
        "display_name": "Old",
        "language": language,
        "interrupt_mode": "signal",
        "metadata": {"kernel_provisioner": stanza},
        "kernel_protocol_version": "",
    }


K8S, SWARM = "k8s.KubernetesProcessProxy", "docker_swarm.DockerSwarmProcessProxy"
NEAR, FAR = "distributed.DistributedProcessProxy", "yarn.YarnClusterProcessProxy"
LAUNCH = ("python", "/k/scripts/launch_ipykernel.py")
KERNELSPECS: dict[str, tuple[dict[str, Any], str, str]] = {
    "R_docker": (jeg(SWARM, "R", DOCKER, image="elyra/kernel-r:VERSION"), "docker", "decision"),
    "R_kubernetes": (jeg(K8S, "R", POD, image="elyra/kernel-r:VERSION"), "kubernetes", "decision"),
    "python_distributed": (jeg(NEAR, "python", LAUNCH), "local", "ready"),
    "python_kubernetes": (jeg(K8S, "python", POD, image="elyra/kernel-py:VERSION"), "kubernetes", "decision"),
    "scala_docker": (jeg(SWARM, "scala", DOCKER, image="elyra/kernel-scala:VERSION"), "docker", "decision"),
    "dask_python_yarn_remote": (jeg(FAR, "python", RUN, {"DASK_OPTS": "--deploy-mode remote"}), "yarn", "refused"),
    "spark_R_conductor_cluster": (jeg("conductor.ConductorClusterProcessProxy", "R", ()), "", "refused"),
    "spark_R_yarn_client": (jeg(NEAR, "R", RUN, {**YARN, "SPARK_OPTS": CLIENT}), "local", "ready"),
    "spark_R_yarn_cluster": (jeg(FAR, "R", RUN, {**YARN, "SPARK_OPTS": CLUSTER}), "yarn", "ready"),
    "spark_python_operator": (
        jeg("spark_operator.SparkOperatorProcessProxy", "python", ("python", "/k/launch_custom_resource.py")),
        "",
        "refused",
    ),
    "spark_python_kubernetes": (jeg(K8S, "python", RUN, python_spark(IN_POD), "own/py:1"), "kubernetes", "ready"),
    "spark_python_yarn_client": (jeg(NEAR, "python", RUN, python_spark(CLIENT)), "local", "ready"),
    "spark_python_yarn_cluster": (jeg(FAR, "python", RUN, python_spark(CLUSTER)), "yarn", "ready"),
    "spark_scala_kubernetes": (jeg(K8S, "scala", RUN, toree(IN_POD), "own/scala:1"), "kubernetes", "ready"),
    "spark_scala_yarn_client": (jeg(NEAR, "scala", RUN, toree(CLIENT)), "local", "ready"),
    "spark_scala_yarn_cluster": (jeg(FAR, "scala", RUN, toree(CLUSTER)), "yarn", "ready"),
    "docker_python": (gp("docker", "python", DOCKER, image="elyra/kernel-py:0.5.0"), "docker", "ready"),
    "swarm_r": (gp("docker-swarm", "R", DOCKER, image="elyra/kernel-r:0.5.0"), "docker", "ready"),
    "k8s_python": (gp("kubernetes", "python", POD, image="elyra/kernel-py:0.5.0"), "kubernetes", "ready"),
    "k8s_scala": (gp("kubernetes", "scala", POD, image="elyra/kernel-scala:0.5.0"), "kubernetes", "ready"),
    "k8s_r_spark": (gp("kubernetes", "R", RUN, {**YARN, "SPARK_OPTS": IN_POD}, "own/r:1"), "kubernetes", "ready"),
    "k8s_python_spark_operator": (gp("spark-operator", "python", POD), "", "refused"),
    "custom_resource": (gp("custom-resource", "python", POD), "", "refused"),
    "ssh_python": (gp("distributed", "python", LAUNCH), "local", "ready"),
    "ssh_python_spark": (gp("distributed", "python", RUN, python_spark(CLIENT), remote_hosts=["n1"]), "ssh", "ready"),
    "ssh_r": (gp("distributed", "R", ("Rscript", "/k/launch_IRkernel.R")), "local", "ready"),
    "ssh_scala_spark": (gp("distributed", "scala", RUN, toree(CLIENT), remote_hosts=["n1"]), "ssh", "refused"),
    "yarn_dask_python": (gp("yarn", "python", RUN, {"DASK_OPTS": "--deploy-mode remote"}), "yarn", "refused"),
    "yarn_ep": (gp("yarn", "${language}", "${install_dir}/bin/run.sh", python_spark(CLUSTER)), "yarn", "refused"),
    "yarn_ep_in_argv": (gp("yarn", "python", "${install_dir}/bin/run.sh", python_spark(CLUSTER)), "yarn", "refused"),
    "yarn_python": (gp("yarn", "python", RUN, python_spark(CLUSTER)), "yarn", "ready"),
    "yarn_scala": (gp("yarn", "scala", RUN, toree(CLUSTER)), "yarn", "ready"),
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELSPECS)
def test_outcome(translate_new: TranslateNew, tmp_path: Path, name: str) -> None:
    document, backend, outcome = KERNELSPECS[name]
    assert is_theirs(document)
    found = translate_new(document, name=name)
    assert (found.name, found.backend) == (name, backend)
    if outcome == "refused":
        assert found.kernel_json is None
        assert found.refusal.endswith(".")
        return
    assert found.refusal == ""
    assert found.needs_decision == (outcome == "decision"), [
        x for x in found.lines if x.outcome == "decision"
    ]
    assert found.waits_for == ("" if backend in backend_names() else backend)
    (tmp_path / "kernel.json").write_text(json.dumps(found.kernel_json))
    new, malformed = read_document(tmp_path)
    assert malformed == ""
    config = new["metadata"]["kernel_provisioner"]["config"]
    if backend in backend_names():
        check_config(config, new.get("env", {}))


@pytest.mark.parametrize(
    "class_name",
    [
        "enterprise_gateway.services.processproxies.yarn.YarnClusterProcessProxy",
        "kernel_gateway.services.processproxies.yarn.YarnClusterProcessProxy",
        "kernel_gateway_yarn.services.YarnClusterProcessProxy",
        "YarnClusterProcessProxy",
    ],
)
def test_old_places_of_a_class(translate_new: TranslateNew, class_name: str) -> None:
    document = jeg(FAR, "python", RUN, python_spark(CLUSTER))
    document["metadata"]["process_proxy"]["class_name"] = class_name
    found = translate_new(document)
    assert found.backend == "yarn"
    assert not found.needs_decision


def test_a_subclass_of_ones_own(translate_new: TranslateNew) -> None:
    document = jeg(FAR, "python", RUN, python_spark(CLUSTER))
    document["metadata"]["process_proxy"]["class_name"] = "lab.proxies.YarnClusterProcessProxy"
    found = translate_new(document)
    assert found.backend == "yarn"
    assert found.needs_decision


def test_users_of_a_kernelspec(translate_new: TranslateNew) -> None:
    document = jeg(
        "processproxy.LocalProcessProxy",
        "python",
        LAUNCH,
        authorized_users="bob,eve",
        unauthorized_users=["eve"],
    )
    rule = translate_new(document, name="Lab").config["RoostScheduler"]["kernelspec_users"]
    assert rule == {"lab": {"allowed": ["bob", "eve"], "denied": ["eve"]}}


def test_volumes_of_other_kinds_pass(translate_new: TranslateNew) -> None:
    env = {
        "KERNEL_VOLUMES": "[{name: home, nfs: {server: files, path: /home}}]",
        "KERNEL_VOLUME_MOUNTS": "[{name: home, mountPath: /home}]",
    }
    found = translate_new(jeg(K8S, "python", POD, env, "own/py:1"))
    assert found.kernel_json is not None
    options = found.kernel_json["metadata"]["kernel_provisioner"]["config"]["options"]
    assert options["volumes"] == env["KERNEL_VOLUMES"]
    assert options["volume_mounts"] == env["KERNEL_VOLUME_MOUNTS"]
    assert found.needs_decision


def test_a_variable_that_roost_would_refuse(translate_new: TranslateNew) -> None:
    """A variable of theirs can have a name that roost reads with another meaning."""
    env = {"KERNEL_RESOURCES": "many", "KERNEL_FOO": "1", **python_spark(CLUSTER)}
    found = translate_new(jeg(FAR, "python", RUN, env))
    assert found.kernel_json is not None
    assert "KERNEL_RESOURCES" not in found.kernel_json["env"]
    assert found.kernel_json["env"]["KERNEL_FOO"] == "1"
    assert found.needs_decision
