"""The pod and the Secret of a lease: roost's defaults, the operator's template on top, then what roost needs.

Values are merged as data; nothing is substituted in text. Lists of named things (containers, volumes, variables) are
merged by name.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import Assignment, Lease
from roost.launchers.protocol.start_archive import add_start
from roost.placement import Request
from roost.placement.model import NODE_LABEL
from roost.scheduler.backends.agent_per_kernel import AGENT_PORT, dump_lease
from roost.scheduler.backends.node_archive import dump_start, pack
from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import read_input_yaml

from .allow_lists import check_name, check_namespace, check_number, matches
from .api import JsonObject
from .names import (
    CONTAINER,
    GATE,
    KEY_ANNOTATION,
    LEASE_ANNOTATION,
    LEASE_LABEL,
    MANAGED_BY,
    PORT_ANNOTATION,
    SERVICE_LABEL,
    USER_LABEL,
    digest,
    to_label,
)
from .quantity import format_cpus
from .settings import RoostKubernetesBackend
from .volumes import add_volumes, check_mounts, check_volumes

GRACE_S = 5
"""How long a kernel has between SIGTERM and SIGKILL when its pod is deleted."""
_IDLE_EXIT_S = 60.0
_START = "/roost/start"
_RUN = "/roost/run"
_HOME = "/home/roost"
_ARCHIVE = "start.zip"
_SCRATCH = "roost-scratch"
_SECRET = "roost-start"
_POD_VARIABLES = {
    "ROOST_POD_IP": "status.podIP",
    "ROOST_POD_NAME": "metadata.name",
    "ROOST_POD_NAMESPACE": "metadata.namespace",
}
"""Variables of the container, and the fields of the pod that they have. Spark's driver needs all."""
_FOREVER = [
    {"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute"}
    for taint in ("not-ready", "unreachable")
]
"""Tolerations without a time limit. With these, kernels live on while their node does not answer."""
_DEFAULTS: JsonObject = {
    "metadata": {
        "annotations": {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        }
    },
    "spec": {
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "fsGroup": 1000,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER,
                "env": [{"name": "HOME", "value": _HOME}],
                "workingDir": _HOME,
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [
                    {"name": _SCRATCH, "mountPath": "/tmp", "subPath": "tmp"},
                    {"name": _SCRATCH, "mountPath": _HOME, "subPath": "home"},
                ],
            }
        ],
        "volumes": [{"name": _SCRATCH, "emptyDir": {}}],
    },
}


