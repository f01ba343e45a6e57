"""Reads KERNEL_VOLUMES and KERNEL_VOLUME_MOUNTS of the three systems: lists of Kubernetes, as JSON or YAML."""

from __future__ import annotations

import re
from typing import Any

_PLAIN = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_PATH = re.compile(r"/(?!roost(/|$))[^,:\s]+")
_KINDS = {"persistentVolumeClaim", "nfs", "hostPath", "secret", "configMap", "emptyDir"}
"""The kinds of volumes that roost mounts, if the operator allows them."""
_MOUNT_KEYS = {"name", "mountPath", "subPath", "readOnly"}


def join_volumes(volumes: str, mounts: str) -> tuple[list[str], list[str]]:
    """Return the mounts of claims as roost writes them (`claim:/path:ro`), and clauses about the others.

    Raises `ValueError` if one of the texts is no list of objects.
    """
    kinds = {str(item.get("name")): item for item in _read_list(volumes)}
    joined, left, used = [], [], set()
    for mount in _read_list(mounts):
        name, path = str(mount.get("name")), str(mount.get("mountPath"))
        claim = kinds.get(name, {}).get("persistentVolumeClaim")
        claim = claim if isinstance(claim, dict) else {}
        claim_name = claim.get("claimName")
        used.add(name)
        if not isinstance(claim_name, str) or not _PLAIN.fullmatch(claim_name):
            left.append("a mount is of no volume claim")
        elif not _PATH.fullmatch(path) or "subPath" in mount or "subPathExpr" in mount:
            left.append(f"a part of the claim {claim_name} is mounted, or at no plain path")
        else:
            is_readonly = mount.get("readOnly") is True or claim.get("readOnly") is True
            joined.append(f"{claim_name}:{path}{':ro' if is_readonly else ''}")
    if unused := len(kinds.keys() - used):
        left.append(f"{unused} of the volumes have no mount")
    return joined, left


def is_supported(volumes: str, mounts: str) -> bool:
    """True if roost reads these two lists as they are. Raises `ValueError` as `join_volumes`."""
    kinds, places = _read_list(volumes), _read_list(mounts)
    names = {str(item.get("name")) for item in kinds}
    return (
        bool(names)
        and len(names) == len(kinds)
        and names == {str(mount.get("name")) for mount in places}
        and all(len(item) == 2 and item.keys() & _KINDS and _has_fields(item) for item in kinds)
        and all(
            mount.keys() <= _MOUNT_KEYS and _PATH.fullmatch(str(mount.get("mountPath"))) for mount in places
        )
    )


def _has_fields(volume: dict[str, Any]) -> bool:
    return all(isinstance(value, (str, dict)) for value in volume.values())


def _read_list(text: str) -> list[dict[str, Any]]:
    try:
        import yaml  # it comes with the backend for Kubernetes
    except ImportError:
        raise ValueError("PyYAML, which reads it, is not installed") from None
    try:
        value = yaml.safe_load(text) if text.strip() else []
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError, KeyError, IndexError):
        raise ValueError("it is no JSON or YAML") from None
    value = value if value is not None else []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("it is no list of objects")
    return value
