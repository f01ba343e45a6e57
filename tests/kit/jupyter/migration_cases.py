"""Old kernelspecs and what becomes of them: the rows of the table test.

The first ten are kernelspecs as users write them. Each later row was translated wrongly once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INPUTS = Path(__file__).parents[2] / "unit" / "provisioners" / "migration" / "inputs"
IPYKERNEL = ("-m", "ipykernel_launcher", "-f", "{connection_file}")
FLAGS = (
    "--kernel-id",
    "{kernel_id}",
    "--response-address",
    "{response_address}",
    "--public-key",
    "{public_key}",
)
NOT_HERE = "cannot be read here"
OLD = "a Python before 3.10 or a Spark before 3"


@dataclass(frozen=True, kw_only=True)
class Case:
    """An old kernelspec. Each value that is not None is compared; `decide` has all decisions.

    `argv` is compared as far as it goes, and `config` and `env` in the names that are there. `server` is the text of
    the old server's configuration in Python, and `files` are those of the kernelspec's folder.
    """

    document: Mapping[str, Any]
    backend: str = "local"
    files: Mapping[str, str] = field(default_factory=dict)
    server: str = ""
    keep_launcher: bool = False
    argv: Sequence[str] | None = None
    env: Mapping[str, str | None] = field(default_factory=dict)
    """None: the new kernelspec does not have it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] | None = None
    decide: Mapping[str, str] = field(default_factory=dict)
    """The decisions: a part of the text, by the option."""
    says: Mapping[str, str] = field(default_factory=dict)
    """Other lines: the kind, by the option."""
    details: Sequence[str] = ()
    """The lines of files that the report shows."""


def jeg(class_name: str = "processproxy.LocalProcessProxy", **values: Any) -> dict[str, Any]:
    """Return a kernel.json of Enterprise Gateway. `config` is that of its stanza."""
    stanza: dict[str, Any] = {"class_name": f"enterprise_gateway.services.processproxies.{class_name}"}
    stanza["config"] = values.pop("config", {})
    argv = ["python", "/k/scripts/launch_ipykernel.py", *FLAGS]
    return {
        "argv": argv,
        "display_name": "Old",
        "language": "python",
        "metadata": {"process_proxy": stanza},
    } | values


def yarn(words: str = "--master yarn --deploy-mode cluster", *more: str, **env: str) -> dict[str, Any]:
    """Return a kernel.json of Spark on YARN, whose launcher is in its folder."""
    argv = ["/gone/bin/run.sh", *FLAGS, *more]
    own = {"SPARK_HOME": "/opt/spark", "SPARK_OPTS": words, **env}
    return jeg("yarn.YarnClusterProcessProxy", argv=argv, env=own)


def pods(language: str = "python", **values: Any) -> dict[str, Any]:
    """Return a kernel.json of a kernel in pods."""
    argv = ["python", "/gone/scripts/launch_kubernetes.py", *FLAGS]
    values = {"config": {"image_name": "lab/py:1"}, "argv": argv, "language": language} | values
    return jeg("k8s.KubernetesProcessProxy", **values)


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((INPUTS / name / "kernel.json").read_text())
    return document