class PodTemplate:
    """Builds pods by the operator's settings. Raises `ConfigError` if the template cannot be read."""

    def __init__(self, settings: RoostKubernetesBackend) -> None:
        self._settings = settings
        self._base = merge(_DEFAULTS, _read_template(settings.pod_template))
        check_mounts(_container(self._base).get("volumeMounts", ()), "the pod template")

    def check(self, request: Request) -> None:
        """Raise `ConfigError` for options that are not allowed, a missing image, or amounts that are fractions."""
        if request.gpus != int(request.gpus):
            raise ConfigError(
                f"Kubernetes gives whole GPUs only: ask for 1 GPU instead of {request.gpus:g}. Shares would need "
                "a device plugin with replicas (time-slicing or MPS), whose resource is then c.RoostKubernetes"
                "Backend.gpu_resource."
            )
        settings, options = self._settings, request.options
        check_name("image", options.get("image"), settings.allowed_images)
        if not (options.get("image") or settings.image or _container(self._base).get("image")):
            raise ConfigError(
                "no image is set: name one (option image, KERNEL_IMAGE) or set c.RoostKubernetesBackend.image."
            )
        namespace = options.get("namespace")
        check_namespace(namespace, [*settings.allowed_namespaces, settings.namespace])
        accounts = [*settings.allowed_service_accounts, *settings.token_service_accounts]
        check_name("service_account", options.get("service_account"), accounts)
        check_number("uid", options.get("uid"), settings.allowed_uids)
        check_number("gid", options.get("gid"), settings.allowed_gids)
        check_volumes(options, settings.allowed_volumes)
        for name, amount in request.resources.items():
            if amount != int(amount) or name == settings.gpu_resource:
                wanted = "ask for it with gpus" if name == settings.gpu_resource else "ask for a whole number"
                raise ConfigError(f"Kubernetes gives no {amount:g} {name!r:.80}: {wanted}.")

    def build_pod(self, lease: Lease, name: str, service: str, agent_public: str) -> JsonObject:
        """Return the pod of a lease, with a scheduling gate.

        `service` is the label of the service, and `agent_public` is the public key of the pod's agent.
        """
        settings, request = self._settings, lease.request
        options = request.options
        labels = {
            MANAGED_BY: "roost",
            SERVICE_LABEL: service,
            USER_LABEL: to_label(lease.owner.user),
            LEASE_LABEL: digest(lease.id),
        }
        annotations = {
            LEASE_ANNOTATION: dump_lease(lease),
            KEY_ANNOTATION: agent_public,
            PORT_ANNOTATION: str(AGENT_PORT),
        }
        container: JsonObject = {
            "name": CONTAINER,
            "restartPolicy": None,  # the agent ends with its kernel, and begins no second one
            "restartPolicyRules": None,
            "command": [settings.python, f"{_START}/{_ARCHIVE}", f"{_RUN}/agent", lease.id],
            "args": [],
            "terminationMessagePolicy": "FallbackToLogsOnError",  # the status of a pod that fails says why
            "env": [
                {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
                for name, path in _POD_VARIABLES.items()
            ],
            "resources": self._resources(request),
            "ports": [{"name": "roost-agent", "containerPort": AGENT_PORT}],
            "volumeMounts": [
                {"name": _SECRET, "mountPath": _START, "readOnly": True},
                {"name": _SCRATCH, "mountPath": _RUN, "subPath": "run"},
            ],
        }
        if image := options.get("image") or settings.image:
            container["image"] = image
        container["securityContext"] = _user(options)
        spec: JsonObject = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": GRACE_S,
            "schedulingGates": [{"name": GATE}],
            "containers": [container],
            "volumes": [{"name": _SECRET, "secret": {"secretName": name, "defaultMode": 0o400}}],
            "tolerations": [*self._base["spec"].get("tolerations", ()), *_FOREVER, *_tolerations(request)],
        }
        add_volumes(options, spec, container)
        if settings.priority_class:
            spec["priorityClassName"] = settings.priority_class
        if account := options.get("service_account"):
            spec["serviceAccountName"] = account
            if matches(account, settings.token_service_accounts):
                spec["automountServiceAccountToken"] = True
        pod: JsonObject = merge(
            deepcopy(self._base),
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": labels, "annotations": annotations},
                "spec": spec,
            },
        )
        if node_id := lease.node_id or request.labels.get(NODE_LABEL):
            _require_node(pod["spec"], node_id)
        return pod

    def build_secret(self, name: str, pod: JsonObject, assignment: Assignment) -> JsonObject:
        """Return the Secret that the pod mounts and owns: the agent's code, settings and assignment."""
        metadata = pod["metadata"]
        archive = add_start(pack(is_imported=True)[0], dump_start(self._agent_settings(), assignment))
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "roost/start",
            "immutable": True,
            "metadata": {
                "name": name,
                "labels": {key: metadata["labels"][key] for key in (MANAGED_BY, SERVICE_LABEL, USER_LABEL)},
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
                ],
            },
            "data": {_ARCHIVE: base64.b64encode(archive).decode()},
        }

    def namespace_of(self, request: Request, default: str) -> str:
        """Return the namespace of a request's pod."""
        return str(request.options.get("namespace") or self._settings.namespace or default)

    def _agent_settings(self) -> AgentSettings:
        return AgentSettings(
            address="$ROOST_POD_IP",
            ports=(AGENT_PORT,),
            idle_exit_s=_IDLE_EXIT_S,
            gpus=0,  # Kubernetes knows them; reading them again delays the start
            is_remote=True,
            gpu_visibility="inherit",
            is_per_kernel=True,
            unit="pod",
        )

    def _resources(self, request: Request) -> JsonObject:
        requests: dict[str, str] = {}
        limits: dict[str, str] = {}
        if request.cpus:
            requests["cpu"] = format_cpus(request.cpus)
            if self._settings.limit_cpus:
                limits["cpu"] = requests["cpu"]
        if request.memory_bytes:
            requests["memory"] = limits["memory"] = str(request.memory_bytes)
        extended = {
            **request.resources,
            **({self._settings.gpu_resource: request.gpus} if request.gpus else {}),
        }
        for name, amount in extended.items():
            requests[name] = limits[name] = str(int(amount))
        return {"requests": requests, "limits": limits}


