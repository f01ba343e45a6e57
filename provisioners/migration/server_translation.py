"""Translates the settings of an old server into roost's, with a line for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping
from typing import Any

from .amounts import read_bool, read_names, read_seconds
from .draft import Draft
from .options_table import describe, find_status
from .report import Line
from .secrets import is_secret, show
from .server_settings import OTHER_FILE, NotLiteral, find_key, is_server_variable
from .stanza_options import HANDLERS, LEAST_TIMEOUT_S, LOCAL_HOSTS

_POLICIES = {"round-robin": "round_robin", "least-connection": "spread"}
_OF_KERNELSPECS = ("remote_hosts", "launch_timeout")
"""The settings of a server that `translate` gives to each kernelspec that has none of its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServerTranslation:
    """The lines about each setting of a server. `config` is for `jupyter_roost_config`, by section and setting."""

    lines: tuple[Line, ...]
    config: Mapping[str, Mapping[str, Any]]


def translate_server(server: Mapping[str, Any]) -> ServerTranslation:
    """Translate all settings of a server, as `read_server` returns them."""
    config: dict[str, dict[str, Any]] = {}
    lines = [_translate_setting(name, value, config) for name, value in server.items()]
    return ServerTranslation(tuple(lines), config)


def apply_server(draft: Draft, server: Mapping[str, Any], own: Container[str]) -> None:
    """Give a kernelspec the settings of its server that roost has in kernelspecs, and those of its backend.

    The kernelspec's `own` options win.
    """
    for name, value in server.items():
        key = find_key(name)
        if key in _OF_KERNELSPECS:
            is_wanted = key not in own and not isinstance(value, NotLiteral)
            if is_wanted and (key != "remote_hosts" or draft.backend == "ssh"):
                HANDLERS[key](draft, value, f"server {name}")
        elif key in _RULES and _RULES[key][0] == draft.section:
            found: dict[str, dict[str, Any]] = {}
            draft.lines.append(_translate_setting(name, value, found))
            for setting, new in found.get(draft.section, {}).items():
                there = draft.settings.setdefault(draft.section, {})
                there[setting] = _merge(there.get(setting), new)


def _merge(there: Any, own: Any) -> Any:
    """Join two addresses. Another setting that is there already stays."""
    if isinstance(there, str) and isinstance(own, str) and there != own and "://" in own:
        return f"{there},{own}"
    return own if there is None else there


def _translate_setting(name: str, value: Any, config: dict[str, dict[str, Any]]) -> Line:
    place, key = f"server {name}", find_key(name)
    if name == OTHER_FILE:
        return Line(
            place, "decision", f"read {show('file', value)} too: name it as a file of the server", "not read"
        )
    if isinstance(value, NotLiteral):
        text = f"line {value.line} is no literal, and roost executes no configuration: give its value by hand"
        return Line(place, "decision", text, "not set")
    if key in _RULES:
        section, setting, read = _RULES[key]
        try:
            own = read(value)
        except (ValueError, TypeError, OverflowError):
            text = f"roost cannot read its value: set c.{section}.{setting}"
            return Line(place, "decision", text, "roost's default")
        if own is None:
            return Line(place, "dropped", "its value is the default of roost")
        known = config.setdefault(section, {})
        known[setting] = _merge(known.get(setting), own) if setting == "address" else own
        return Line(place, "translated", f"c.{section}.{setting} = {show(setting, repr(known[setting]))}")
    return _describe(name, key, place, value)


def _describe(name: str, key: str, place: str, value: Any) -> Line:
    """Return the line of a setting that roost's configuration does not have: from the table of options."""
    if key == "impersonation_enabled" and not read_bool(value):
        return Line(place, "dropped", "off: roost starts kernels as the user of its service")
    for kind, known in (
        ("env-server", name),
        ("trait", name),
        ("env-server", f"EG_{key.upper()}"),
        ("env-server", f"GP_{key.upper()}"),
    ):
        if status := find_status(kind, known):
            text = describe(kind, known)
            warning = "; its value is a secret" if is_secret(name, str(value)) else ""
            if status == "none":
                return Line(place, "dropped", text + warning)
            return Line(place, "decision", text + warning, "not set")
    if not is_server_variable(name) and not _is_their_section(name):
        return Line(
            place, "dropped", "Jupyter's own setting: put it into the configuration of Jupyter Server"
        )
    return Line(place, "none", "roost does not know this setting of theirs")


def _is_their_section(name: str) -> bool:
    section = name.partition(".")[0]
    return "Gateway" in section or "Provisioner" in section or section.startswith("Remote")


def _read_users(value: Any) -> list[str] | None:
    return read_names(value) or None


def _read_limit(value: Any) -> int | None:
    """Return a limit of kernels; None for none (theirs is -1)."""
    number = int(value)
    return number if number >= 0 else None


def _read_idle(value: Any) -> float | None:
    return read_seconds(value) if float(value) > 0 else None


def _read_timeout(value: Any) -> float:
    return max(read_seconds(value), LEAST_TIMEOUT_S)


def _read_hosts(value: Any) -> dict[str, dict[str, str]] | None:
    hosts = read_names(value)
    if is_secret("", ", ".join(hosts)):
        raise ValueError("a host has a password: use keys or an agent")
    return {host: {} for host in hosts} if any(host not in LOCAL_HOSTS for host in hosts) else None


def _read_policy(value: Any) -> str:
    if str(value) not in _POLICIES:
        raise ValueError(f"it is none of {', '.join(_POLICIES)}")
    return _POLICIES[str(value)]


def _read_address(value: Any) -> str | None:
    text = str(value or "").strip().removesuffix("/").removesuffix("/ws/v1/cluster")
    if is_secret("", text):
        raise ValueError("it contains a password")
    return text or None


def _read_text(value: Any) -> str | None:
    return str(value or "").strip() or None


_RULES: Mapping[str, tuple[str, str, Callable[[Any], Any]]] = {
    "authorized_users": ("RoostScheduler", "allowed_users", _read_users),
    "unauthorized_users": ("RoostScheduler", "denied_users", _read_users),
    "launch_timeout": ("RoostScheduler", "default_launch_timeout_s", _read_timeout),
    "max_kernels_per_user": ("RoostScheduler", "max_kernels_per_user", _read_limit),
    "load_balancing_algorithm": ("RoostScheduler", "default_policy", _read_policy),
    "cull_idle_timeout": ("RoostScheduler", "idle_after_s", _read_idle),
    "remote_hosts": ("RoostSshBackend", "hosts", _read_hosts),
    "yarn_endpoint": ("RoostYarnBackend", "address", _read_address),
    "alt_yarn_endpoint": ("RoostYarnBackend", "address", _read_address),
    "yarn_endpoint_security_enabled": (
        "RoostYarnBackend", "authentication", lambda value: "kerberos" if read_bool(value) else None
    ),
    "yarn_cert_bundle": ("RoostYarnBackend", "ca_file", _read_text),
    "namespace": ("RoostKubernetesBackend", "namespace", _read_text),
    "image_name": ("RoostKubernetesBackend", "image", _read_text),
}  # fmt: skip
"""The settings of a server that roost's configuration has: the section, the setting, and a reader.

A reader returns None for a value that needs no setting, and raises `ValueError` for a wrong one.
"""
