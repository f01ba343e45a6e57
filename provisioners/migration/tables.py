"""The tables of a migration: classes, launchers, and the equivalent of each option.

docs/migration/options.md has the same for people.
"""

from __future__ import annotations

import re
from typing import Any

from .sheet import Option, Undecided
from .values import format_memory, read_bool, read_cpus, read_gpus, read_memory, read_names, read_seconds

BACKENDS = {
    "LocalProcessProxy": "local",
    "DistributedProcessProxy": "distributed",
    "YarnClusterProcessProxy": "yarn",
    "KubernetesProcessProxy": "kubernetes",
    "DockerProcessProxy": "docker",
    "DockerSwarmProcessProxy": "docker",
    "CustomResourceProcessProxy": "custom-resource",
    "SparkOperatorProcessProxy": "spark-operator",
    "ConductorClusterProcessProxy": "conductor",
    "local-provisioner": "local",
    "distributed-provisioner": "distributed",
    "yarn-provisioner": "yarn",
    "kubernetes-provisioner": "kubernetes",
    "docker-provisioner": "docker",
    "docker-swarm-provisioner": "docker",
    "custom-resource-provisioner": "custom-resource",
    "spark-operator-provisioner": "spark-operator",
}
"""roost's backend of each class, by its last name, or the reason's key in `REFUSALS`.

`distributed` is `ssh` if it has other hosts than this machine, else `local`.
"""
GUESSES = (
    ("kube|k8s|pod|image_name", "kubernetes"),
    ("yarn|hadoop", "yarn"),
    ("docker|swarm|podman|container", "docker"),
    ("ssh|distributed|remote|host", "distributed"),
)
"""The backend of a class of one's own, by words in its name and in its options. The first one counts."""
REFUSALS = {
    "custom-resource": "Its class makes a custom resource of Kubernetes, and roost makes pods only: "
    "write a kernelspec for the backend kubernetes.",
    "spark-operator": "The Spark operator would own the driver's pod, which roost must lease: "
    "use a Spark kernel in client mode on the backend kubernetes.",
    "conductor": "IBM Spectrum Conductor is a proprietary cluster, and roost has no backend for it: "
    "use Spark on YARN or Kubernetes.",
    "dask": "It starts dask-yarn, which has had no release since 2021: use a kernel of the backend yarn with "
    "dask.distributed, or the backend dask.",
    "template": "It is a half-written template, with names in braces that its generator has not filled in: install it "
    "again (`jupyter yarn-spec install` without --yarn-endpoint), then migrate it.",
}
LAUNCHERS = {
    "launch_ipykernel.py": "python",
    "launch_IRkernel.R": "r",
    "launcher.ToreeLauncher": "scala",
    "launch_kubernetes.py": "",
    "launch_docker.py": "",
    "launch_custom_resource.py": "",
    "bootstrap-kernel.sh": "",
    "run.sh": "",
}
"""The launchers of the three systems, and the language of each if it has only one."""
MAKES_CONTAINERS = ("launch_kubernetes.py", "launch_docker.py", "launch_custom_resource.py")
"""The launchers that make a pod, a container or a resource, in which another launcher runs."""
COMMANDS = {
    "r": ("R", "--slave", "-e", "IRkernel::main()", "--args", "{connection_file}"),
    "julia": ("julia", "-i", "--color=yes", "-e", "import IJulia; IJulia.run_kernel()", "{connection_file}"),
}
"""The kernels' own commands. Another language has `python -m LANGUAGE_kernel`, as most have."""
HANDSHAKE = ("kernel-id", "response-address", "public-key", "port-range", "transport-encryption")
"""The launchers' options that carry the handshake."""
NEEDLESS_FLAGS = ("cluster-type", "nosparkcontext", "pod-template", "spark-opts-out", "alternate-sigint")
"""Options of launchers without a meaning for the kernel's own command."""
LEAST_TIMEOUT_S = 60
"""roost's own default. A launch timeout of theirs counts no queue and no image, so a shorter one has no use."""
CONTAINERS, PODS, YARN, CLUSTERS = (
    ("kubernetes", "docker"),
    ("kubernetes",),
    ("yarn",),
    ("ssh", "kubernetes", "yarn"),
)
_POLICIES = {"round-robin": "round_robin", "least-connection": "spread"}
FOR_THEIRS = "for their servers, launchers and images"
_ONE_AMOUNT = "the request and the limit are one amount in roost"