def merge(base: Any, change: Any) -> Any:
    """Return `base` with `change` merged in. Lists of named things are merged by name; null removes a value."""
    if isinstance(base, Mapping) and isinstance(change, Mapping):
        merged = {key: value for key, value in base.items() if change.get(key, value) is not None}
        for key, value in change.items():
            if value is not None:
                merged[key] = merge(base.get(key), value)
        return merged
    if isinstance(base, list) and isinstance(change, list) and _is_named(base) and _is_named(change):
        by_key = {_key(item): item for item in base}
        for item in change:
            is_variable = "value" in item or "valueFrom" in item  # it has one of the two
            by_key[_key(item)] = item if is_variable else merge(by_key.get(_key(item)), item)
        return list(by_key.values())
    return change


def _is_named(items: list[Any]) -> bool:
    return all(
        isinstance(item, Mapping)
        and isinstance(item.get("name"), str)
        and isinstance(item.get("mountPath", ""), str)
        for item in items
    )


def _key(item: Mapping[str, Any]) -> tuple[str, str]:
    """Return an item's key: its name and mount path, because a volume can be mounted at several paths."""
    return item["name"], item.get("mountPath", "")


def _read_template(path: str) -> JsonObject:
    if not path:
        return {}
    try:
        template = read_input_yaml(path)
    except ConfigError as problem:
        raise ConfigError(f"the pod template {problem}") from None
    if mistake := _find_mistake(template):
        raise ConfigError(f"the pod template {path} {mistake}.")
    return dict(template)


def _find_mistake(template: Any) -> str:
    """Return the fault of a template, as a predicate; empty if there is none.

    The API server checks the rest.
    """
    if not isinstance(template, dict) or template.get("kind", "Pod") != "Pod" or template.keys() - {
        "apiVersion", "kind", "metadata", "spec",
    }:  # fmt: skip
        return "must be one Pod, with metadata and spec"
    metadata, spec = template.get("metadata", {}), template.get("spec", {})
    for name, value in (("metadata", metadata), ("spec", spec)):
        if not isinstance(value, dict):
            return f"must have a mapping as {name}"
    for name in ("labels", "annotations"):
        if not isinstance(metadata.get(name, {}), dict):
            return f"must have a mapping as metadata.{name}"
    if "finalizers" in metadata:
        return "must not have finalizers: its pods would never be gone"
    if not isinstance(spec.get("tolerations", []), list):
        return "must have a list as spec.tolerations"
    for name in ("containers", "volumes"):
        if not isinstance(items := spec.get(name, []), list) or not _is_named(items):
            return f"must have a list of things with names as spec.{name}"
    if any(volume["name"] == _SECRET for volume in spec.get("volumes", ())):
        return f"must not change the volume {_SECRET}: it has roost's own files"
    for container in spec.get("containers", ()):
        for name in ("env", "volumeMounts"):
            if not isinstance(items := container.get(name, []), list) or not _is_named(items):
                return f"must have a list of things with names as {name} of each container"
    return ""


def _container(pod: JsonObject) -> JsonObject:
    return next(one for one in pod["spec"]["containers"] if one["name"] == CONTAINER)


def _user(options: Mapping[str, Any]) -> JsonObject:
    """Return the user and group that a request wants, as a security context. Only root is no `runAsNonRoot`."""
    context: JsonObject = {}
    if "uid" in options:
        context |= {"runAsUser": options["uid"], "runAsNonRoot": options["uid"] != 0}
    if "gid" in options:
        context["runAsGroup"] = options["gid"]
    return context


def _tolerations(request: Request) -> list[JsonObject]:
    tolerations = []
    for taint in request.tolerates:
        key, _, value = taint.partition("=")
        tolerations.append(
            {"key": key, "operator": "Equal", "value": value} if value else {"key": key, "operator": "Exists"}
        )
    return tolerations


def _require_node(spec: JsonObject, node_id: str) -> None:
    """Pin the pod to a node by affinity, which leaves the decision to Kubernetes' scheduler."""
    field = {"key": "metadata.name", "operator": "In", "values": [node_id]}
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    required = affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
    terms = required.get("nodeSelectorTerms") or [{}]
    required["nodeSelectorTerms"] = [
        {**term, "matchFields": [*term.get("matchFields", ()), field]} for term in terms
    ]
