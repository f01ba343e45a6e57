"""The options of a stanza's `config`, which a server's settings and a kernelspec's `env` can set too."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from .amounts import read_bool, read_names, read_seconds, read_url
from .draft import Draft
from .secrets import is_secret, show

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1", "")
_POLICIES = {"round-robin": "round_robin", "least-connection": "spread"}
LEAST_TIMEOUT_S = 60
"""A launch timeout of theirs counts no queue, and roost's does. A shorter one becomes this."""
_NO_RANGE = ("", "0..0", "0", "none")


def _set_hosts(draft: Draft, value: Any, place: str) -> None:
    hosts = [host for host in read_names(value) if host]
    away = [host for host in hosts if host not in LOCAL_HOSTS]
    if draft.backend != "ssh":
        if away:
            draft.say(place, "dropped", f"the backend {draft.backend} has nodes of its own")
        else:
            draft.say(place, "translated", "only this machine: backend local")
        return
    if is_secret("", ", ".join(hosts)):
        text = "a host has a password: name the hosts in c.RoostSshBackend.hosts, and use keys or an agent"
        draft.say(place, "decision", text, "no hosts of this kernelspec")
        return
    label = draft.old.name.lower()
    is_own = not place.startswith("server ")
    labels = {label: "yes"} if is_own else {}
    draft.settings.setdefault("RoostSshBackend", {})["hosts"] = {host: dict(labels) for host in hosts}
    if is_own:
        draft.config["labels"] = {label: "yes"}
    text = f"backend ssh, with c.RoostSshBackend.hosts = {show('hosts', ', '.join(hosts))}"
    draft.say(
        place, "translated", text + (f"; the label {label} keeps its kernels on them" if is_own else "")
    )


def _set_balancing(draft: Draft, value: Any, place: str) -> None:
    policy = _POLICIES.get(str(value))
    if draft.backend == "local":
        draft.say(place, "dropped", "there is one machine only")
    elif policy is None:
        text = f"{show(place, value)} is none of their algorithms ({', '.join(_POLICIES)})"
        draft.say(place, "decision", f"{text}: choose a policy of roost's", "the operator's default_policy")
    else:
        draft.config["policy"] = policy
        draft.say(place, "translated", f"policy {policy}")


def _set_endpoint(draft: Draft, value: Any, place: str) -> None:
    text = str(value).strip()
    if draft.backend != "yarn" or not text or text == "None":
        draft.say(place, "dropped", "it is empty, or the backend needs no ResourceManager")
        return
    added = []
    for part in text.split(","):
        address = re.sub(r"/ws/v1/cluster/?$", "", part.strip()).rstrip("/")
        if is_secret("", address) or not read_url(address).netloc:
            draft.say(
                place, "decision", "it is no plain URL: set c.RoostYarnBackend.address", "HADOOP_CONF_DIR"
            )
            return
        added.append(address)
    own = draft.config.setdefault("backend_options", {})
    own["address"] = ",".join([*filter(None, [own.get("address", "")]), *added])
    draft.say(place, "translated", f"backend_options.address, which now is {own['address']}")


def _set_yarn_security(draft: Draft, value: Any, place: str) -> None:
    if draft.backend == "yarn" and read_bool(value):
        draft.settings.setdefault("RoostYarnBackend", {})["authentication"] = "kerberos"
        draft.say(
            place, "translated", "c.RoostYarnBackend.authentication = 'kerberos', for the whole cluster"
        )
    else:
        draft.say(place, "dropped", "off, as in roost without this setting")


def _set_impersonation(draft: Draft, value: Any, place: str) -> None:
    if read_bool(value):
        text = (
            "roost starts kernels as the user of its service: run a Jupyter Server for each user (JupyterHub)"
        )
        draft.say(place, "decision", text, "the user of the service")
    else:
        draft.say(place, "dropped", "off: roost starts kernels as the user of its service")


def _set_image(draft: Draft, value: Any, place: str) -> None:
    if not draft.has_containers:
        draft.say(place, "dropped", f"the backend {draft.backend} has no images")
        return
    image = str(value).strip()
    if not image:
        draft.say(
            place,
            "decision",
            "it is empty: name an image with Python 3.10 and ipykernel",
            "the cluster's image",
        )
        return
    draft.options["image"] = image
    needs = "it needs Python 3.10 or newer with ipykernel, and a user that is not root"
    if re.search(r":VERSION\b|[$<{]", image):
        text = f"options.image, but {show('image', image)} names no version: give one; {needs}"
        draft.say(place, "decision", text, show("image", image))
    else:
        draft.say(place, "translated", f"options.image = {show('image', image)}; {needs}")