def read_text(value: Any) -> str | None:
    """Return a text without spaces around it; None for an empty one."""
    return str(value if value is not None else "").strip() or None


def read_address(value: Any) -> str | None:
    """Return the address of a ResourceManager, or several with commas between. Raises `ValueError`."""
    found = [re.sub(r"/ws/v1/cluster/?$", "", each).rstrip("/") for each in read_names(value or "")]
    if any("@" in each or "://" not in each for each in found):
        raise ValueError("it is no plain URL")
    return ",".join(found) or None


def _read_image(value: Any) -> str | None:
    image = read_text(value)
    if image and re.search(r":VERSION\b|[$<{]", image):
        known = image if "$" not in image else None
        raise Undecided("it names no version: give one, with Python 3.10 or newer and ipykernel", known)
    return image


def _read_memory(value: Any) -> str:
    return format_memory(read_memory(value))


def _read_timeout(value: Any) -> float | None:
    seconds = read_seconds(value)
    return seconds if seconds > LEAST_TIMEOUT_S else None


def _read_policy(value: Any) -> str:
    if str(value) not in _POLICIES:
        raise Undecided(f"it is none of {', '.join(_POLICIES)}: choose a policy of roost's")
    return _POLICIES[str(value)]


def _read_ports(value: Any) -> None:
    wanted = re.fullmatch(r"\s*([1-9][0-9]*)\.\.([0-9]+)\s*", str(value))
    if wanted:
        raise Undecided(
            f"kernel_ports of the backend holds for all its kernels: set it to {wanted[1]}-{wanted[2]} if a firewall "
            "needs it"
        )


def _read_security(value: Any) -> str | None:
    return "kerberos" if read_bool(value) else None


def _read_impersonation(value: Any) -> None:
    if read_bool(value):
        raise Undecided(
            "kernels run as the user of roost's service: run a Jupyter Server for each user (JupyterHub)"
        )


def _read_id(value: Any) -> int:
    if not str(value).strip().isdecimal() or not 0 < int(value) < 1 << 31:
        raise ValueError("it is no number above 0")
    raise Undecided("may kernels run as it? The setting allowed_uids or allowed_gids says so", int(value))


def _read_yarn_memory(value: Any) -> None:
    raise Undecided("set memory for the kernel's container, and Spark's own options for its executors")


def _read_volumes(value: Any) -> str | None:
    if text := read_text(value):
        raise Undecided(
            "must kernels have these volumes? c.RoostKubernetesBackend.allowed_volumes allows them", text
        )
    return None


def _read_mode(value: Any) -> str | None:
    if value not in ("lazy", "eager", "none", ""):
        raise Undecided("it is none of lazy, eager and none")
    return str(value) or None


def _read_class(value: Any) -> str | None:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", value):
        raise Undecided("it is no name of a class: correct it")
    return str(value)


def _read_jvm_memory(value: Any) -> int:
    return read_memory(value, is_jvm=True)


def _read_login(value: Any) -> None:
    raise Undecided(
        "in client mode the kernel's user must be able to read the keytab where the kernel runs: is it there?"
    )


def _read_proxy_user(value: Any) -> None:
    raise Undecided(
        "Spark would run as another user than the kernel: run a Jupyter Server for each user (JupyterHub)"
    )


def _read_limit(value: Any) -> int | None:
    """Return a limit of kernels; None for none (theirs is -1)."""
    return int(value) if int(value) >= 0 else None


def _read_idle(value: Any) -> float | None:
    return read_seconds(value) if float(value) > 0 else None


