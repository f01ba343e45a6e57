"""The hosts that the settings name: in the settings themselves, and in a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import read_input_text

from .host import ADDRESS, Host, make_host, make_hosts
from .settings import RoostSshBackend

__all__ = ["Host", "list_hosts"]

_MOST_HOSTS = 10_000


def list_hosts(settings: RoostSshBackend) -> tuple[Host, ...]:
    """Return the hosts in the order of the settings, each once, with the labels of all settings that name it.

    If two settings give a host the same label, that of `hosts` counts. Raises `ConfigError`. Reads the file, and
    asks nothing of the network.
    """
    found: dict[str, Host] = {}
    sources: list[tuple[str, Iterable[Host]]] = []
    if settings.hosts:  # the settings have checked it
        sources.append(("c.RoostSshBackend.hosts", make_hosts(settings.hosts)))
    if path := settings.hosts_file:
        sources.append((path, read_hosts_file(_to_path("hosts_file", path))))
    for place, hosts in sources:
        for host in hosts:
            known = found.get(host.name)
            found[host.name] = _merge(known, host) if known is not None else host
            if len(found) > _MOST_HOSTS:
                raise ConfigError(f"{place} names more than {_MOST_HOSTS:,} hosts: name fewer.")
    if found:
        return tuple(found.values())
    if sources:
        places = " or ".join(place for place, _ in sources)
        raise ConfigError(f"there is no SSH host in {places}: name one there.")
    raise ConfigError(
        "no SSH host is named: set c.RoostSshBackend.hosts to a list such as ['n1', 'n2'], or hosts_file to a file "
        "with a name on each line."
    )


def read_hosts_file(path: Path) -> list[Host]:
    """Return the hosts in a file with one host on each line. Raises `ConfigError`, which names the line."""
    found: dict[str, Host] = {}
    for number, line in enumerate(read_input_text(path).removeprefix("\ufeff").split("\n"), start=1):
        words = _strip_comment(line).split()
        if not words:
            continue
        try:
            host = make_host(words[0], _read_labels(words))
            if (known := found.get(host.name)) is not None:
                _check_same(known, host)
                host = _merge(known, host)
        except ValueError as problem:
            raise ConfigError(f"{path}, line {number}: {problem}.") from None
        found[host.name] = host
    return list(found.values())


def _strip_comment(line: str) -> str:
    """Return the line up to a `#` at its begin or after a space."""
    at = next(
        (i for i, each in enumerate(line) if each == "#" and (i == 0 or line[i - 1].isspace())), len(line)
    )
    return line[:at]


def _read_labels(words: list[str]) -> dict[str, str]:
    """Return the labels of a line. Raises `ValueError` for a word that is no label, and for a label with two values."""
    labels: dict[str, str] = {}
    for word in words[1:]:
        label, mark, value = word.partition("=")
        if not label or not mark:
            raise ValueError(
                f"{word!a:.80} after the host {words[0]!a:.80} is no label: write it as label=value"
            )
        if labels.setdefault(label, value) != value:
            raise ValueError(f"the label {label!a:.80} of the host {words[0]!a:.80} has two values: keep one")
    return labels


def _check_same(known: Host, host: Host) -> None:
    """Raise `ValueError` if two lines of a file give one host different values of a label."""
    before, now = _list_labels(known), _list_labels(host)
    if differing := next((label for label, value in now.items() if before.get(label, value) != value), ""):
        raise ValueError(
            f"the host {host.name} has {differing}={now[differing]} here, and {differing}={before[differing]} in an "
            "earlier line: keep one"
        )


def _list_labels(host: Host) -> dict[str, str]:
    return {**host.labels, **({ADDRESS: host.address} if host.address else {})}


def _merge(known: Host, host: Host) -> Host:
    return Host(
        name=known.name, labels={**host.labels, **known.labels}, address=known.address or host.address
    )


def _to_path(setting: str, given: str) -> Path:
    """Return the path of a setting. Raises `ConfigError` unless it is the same for every process."""
    path = Path(given).expanduser() if "\0" not in given else Path(given)
    if not path.is_absolute():
        raise ConfigError(f"{setting} = {given!a:.200} is no whole path: begin it with / or ~/.")
    return path