def _set_executor_image(draft: Draft, value: Any, place: str) -> None:
    if draft.is_spark and draft.backend == "kubernetes":
        draft.executor_image = str(value).strip()
        shown = show("image", value)
        draft.say(place, "translated", f"spark.kubernetes.executor.container.image = {shown}")
    else:
        draft.say(place, "dropped", "the kernel has no executors of Spark on Kubernetes")


def _set_users(draft: Draft, value: Any, place: str, *, key: str, if_empty: str) -> None:
    if users := read_names(value):
        draft.set_users(key, users)
        shown = show("users", ", ".join(users))
        draft.say(place, "translated", f"c.RoostScheduler.kernelspec_users: {key} {shown}")
    else:
        draft.say(place, "dropped", f"it is empty: {if_empty}")


def _set_ports(draft: Draft, value: Any, place: str) -> None:
    if str(value).strip().lower() in _NO_RANGE:
        draft.say(place, "dropped", "no range")
    else:
        wanted = re.fullmatch(r"\s*([0-9]+)\.\.([0-9]+)\s*", str(value))
        ports = f"{wanted.group(1)}-{wanted.group(2)}" if wanted else show("ports", value)
        text = (
            f"a range holds for all kernels of a cluster: if a firewall needs it, set kernel_ports to {ports}"
        )
        draft.say(place, "decision", text, "free ports of the node")


def _set_timeout(draft: Draft, value: Any, place: str) -> None:
    try:
        seconds = read_seconds(value)
    except ValueError:
        draft.say(place, "decision", "it is no number of seconds: set launch_timeout", f"{LEAST_TIMEOUT_S}")
        return
    draft.config["launch_timeout"] = max(seconds, LEAST_TIMEOUT_S)
    text = f"launch_timeout = {draft.config['launch_timeout']}"
    draft.say(place, "translated", text + "; roost's time includes the queue")


def _set_namespace(draft: Draft, value: Any, place: str) -> None:
    """Take the namespace of the kernelspec's own `env`. That of a server belongs to roost's configuration."""
    set_allowed(draft, "namespace", "allowed_namespaces", str(value), place)


def _set_service_account(draft: Draft, value: Any, place: str) -> None:
    set_allowed(draft, "service_account", "allowed_service_accounts", str(value), place)


def set_allowed(draft: Draft, option: str, setting: str, value: str, place: str) -> None:
    """Set an option of pods, and the setting that allows it."""
    if draft.backend != "kubernetes" or not value.strip():
        draft.say(place, "dropped", "it is empty, or the kernel is in no pod")
    elif "$" in value:
        text = f"options.{option} cannot name a variable: the client's KERNEL_{option.upper()} chooses it"
        draft.say(place, "decision", text, "the cluster's own")
    else:
        draft.options[option] = value.strip()
        draft.allow(setting, value.strip())
        shown = show(option, value)
        draft.say(
            place, "translated", f"options.{option} = {shown}, which c.{draft.section}.{setting} must allow"
        )


HANDLERS: Mapping[str, Callable[[Draft, Any, str], None]] = {
    "remote_hosts": _set_hosts,
    "load_balancing_algorithm": _set_balancing,
    "yarn_endpoint": _set_endpoint,
    "alt_yarn_endpoint": _set_endpoint,
    "yarn_endpoint_security_enabled": _set_yarn_security,
    "impersonation_enabled": _set_impersonation,
    "image_name": _set_image,
    "executor_image_name": _set_executor_image,
    "authorized_users": partial(_set_users, key="allowed", if_empty="everybody who is not denied"),
    "unauthorized_users": partial(_set_users, key="denied", if_empty="nobody is denied"),
    "port_range": _set_ports,
    "launch_timeout": _set_timeout,
    "namespace": _set_namespace,
    "default_kernel_service_account_name": _set_service_account,
}
"""The rule of each option: `(draft, value, place)`. `place` is where the option stands."""