_IMAGE = Option("options.image", _read_image, CONTAINERS, note="it needs Python 3.10 or newer with ipykernel")
_TIMEOUT = Option("launch_timeout", _read_timeout)
_NAMESPACE = Option("options.namespace", read_text, PODS, "allowed_namespaces")
_ACCOUNT = Option("options.service_account", read_text, PODS, "allowed_service_accounts")
_EXECUTOR = Option("~executor_image", read_text, PODS)
OPTIONS = {
    "image_name": _IMAGE,
    "executor_image_name": _EXECUTOR,
    "default_kernel_service_account_name": _ACCOUNT,
    "namespace": _NAMESPACE,
    "launch_timeout": _TIMEOUT,
    "load_balancing_algorithm": Option("policy", _read_policy, CLUSTERS),
    "port_range": Option("", _read_ports),
    "yarn_endpoint_security_enabled": Option("c.RoostYarnBackend.authentication", _read_security, YARN),
    "impersonation_enabled": Option("", _read_impersonation),
    "KERNEL_IMAGE": _IMAGE,
    "KERNEL_LAUNCH_TIMEOUT": _TIMEOUT,
    "KERNEL_CPUS": Option("cpus", read_cpus),
    "KERNEL_CPUS_LIMIT": Option("cpus", read_cpus, conflict=_ONE_AMOUNT),
    "KERNEL_MEMORY": Option("memory", _read_memory),
    "KERNEL_MEMORY_LIMIT": Option("memory", _read_memory, conflict=_ONE_AMOUNT),
    "KERNEL_GPUS": Option("gpus", read_gpus),
    "KERNEL_GPUS_LIMIT": Option("gpus", read_gpus, conflict=_ONE_AMOUNT),
    "KERNEL_DRIVER_MEMORY": Option("", _read_yarn_memory, YARN),
    "KERNEL_EXECUTOR_MEMORY": Option("", _read_yarn_memory, YARN),
    "KERNEL_NAMESPACE": _NAMESPACE,
    "KERNEL_SERVICE_ACCOUNT_NAME": _ACCOUNT,
    "KERNEL_EXECUTOR_IMAGE": _EXECUTOR,
    "KERNEL_REMOTE_HOST": Option("labels.node", read_text, CLUSTERS),
    "KERNEL_VOLUMES": Option("options.volumes", _read_volumes, PODS),
    "KERNEL_VOLUME_MOUNTS": Option("options.volume_mounts", _read_volumes, PODS),
    "KERNEL_UID": Option("options.uid", _read_id, PODS),
    "KERNEL_GID": Option("options.gid", _read_id, PODS),
    "KERNEL_QUEUE": Option("options.queue", read_text, YARN),
    "KERNEL_NODE_LABEL": Option("options.label", read_text, YARN),
}
"""The options of a stanza, which `EG_*`, `GP_*` and `RP_*` in `env` can set too, and the variables of a kernelspec.

In this order, the first value of a target counts: so a request stands before its limit.
"""
FLAGS = {
    "spark-context-initialization-mode": Option("~mode", _read_mode),
    "kernel-class-name": Option("~class", _read_class),
    "customAppName": Option("~name", read_text),
}
"""The options of a launcher that mean something for the kernel's own command."""
FLAG_VARIABLES = {
    "KERNEL_SPARK_CONTEXT_INIT_MODE": "spark-context-initialization-mode",
    "KERNEL_CLASS_NAME": "kernel-class-name",
}
_LOGIN = Option("", _read_login)
SPARK_OPTIONS = {
    "spark.yarn.queue": (OPTIONS["KERNEL_QUEUE"], True),
    "spark.driver.memory": (Option("~driver_memory", _read_jvm_memory), True),
    "spark.driver.memoryOverhead": (Option("~driver_overhead", _read_jvm_memory), True),
    "spark.yarn.driver.memoryOverhead": (Option("~driver_overhead", _read_jvm_memory), True),
    "spark.driver.cores": (Option("cpus", read_cpus), True),
    "spark.kubernetes.namespace": (_NAMESPACE, False),
    "spark.kubernetes.authenticate.driver.serviceAccountName": (
        Option("options.service_account", read_text, PODS, "token_service_accounts"), False
    ),
    "spark.kubernetes.container.image": (_EXECUTOR, False),
    "spark.kubernetes.executor.container.image": (_EXECUTOR, False),
    "--proxy-user": (Option("", _read_proxy_user), False),
    **{
        f"{before}{name}": (_LOGIN, True)
        for before in ("--", "spark.yarn.", "spark.kerberos.")
        for name in ("keytab", "principal")
    },
}  # fmt: skip
"""The options of spark-submit with an equivalent, and whether Spark needs them in client mode too."""
NEEDLESS_VARIABLES = dict.fromkeys(
    (
    "KERNEL_ID", "KERNEL_LANGUAGE", "KERNEL_NAME", "KERNEL_LAUNCHERS_DIR", "KERNEL_POD_NAME", "KERNEL_USERNAME",
    "KERNEL_SPARKAPP_CONFIG_MAP", "KERNEL_RESOURCE_NAME", "KERNEL_CRD_GROUP", "KERNEL_CRD_VERSION",
    "KERNEL_CRD_PLURAL", "YARN_PARTITION_THRESHOLD", "DEFAULT_INTERPRETER", "EG_ALTERNATE_SIGINT",
    ),
    FOR_THEIRS,
) | {"SPARK_YARN_USER_ENV": "Spark no longer reads it (since 2.0)"}  # fmt: skip
"""Variables in `env` of a kernelspec that no kernel needs, and why."""