RUN = {"bin/run.sh": ""}
POD = {"scripts/kernel-pod.yaml.j2": "", "scripts/launch_kubernetes.py": ""}
CASES: dict[str, Case] = {
    "01_stanza_at_top": Case(
        document=read("01_stanza_at_top"),
        argv=("/opt/anaconda3/bin/python", *IPYKERNEL),
        env={
            "PYSPARK_SUBMIT_ARGS": "--master yarn --deploy-mode client --name ${KERNEL_ID} pyspark-shell",
            "SPARK_YARN_USER_ENV": None,
        },
        decide={
            "env SPARK_HOME": OLD,
            "file /usr/local/share/jupyter/kernels/spark_client/bin/run.sh": NOT_HERE,
        },
        says={"env SPARK_YARN_USER_ENV": "not needed"},
    ),
    "02_no_public_key": Case(
        document=read("02_no_public_key"),
        backend="docker",
        argv=("python", *IPYKERNEL),
        config={"options": {"image": "registry.example/kernels/py:2.2.0"}},
    ),
    "03_docker_run_in_argv": Case(
        document=read("03_docker_run_in_argv"),
        backend="docker",
        argv=("python3", *IPYKERNEL),
        env={"NODE_IP": "10.0.0.12", "KERNEL_USERNAME": None},
        config={"options": {"image": "registry.example/lab/kernel-cpu:1"}},
        decide={"argv run": "--rm --network=host --gpus all"},
        says={"env KERNEL_USERNAME": "not needed"},
    ),
    "04_server_variables_in_env": Case(
        document=read("04_server_variables_in_env"),
        backend="yarn",
        env={
            "PYSPARK_SUBMIT_ARGS": "--master yarn --deploy-mode client --name ${KERNEL_ID} --conf "
            "spark.sql.catalogImplementation=hive --conf spark.driver.host=${env:NM_HOST} pyspark-shell",
            "EG_KERNEL_LAUNCH_TIMEOUT": None,
            "HADOOP_CONF_DIR": None,
        },
        config={"launch_timeout": 120},
        decide={
            "env SPARK_HOME": OLD,
            "file /opt/vendor/kernelspecs/spark_python_yarn_cluster/bin/run.sh": NOT_HERE,
        },
        says={"env EG_IMPERSONATION_ENABLED": "not needed", "env HADOOP_CONF_DIR": "not needed"},
    ),
    "05_packed_environment": Case(
        document=read("05_packed_environment"),
        backend="yarn",
        env={
            "PYSPARK_SUBMIT_ARGS": "--master yarn --deploy-mode client --queue research --name ${KERNEL_ID} "
            "--driver-memory 8g --conf spark.driver.cores=4 --conf spark.executor.memory=8g --conf "
            "spark.yarn.dist.archives=hdfs:///envs/cluster.zip#cluster --conf "
            "spark.yarn.executorEnv.PYSPARK_PYTHON=cluster/bin/python3 --conf "
            "spark.driver.host=${env:NM_HOST} pyspark-shell"
        },
        config={
            "memory": "10GiB",
            "cpus": 4,
            "backend_options": {"address": "http://rm1.example:8088,http://rm2.example:8088"},
            "options": {
                "queue": "research",
                "archive": "webhdfs://NAMENODE:9870/envs/cluster.zip",
                "python": "bin/python3",
            },
        },
        decide={
            "env SPARK_HOME": OLD,
            "env SPARK_OPTS spark.yarn.dist.archives": "WebHDFS",
            "file /srv/kernels/spark24/bin/run.sh": NOT_HERE,
        },
    ),
    "06_foreign_class": Case(
        document=read("06_foreign_class"),
        backend="kubernetes",
        config={"options": {"image": "registry.example/kubeflow/kernel:2.5"}},
        decide={
            "metadata.process_proxy.class_name": "a guess",
            "argv": "kubeflow-launcher is none of their launchers",
            "argv --verbose": "does not know",
        },
    ),
    "07_local_with_own_start": Case(
        document=read("07_local_with_own_start"),
        argv=read("07_local_with_own_start")["argv"],
        env=read("07_local_with_own_start")["env"],
        decide={"env SESSION_TOKEN": "a secret"},
    ),
    "09_gp_hosts_and_users": Case(
        document=read("09_gp_hosts_and_users"),
        backend="ssh",
        argv=("/opt/py/bin/python", *IPYKERNEL, "--IPKernelApp.kernel_class=echo_kernel.kernel.EchoKernel"),
        config={"policy": "spread", "labels": {"old": "yes"}},
        settings={
            "RoostSshBackend": {"hosts": {"priv_host1": {"old": "yes"}, "priv_host2": {"old": "yes"}}},
            "RoostScheduler": {"kernelspec_users": {"old": {"allowed": ["alice", "bob"]}}},
        },
        decide={"metadata.kernel_provisioner.config.port_range": "40000-41000"},
        says={"metadata.kernel_provisioner.config.launch_timeout": "not needed"},
    ),
    "10_k8s_resources_in_env": Case(
        document=read("10_k8s_resources_in_env"),
        backend="kubernetes",
        env=dict.fromkeys(read("10_k8s_resources_in_env")["env"]),
        config={"cpus": 2.5, "memory": "6GiB", "gpus": 1},
        settings={
            "RoostKubernetesBackend": {
                "allowed_namespaces": ["team-ml"],
                "allowed_service_accounts": ["notebooks"],
            },
            "RoostScheduler": {"kernelspec_users": {"old": {"allowed": ["ml", "ops"]}}},
        },
        decide={
            "env KERNEL_MEMORY_LIMIT": "6GiB or 12GiB",
            "env KERNEL_UID": "allowed_uids",
            "env KERNEL_GID": "allowed_gids",
            "env KERNEL_VOLUMES": "allowed_volumes",
            "env KERNEL_VOLUME_MOUNTS": "allowed_volumes",
        },
        says={"metadata.process_proxy.config.executor_image_name": "not needed"},
    ),
    "the user of a container": Case(
        document=jeg(
            "docker_swarm.DockerProcessProxy", config={"image_name": "lab:1"}, env={"KERNEL_UID": "1000"}
        ),
        backend="docker",
        config={"options": {"image": "lab:1"}},
        decide={"env KERNEL_UID": "c.RoostDockerBackend.user"},
    ),
    "a site's own lines in run.sh": Case(
        document=yarn(),
        backend="yarn",
        files={"bin/run.sh": "#!/usr/bin/env bash\nset -x\nsource /etc/lab/catalogue.sh\nset +x\n"},
        decide={"file bin/run.sh": "differs from the file shipped"},
        details=["source /etc/lab/catalogue.sh"],
    ),
    "lines of run.sh that are missing": Case(
        document=yarn(),
        backend="yarn",
        files={"bin/run.sh": "#!/usr/bin/env bash\nset -x\n"},
        decide={"file bin/run.sh": "lacks some"},
    ),
    "a site's own lines in the pod template": Case(
        document=pods(),
        backend="kubernetes",
        files={
            "scripts/kernel-pod.yaml.j2": "spec:\n  restartPolicy: Never\n  tolerations:\n  - key: gpu\n"
            "  affinity: {}\n"
            "  securityContext:\n    fsGroup: 100\n    supplementalGroups: [7]\n  volumes:\n  - nfs: {server: files}\n"
        },
        decide={"file scripts/kernel-pod.yaml.j2": "differs from the file shipped"},
        details=["tolerations:", "- key: gpu", "affinity: {}", "supplementalGroups: [7]", "- nfs: {server: files}"],
    ),
    "a program of one's own beside the launcher": Case(
        document=pods(),
        backend="kubernetes",
        files={"scripts/prepare.sh": "export DB_PASSWORD=hunter2\nmount /data\n"},
        decide={"file scripts/prepare.sh": "any file shipped"},
        details=["(a secret, not shown)", "mount /data"],
    ),
    "old Pythons, an old Spark and a keytab": Case(
        document=yarn(
            "--master yarn --keytab /k/ada.keytab --principal ada --conf spark.pyspark.python=/envs/py38/bin/python",
            SPARK_HOME="/opt/spark-2.4.8",
            PYTHONPATH="/opt/spark/python/lib/py4j-0.10.7-src.zip",
            PYSPARK_PYTHON="/opt/conda/bin/python3.8",
            LATER="/opt/spark-3.5/py4j-0.10.9.7-src.zip:/opt/python3.12:/opt/py312",
        ),
        backend="yarn",
        files=RUN,
        env={"PYSPARK_PYTHON": "/opt/conda/bin/python3.8"},
        decide={
            "env SPARK_OPTS --keytab": "in client mode",
            "env SPARK_OPTS --principal": "in client mode",
            "env SPARK_OPTS spark.pyspark.python": OLD,
            "env SPARK_HOME": OLD,
            "env PYTHONPATH": OLD,
            "env PYSPARK_PYTHON": OLD,
        },
        says={"env LATER": "taken over"},
    ),
    "variables that nothing fills in": Case(
        document=yarn(
            "--master yarn --conf spark.local.dir=/tmp/${KERNEL_USERNAME} --conf a.b=${ZONE:-west} "
            "--name ${KERNEL_USERNAME}-${KERNEL_ID}",
            HISTORY="${HOME}/history",
            LOGS="/logs/$KERNEL_USERNAME",
            ID="${KERNEL_ID}",
        ),
        backend="yarn",
        files=RUN,
        env={"ID": "${KERNEL_ID}"},
        decide={
            "env SPARK_OPTS spark.local.dir": "KERNEL_USERNAME",
            "env SPARK_OPTS a.b": "ZONE",
            "env HISTORY": "HOME",
            "env LOGS": "KERNEL_USERNAME",
        },
    ),
    "variables on this machine": Case(
        document=jeg(env={"HISTORY": "${HOME}/history", "LOGS": "/logs/${KERNEL_USERNAME}"}),
        decide={"env LOGS": "KERNEL_USERNAME"},
        says={"env HISTORY": "taken over"},
    ),
    "an option of the command and of the environment": Case(
        document=yarn(
            "--master yarn",
            *("--spark-context-initialization-mode", "none", "--kernel-class-name", "lab.Kernel"),
            LAUNCH_OPTS="--spark-context-initialization-mode eager",
            KERNEL_CLASS_NAME="other.Kernel",
        ),
        backend="yarn",
        files=RUN,
        argv=("python", *IPYKERNEL, "--IPKernelApp.kernel_class=lab.Kernel"),
        says={
            "argv --spark-context-initialization-mode": "taken over",
            "env LAUNCH_OPTS --spark-context-initialization-mode": "not needed",
            "env KERNEL_CLASS_NAME --kernel-class-name": "not needed",
        },
    ),
    "one of two ResourceManagers": Case(
        document=yarn() | jeg("yarn.YarnClusterProcessProxy", config={"yarn_endpoint": "http://rm1:8088/ws/v1/cluster"}),
        backend="yarn",
        server="c.EnterpriseGatewayApp.alt_yarn_endpoint = 'http://rm2:8088/ws/v1/cluster'",
        config={"backend_options": {"address": "http://rm1:8088,http://rm2:8088"}},
    ),
    "the ResourceManagers of the server": Case(
        document=jeg("yarn.YarnClusterProcessProxy", config={"yarn_endpoint": "http://rm1:8088"}),
        backend="yarn",
        server="c.EnterpriseGatewayApp.yarn_endpoint = 'http://rm1:8088'",
        config={"backend_options": None},
        says={"metadata.process_proxy.config.yarn_endpoint": "not needed"},
    ),
    "the server's launch timeout": Case(
        document=jeg(),
        server="c.EnterpriseGatewayApp.launch_timeout = 90",
        config={"launch_timeout": None},
        settings={},
    ),
    "a launcher of Julia": Case(
        document=pods("julia"),
        backend="kubernetes",
        argv=("julia", "-i", "--color=yes"),
        decide={"argv": "how does a kernel of julia start?"},
    ),
    "a launcher of MATLAB": Case(
        document=pods("matlab"),
        backend="kubernetes",
        argv=("python", "-m", "matlab_kernel", "-f", "{connection_file}"),
        decide={"argv": "how does a kernel of matlab start?"},
    ),
    "a launcher of bash with a public key": Case(
        document=yarn() | {"language": "bash", "env": {}},
        backend="yarn",
        files=RUN,
        argv=("python", "-m", "roost.launchers.bridge", "{connection_file}", "/gone/bin/run.sh"),
        decide={"argv": "how does a kernel of bash start?"},
    ),
    "Python's launcher for another language": Case(
        document=jeg(language="sas"), argv=("python", *IPYKERNEL), decide={"language": "starts Python"}
    ),
    "a class of one's own": Case(
        document=jeg() | {"metadata": {"process_proxy": {"class_name": "lab.proxies.SlurmProcessProxy"}}},
        decide={"metadata.process_proxy.class_name": "lab.proxies.SlurmProcessProxy is no class of theirs"},
    ),
    "a class of one's own beside Jupyter's provisioner": Case(
        document=jeg()
        | {
            "metadata": {
                "process_proxy": {"class_name": "lab.OwnProxy"},
                "kernel_provisioner": {"provisioner_name": "local-provisioner"},
            }
        },
        decide={"metadata.process_proxy.class_name": "lab.OwnProxy is no class of theirs"},
    ),
    "docker run on a list of hosts": Case(
        document=jeg(
            "distributed.DistributedProcessProxy",
            config={"remote_hosts": ["gpu1", "gpu2"]},
            argv=["docker", "run", "-it", "-v", "/data:/data", "img:1", "python", "/k/launch_ipykernel.py", *FLAGS],
        ),
        backend="docker",
        argv=("python", *IPYKERNEL),
        config={"options": {"image": "img:1"}},
        decide={"argv run": "on gpu1, gpu2, and roost starts containers on one engine: -it -v /data:/data"},
    ),
    "a variable that names a token": Case(
        document=jeg(env={"HUB_TOKEN": "${HUB_TOKEN}", "OWN_TOKEN": "hunter2", "URL": "https://ada:hunter2@host/"}),
        env={"HUB_TOKEN": "${HUB_TOKEN}"},
        decide={"env OWN_TOKEN": "a secret", "env URL": "a secret"},
        says={"env HUB_TOKEN": "taken over"},
    ),
    "an option that roost does not know": Case(
        document=jeg(config={"colour": "red"}, colour="blue") | {"process_proxy": {"class_name": "x.Y"}},
        decide={"metadata.process_proxy.config.colour": "does not know"},
        says={"colour": "taken over", "process_proxy.class_name": "not needed"},
    ),
    "users and an image without a version": Case(
        document=pods(config={"image_name": "lab/py:VERSION", "unauthorized_users": ["eve", "bob"]}),
        backend="kubernetes",
        config={"options": {"image": "lab/py:VERSION"}},
        settings={"RoostScheduler": {"kernelspec_users": {"old": {"denied": ["bob", "eve"]}}}},
        decide={"metadata.process_proxy.config.image_name": "no version"},
    ),
    "a variable that roost would refuse": Case(
        document=yarn(KERNEL_RESOURCES="many", KERNEL_FOO="1"),
        backend="yarn",
        files=RUN,
        env={"KERNEL_FOO": "1", "KERNEL_RESOURCES": None},
        decide={"env KERNEL_RESOURCES": "rename it"},
    ),
    "Spark on Kubernetes": Case(
        document=pods(
            argv=["/gone/bin/run.sh", *FLAGS],
            env={
                "SPARK_OPTS": "--master k8s://https://${KUBERNETES_SERVICE_HOST} --deploy-mode cluster "
                "--conf spark.kubernetes.namespace=${KERNEL_NAMESPACE} "
                "--conf spark.kubernetes.executor.label.app=lab "
                "--conf spark.kubernetes.driver.container.image=${KERNEL_IMAGE} "
                "--conf spark.kubernetes.executor.container.image=${KERNEL_EXECUTOR_IMAGE} "
                "--conf spark.kubernetes.authenticate.driver.serviceAccountName=spark"
            },
        ),
        backend="kubernetes",
        files=RUN,
        config={"options": {"image": "lab/py:1", "service_account": "spark"}},
        env={
            "PYSPARK_SUBMIT_ARGS": "--master k8s://https://kubernetes.default.svc --deploy-mode client --conf "
            "spark.kubernetes.executor.label.app=lab --conf spark.driver.host=${env:ROOST_POD_IP} --conf "
            "spark.kubernetes.driver.pod.name=${env:ROOST_POD_NAME} --conf "
            "spark.kubernetes.namespace=${env:ROOST_POD_NAMESPACE} --conf "
            "spark.kubernetes.executor.container.image=lab/py:1 pyspark-shell"
        },
        settings={"RoostKubernetesBackend": {"token_service_accounts": ["spark"]}},
    ),
    "words with quotes, and the client's options": Case(
        document=yarn(
            """--master yarn-cluster --conf spark.driver.extraJavaOptions='-Da=1 -Db="2"' --proxy-user eve""",
            KERNEL_EXTRA_SPARK_OPTS="--conf a.b=1",
            PYSPARK_PYTHON="/opt/py/bin/python",
        ),
        backend="yarn",
        files=RUN,
        argv=("/opt/py/bin/python", *IPYKERNEL),
        config={"options": {"python": "/opt/py/bin/python"}, "memory": "2GiB", "cpus": 1},
        env={
            "PYSPARK_SUBMIT_ARGS": "--conf a.b=1 --master yarn --conf "
            """'spark.driver.extraJavaOptions=-Da=1 -Db="2"' --deploy-mode client --conf """
            "spark.driver.host=${env:NM_HOST} pyspark-shell"
        },
        decide={"env SPARK_OPTS --proxy-user": "another user"},
    ),
    "a launcher that stays": Case(
        document=yarn(), backend="yarn", keep_launcher=True, files={"bin/run.sh": "own\n"},
        argv=("python", "-m", "roost.launchers.bridge", "{connection_file}", "/gone/bin/run.sh"),
    ),
    "a launcher that cannot stay": Case(
        document=pods(), backend="kubernetes", keep_launcher=True, argv=("python", *IPYKERNEL),
        decide={"argv": "this launcher cannot stay"},
    ),
    "R": Case(
        document=jeg(language="text", argv=["Rscript", "/k/launch_IRkernel.R", *FLAGS]),
        argv=("R", "--slave", "-e", "IRkernel::main()", "--args", "{connection_file}"),
    ),
    "another user, and a shell": Case(
        document=jeg(argv=["sudo", "-u", "eve", "sh", "-c", "activate && exec python /k/launch_ipykernel.py", *FLAGS]),
        argv=("python", *IPYKERNEL),
        decide={"argv sudo": "another user", "argv": "activate"},
    ),
    "programs around Python": Case(
        document=jeg(argv=["conda", "run", "-n", "ml", "python", "-u", "/k/launch_ipykernel.py", *FLAGS]),
        argv=("conda", "run", "-n", "ml", "python", "-u", *IPYKERNEL),
    ),
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "conductor": (jeg("conductor.ConductorClusterProcessProxy"), "Conductor"),
    "spark operator": (jeg("spark_operator.SparkOperatorProcessProxy"), "Spark operator"),
    "custom resource": (jeg("crd.CustomResourceProcessProxy"), "custom resource"),
    "dask-yarn": (yarn(DASK_OPTS="--deploy-mode remote"), "dask-yarn"),
    "a template": (jeg(argv=["${install_dir}/bin/run.sh", *FLAGS]), "half-written"),
    "Scala on hosts": (
        jeg(
            "distributed.DistributedProcessProxy",
            language="scala",
            config={"remote_hosts": "n1"},
            argv=["run.sh", *FLAGS],
        ),
        "encrypts each kernel",
    ),
}
