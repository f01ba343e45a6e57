"""Hadoop's configuration, from yarn-site.xml or from a ResourceManager."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

from roost.launchers.daemon.file_input import UnfitFile, read_content
from roost.scheduler.errors import ConfigError

from .settings import RoostYarnBackend

Conf = Mapping[str, str]

_MOST_SITE_BYTES = 16 << 20
_LONGEST_VALUE = 10_000
"""In a longer value, no more names are replaced: names that name each other would make it grow without bound."""

_DEFAULT_FOLDER = "/etc/hadoop/conf"
_RM = "yarn.resourcemanager"
_MISSING = (
    "no YARN cluster is named: set HADOOP_CONF_DIR to a folder with yarn-site.xml, or c.RoostYarnBackend.address to "
    "the web addresses of the ResourceManagers (http://rm1:8088,http://rm2:8088)."
)


def name_cluster(settings: RoostYarnBackend) -> str:
    """Return the address of the cluster that the settings name, as `BackendSpec.cluster` wants it."""
    return ",".join(find_web_addresses(settings.address))


def find_web_addresses(address: str) -> tuple[str, ...]:
    """Return the web addresses of the ResourceManagers. Raises `ConfigError`.

    `address` is the setting of that name. If it is empty, read HADOOP_CONF_DIR, else /etc/hadoop/conf.
    """
    folder = address or os.environ.get("HADOOP_CONF_DIR", "") or _DEFAULT_FOLDER
    if address.startswith(("/", ".", "~")) and not os.path.isdir(address):
        raise ConfigError(f"{address} is no folder: name the folder of yarn-site.xml, or http://rm:8088.")
    if address and not os.path.isdir(address):
        return tuple(_complete(part.strip()) for part in address.split(",") if part.strip())
    conf = read_site(folder)
    if not conf and not address:
        raise ConfigError(_MISSING)
    found = web_addresses(conf)
    if not found:
        raise ConfigError(
            f"{folder}/yarn-site.xml names no ResourceManager: set yarn.resourcemanager.hostname there, or "
            "c.RoostYarnBackend.address."
        )
    return found


def read_site(folder: str) -> Conf:
    """Return the values in yarn-site.xml of a folder; none if there is no such file. Raises `ConfigError`."""
    path = Path(folder) / "yarn-site.xml"
    try:
        root = ElementTree.fromstring(read_content(path, most_bytes=_MOST_SITE_BYTES, may_be_link=True))
    except FileNotFoundError:
        return {}
    except UnfitFile as problem:
        raise ConfigError(f"{problem}.") from None
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as problem:
        raise ConfigError(f"{path} cannot be read: {problem}.") from None
    return {
        (one.findtext("name") or "").strip(): (one.findtext("value") or "").strip()
        for one in root.iter("property")
    }


def web_addresses(conf: Conf) -> tuple[str, ...]:
    """Return the web addresses of the ResourceManagers."""
    is_https = _get(conf, "yarn.http.policy") == "HTTPS_ONLY"
    scheme, name, port = ("https", "webapp.https", 8090) if is_https else ("http", "webapp", 8088)
    return tuple(f"{scheme}://{address}" for address in _addresses(conf, name, port))


def scheduler_addresses(conf: Conf) -> tuple[str, ...]:
    """Return `host:port` of the ResourceManagers' scheduler addresses, for application masters."""
    return _addresses(conf, "scheduler", 8030)


def keeps_containers(conf: Conf) -> bool:
    """True if an application may keep its containers when its master fails.

    A ResourceManager that recovers applications without their containers fails at each start while an
    application has the right to keep them (a NullPointerException in the Capacity Scheduler of Hadoop 3.4.2).
    """
    is_recovering = _get(conf, f"{_RM}.recovery.enabled") == "true"
    return not (is_recovering and _get(conf, f"{_RM}.work-preserving-recovery.enabled") == "false")


def _addresses(conf: Conf, name: str, port: int) -> tuple[str, ...]:
    found = []
    is_ha = _get(conf, f"{_RM}.ha.enabled") == "true"
    ids = _get(conf, f"{_RM}.ha.rm-ids").split(",") if is_ha else [""]
    for suffix in (f".{one.strip()}" if one.strip() else "" for one in ids):
        host = _get(conf, f"{_RM}.hostname{suffix}")
        address = _get(conf, f"{_RM}.{name}.address{suffix}") or (f"{host}:{port}" if host else "")
        if address and not address.startswith("0.0.0.0"):
            found.append(address)
        elif address and host and host != "0.0.0.0":
            found.append(f"{host}:{address.rpartition(':')[2]}")
    return tuple(dict.fromkeys(found))


def _get(conf: Conf, name: str) -> str:
    """Return a value, with each `${name}` replaced by the value of that name; empty if it is not set."""
    value = conf.get(name, "")
    for _ in range(5):
        value, count = re.subn(r"\$\{([^}]+)\}", lambda found: conf.get(found[1], ""), value)
        if not count or len(value) > _LONGEST_VALUE:
            break
    return value


def _complete(address: str) -> str:
    return (address if "://" in address else f"http://{address}").rstrip("/")
