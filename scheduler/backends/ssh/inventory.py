"""Hosts from the JSON that `ansible-inventory --list` prints.

    "_meta": {"hostvars": {HOST: VARIABLES}}     only the hosts that have variables
    GROUP: {"hosts": [HOST], "children": [GROUP]}

Each group becomes the label `group.GROUP=yes` of its hosts, and of the hosts in its groups. `ansible_host`,
`ansible_user` and `ansible_port` become the name that ssh reads. The label `inventory_hostname` is Ansible's own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import read_input_json

from .host import Host, make_host

_MOST_BYTES = 64 << 20
_WITHOUT_LABEL = frozenset({"all", "ungrouped"})
"""The groups that Ansible itself makes."""
_CONNECTIONS = frozenset({"", "ssh", "smart", "paramiko", "paramiko_ssh"})
"""The values of `ansible_connection` for hosts that ssh reaches. The others are containers, Windows, this machine."""
_SSH_PORT = "22"
_REMEDY = "write the file by `ansible-inventory -i INVENTORY --list`"


def read_inventory(path: Path) -> list[Host]:
    """Return the hosts of an inventory that ssh reaches, in the order of their names. Raises `ConfigError`."""
    try:
        document = read_input_json(path, most_bytes=_MOST_BYTES)
    except ConfigError as problem:
        raise ConfigError(f"{problem.user_message.removesuffix('.')}: {_REMEDY}.") from None
    try:
        variables = _read_object(_read_object(document, "the inventory").get("_meta", {}), "_meta").get(
            "hostvars"
        )
        variables = _read_object(variables, "_meta.hostvars")
        groups = _find_groups(document)
        found = []
        for name in sorted({*variables, *groups}):
            own = _read_object(variables.get(name, {}), f"_meta.hostvars of {name!a:.80}")
            if _read_variable(own, "connection") in _CONNECTIONS:
                found.append(_make_host(name, own, groups.get(name, set()) - _WITHOUT_LABEL))
    except ValueError as problem:
        raise ConfigError(f"{path}: {problem}.") from None
    return found


def _find_groups(document: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return the groups of each host, with the groups that these are in. Raises `ValueError`."""
    own_hosts: dict[str, list[str]] = {}
    parents: dict[str, list[str]] = {}
    for name, group in document.items():
        if name != "_meta":
            own_hosts[name] = _read_names(group, "hosts", name)
            for child in _read_names(group, "children", name):
                parents.setdefault(child, []).append(name)
    found: dict[str, set[str]] = {}
    for name, hosts in own_hosts.items():
        above = _find_all(name, parents)
        for host in hosts:
            found.setdefault(host, set()).update(above)
    return found


def _find_all(name: str, parents: Mapping[str, list[str]]) -> set[str]:
    """Return a group and all groups that it is in. A group may be in itself."""
    found, rest = set[str](), [name]
    while rest:
        if (each := rest.pop()) not in found:
            found.add(each)
            rest += parents.get(each, ())
    return found


def _make_host(name: str, variables: Mapping[str, Any], groups: set[str]) -> Host:
    """Return the host as ssh reads it. Raises `ValueError`."""
    reached = _read_variable(variables, "host") or name
    user, port = _read_variable(variables, "user"), _read_variable(variables, "port")
    labels = {f"group.{group}": "yes" for group in sorted(groups)}
    if user:
        reached = f"{user}@{reached}"
    if port and port != _SSH_PORT:
        reached = f"ssh://{reached}:{port}"
    if reached != name:
        labels["inventory_hostname"] = name
    try:
        return make_host(reached, labels)
    except ValueError as problem:
        raise ValueError(f"the host {name!a:.80}: {problem}") from None


def _read_variable(variables: Mapping[str, Any], name: str) -> str:
    """Return a variable of Ansible's, also in its older spelling `ansible_ssh_…`; empty if it is not set."""
    value = variables.get(f"ansible_{name}", variables.get(f"ansible_ssh_{name}"))
    return "" if value is None else str(value)


def _read_object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no object: {_REMEDY}")
    return value


def _read_names(group: object, key: str, name: str) -> list[str]:
    found = _read_object(group, f"the group {name!a:.80}").get(key, [])
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f"{key} of the group {name!a:.80} is no list of names: {_REMEDY}")
    return found