SETTINGS = {
    "authorized_users": Option("c.RoostScheduler.allowed_users", read_names),
    "unauthorized_users": Option("c.RoostScheduler.denied_users", read_names),
    "launch_timeout": Option("c.RoostScheduler.default_launch_timeout_s", _read_timeout),
    "max_kernels_per_user": Option("c.RoostScheduler.max_kernels_per_user", _read_limit),
    "load_balancing_algorithm": Option("c.RoostScheduler.default_policy", _read_policy),
    "cull_idle_timeout": Option("c.RoostScheduler.idle_after_s", _read_idle),
    "yarn_endpoint_security_enabled": Option("c.RoostYarnBackend.authentication", _read_security),
    "yarn_cert_bundle": Option("c.RoostYarnBackend.ca_file", read_text),
    "namespace": Option("c.RoostKubernetesBackend.namespace", read_text),
    "image_name": Option("c.RoostKubernetesBackend.image", _read_image),
    "port_range": Option("", _read_ports),
    "impersonation_enabled": Option("", _read_impersonation),
}
"""The settings of a server that roost's configuration has."""
NEEDLESS_SETTINGS = {
    "min_port_range_size", "max_port_range_retries", "yarn_log_level", "kubernetes_log_level", "docker_log_level",
    "ssh_log_level", "log_level", "yarn_shutdown_wait_time", "response_ip", "response_port", "response_port_retries",
    "response_addr_any", "response_address", "max_poll_attempts", "poll_interval", "socket_timeout",
    "kernel_cluster_role", "docker_mode", "remove_container", "app_name", "tunnel_max_keep_alive", "authorized_origin",
    "kernel_headers", "webhook_url", "webhook_username", "webhook_password", "auth_type", "kernelspec_cache_enabled",
    "sensitive_env_keys", "redaction_mask", "restart_status_poll_interval", "zmq_max_sockets", "zmq_io_threads",
    "yarn_mutual_authentication", "public_key", "host_ip", "kernel_session_manager_class", "kernel_spec_cache_class",
    "cull_interval", "mirror_working_dirs", "kernel_log_dir", "availability_mode", "kernel_session_persistence",
    "persistence_root", "kernel_session_location", "dynamic_config_interval", "use_incluster_config", "port_retries",
}  # fmt: skip
"""Settings of a server that roost needs nothing for."""
