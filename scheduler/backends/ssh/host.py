"""`Host`: a host as ssh finds it, with the checks of its name and its labels.

A name from a file becomes an argument of ssh, and ssh gives it to commands of its own (`ProxyCommand`, `Match exec`).
So only names pass that no program reads as an option or as a command.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_MOST_CHARACTERS = 255
_REFUSED = frozenset("'\"`$\\;&<>|(){}[]*?!,=#/^")
"""OpenSSH refuses most of these characters in a host's name, since version 9.6. The others are marks of patterns."""
_URL = re.compile(
    r"ssh://(?:(?P<user>[^@:/%]+)@)?(?P<host>[a-zA-Z0-9][\w.-]*)(?::(?P<port>[0-9]{1,5}))?", re.ASCII
)
"""The addresses with a port that OpenSSH reads. It takes no IPv6 address there, and decodes `%` in a user's name."""
ADDRESS = "address"
"""The label that gives `Host.address` instead of a label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host where kernels may run."""

    name: str
    """The name that `ssh NAME` reads: an alias, a host's name, `user@host`, or `ssh://user@host:port`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    """The IP address where the agent and the kernels listen, if it is not the address that ssh reached."""


def make_host(name: str, labels: Mapping[str, str]) -> Host:
    """Return the host of this name. Raises `ValueError` for a wrong name or label. Its text is a clause.

    >>> make_host("n1", {"rack": "a", "address": "10.0.0.1"})
    Host(name='n1', labels={'rack': 'a'}, address='10.0.0.1')
    """
    if problem := _find_problem(name):
        raise ValueError(
            f"{name!a:.80} cannot be the name of a host ({problem}): write the name of a `Host` line in "
            "~/.ssh/config, a host name or user@host"
        )
    for label, value in labels.items():
        for what, text in (("label", label), ("value of a label", value)):
            if len(text) > _MOST_CHARACTERS or not text.isprintable() or set("'\"") & set(text):
                raise ValueError(
                    f"{text!a:.80} of the host {name} cannot be a {what}: "
                    f"write at most {_MOST_CHARACTERS} characters that can be shown, without quotes"
                )
        if not label or "=" in label or label != label.strip():
            raise ValueError(f"{label!a:.80} of the host {name} cannot be a label: write it as label=value")
    address = labels.get(ADDRESS, "")
    try:
        if address:
            ipaddress.ip_address(address)
    except ValueError:
        raise ValueError(
            f"address={address} of the host {name} is no IP address: write the one where its kernels listen"
        ) from None
    return Host(
        name=name,
        labels={label: value for label, value in labels.items() if label != ADDRESS},
        address=address,
    )


def make_hosts(given: object) -> list[Host]:
    """Return the hosts of a list of names, or of an object of names and labels. Raises `ValueError` as `make_host`."""
    found = []
    for name, labels in (
        given.items() if isinstance(given, Mapping) else ((name, {}) for name in _list(given))
    ):
        if not isinstance(name, str):
            raise ValueError(f"{name!a:.80} is no name of a host: write it in quotes")
        if not isinstance(labels, Mapping) or not all(
            isinstance(each, str) for pair in labels.items() for each in pair
        ):
            raise ValueError(
                f"{labels!a:.80} of the host {name!a:.80} are no labels: write an object such as "
                "{'rack': 'a'}, with texts, or {}"
            )
        found.append(make_host(name, labels))
    return found


def _list(given: object) -> list[object]:
    if not isinstance(given, (list, tuple)):
        raise ValueError(
            f"{given!a:.80} is no list of names: write ['n1', 'n2'], or {{'n1': {{'rack': 'a'}}}}"
        )
    return list(given)


def _find_problem(name: str) -> str:
    """Return why ssh must not get this name, as a clause; empty if it may."""
    if not name or len(name) > _MOST_CHARACTERS:
        return f"it has {len(name)} characters"
    user, at, host = name.removeprefix("ssh://").rpartition("@")
    if (at and not user) or not host:
        return "a part of it is missing"
    if any(part.startswith("-") for part in (user, host)):
        return "a part of it begins with `-` like an option of ssh"
    if wrong := next((each for each in name.removeprefix("ssh://") if _is_refused(each)), ""):
        return f"it has the character {wrong!a}"
    if name.startswith("ssh://"):
        url = _URL.fullmatch(name)
        is_good = url is not None and 0 < int(url["port"] or 22) < 65_536
        return "" if is_good else "it is no ssh://user@host:port with a host name or an IPv4 address"
    if host.count(":") == 1:
        return f"a port is written as ssh://{name}"
    return ""


def _is_refused(character: str) -> bool:
    return character in _REFUSED or character.isspace() or not character.isprintable()
