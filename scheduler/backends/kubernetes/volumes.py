"""The volumes that a kernel asks for: claims in short, or Kubernetes' own lists of volumes and mounts.

volumes = data:/data,models:/models:ro
volumes = [{name: d, persistentVolumeClaim: {claimName: data}}]      in YAML or JSON, as for Enterprise Gateway,
volume_mounts = [{name: d, mountPath: /data}]                        with the mounts beside it
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import parse_yaml

from .allow_lists import matches, refuse
from .api import JsonObject

_CLAIM = "persistentVolumeClaim"
_MOUNT_KEYS = ("name", "mountPath", "subPath", "readOnly")
_EXAMPLE = "[{name: data, persistentVolumeClaim: {claimName: data}}]"
_MOUNTS_EXAMPLE = "[{name: data, mountPath: /data}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume of a kernel's pod, with the places where it is mounted."""

    kind: str
    """Kubernetes' name of the kind, such as `nfs`."""
    source: JsonObject
    """The fields of the kind, as in a pod."""
    mounts: tuple[JsonObject, ...]
    """The mounts as in a container, without the volume's name."""

    @property
    def label(self) -> str:
        """The text that the operator's `allowed_volumes` must match; empty if each kernel may have the volume.

        Raises `ConfigError` if the volume lacks a field that the text needs.
        """
        if self.kind == "emptyDir":
            return ""
        content = _CONTENTS[self.kind](self.source)
        return content if self.kind == _CLAIM else f"{self.kind}:{content}"


def read_volumes(options: Mapping[str, Any]) -> list[Volume]:
    """Return the volumes in a request's options. Raises `ConfigError`."""
    text, mounts = options.get("volumes", "").strip(), options.get("volume_mounts", "").strip()
    if text.startswith(("[", "-", "{")):
        return _read_lists(text, mounts)
    if mounts:
        raise ConfigError(f"volume_mounts needs volumes that are a list with names: {_EXAMPLE}.")
    return _read_claims(text)


def check_volumes(options: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """Raise `ConfigError` for volumes that cannot be read, or that no pattern in `allowed` matches.

    A pattern for another kind than a claim begins with the kind and a colon, such as `nfs:files:/home/*`.
    """
    for volume in read_volumes(options):
        label = volume.label
        prefix = "" if volume.kind == _CLAIM else f"{volume.kind}:"
        patterns = [pattern.removeprefix(prefix) for pattern in allowed if pattern.startswith(prefix)]
        if label and not matches(label.removeprefix(prefix), patterns):
            raise refuse("volumes", label, allowed)


def add_volumes(options: Mapping[str, Any], spec: JsonObject, container: JsonObject) -> None:
    """Add the volumes of a request to a pod's spec, and their mounts to its container.

    They get names of roost's, so that none changes a volume of the operator's template.
    """
    for number, volume in enumerate(read_volumes(options)):
        name = f"roost-volume-{number}"
        spec["volumes"].append({"name": name, volume.kind: volume.source})
        container["volumeMounts"] += [{"name": name, **mount} for mount in volume.mounts]


def check_mounts(mounts: Iterable[Mapping[str, Any]], place: str) -> None:
    """Raise `ConfigError` for a mount that could hide roost's own files."""
    for mount in mounts:
        path = posixpath.normpath("/" + str(mount.get("mountPath", "")).lstrip("/"))
        if path == "/" or (path + "/").startswith("/roost/"):
            raise ConfigError(f"{place} must not mount anything at {path}: roost's own files are in /roost.")


def _read_claims(text: str) -> list[Volume]:
    """Return the volumes of `claim:/path[:ro],…`."""
    volumes = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        claim, _, rest = part.partition(":")
        path, _, mode = rest.partition(":")
        if not claim or not path.startswith("/") or mode not in ("", "ro", "rw"):
            raise ConfigError(
                f"volumes = {text!r:.80} must be claims with paths (data:/data,models:/models:ro), or Kubernetes' list "
                f"of volumes: {_EXAMPLE}."
            )
        mount = {"mountPath": path, "readOnly": mode == "ro"}
        check_mounts([mount], "volumes")
        volumes.append(Volume(kind=_CLAIM, source={"claimName": claim}, mounts=(mount,)))
    return volumes


def _read_lists(text: str, mounts_text: str) -> list[Volume]:
    volumes = _read_list("volumes", text, _EXAMPLE)
    mounts = _read_list("volume_mounts", mounts_text, _MOUNTS_EXAMPLE) if mounts_text else []
    for mount in mounts:
        _check_mount(mount, [volume["name"] for volume in volumes])
    found = [
        _to_volume(volume, [mount for mount in mounts if mount["name"] == volume["name"]])
        for volume in volumes
    ]
    if len({volume["name"] for volume in volumes}) < len(volumes):
        raise ConfigError("volumes has two volumes of one name: rename one, also in volume_mounts.")
    return found


def _read_list(option: str, text: str, example: str) -> list[JsonObject]:
    """Return the mappings in a list in YAML. Each has a name."""
    value = parse_yaml(text, option)
    if not isinstance(value, list) or not all(
        isinstance(item, dict) and isinstance(item.get("name"), str) and item["name"] for item in value
    ):
        raise ConfigError(f"{option} = {text!r:.80} must be a list such as {example}.")
    return value


def _to_volume(item: JsonObject, mounts: list[JsonObject]) -> Volume:
    """Return a volume of the list with its mounts."""
    name, kinds = item["name"], [key for key in item if key != "name"]
    if len(kinds) != 1 or not isinstance(item[kinds[0]], dict):
        raise ConfigError(f"the volume {name!r:.60} must have one kind with its fields, as in {_EXAMPLE}.")
    kind = kinds[0]
    if kind != "emptyDir" and kind not in _CONTENTS:
        raise ConfigError(
            f"the volume {name!r:.60} is of the kind {kind!r:.60}: kernels may ask for {', '.join(_CONTENTS)} and "
            "emptyDir. The operator can add other kinds to the pod template."
        )
    if not mounts:
        raise ConfigError(f"the volume {name!r:.60} is mounted nowhere: name it in volume_mounts.")
    bare = tuple({key: value for key, value in mount.items() if key != "name"} for mount in mounts)
    return Volume(kind=kind, source=item[kind], mounts=bare)


def _check_mount(mount: JsonObject, names: list[str]) -> None:
    name = mount["name"]
    if name not in names:
        raise ConfigError(f"volume_mounts names the volume {name!r:.60}, and volumes does not have it.")
    if unknown := [key for key in mount if key not in _MOUNT_KEYS]:
        raise ConfigError(f"a mount of {name!r:.60} must have no {unknown[0]!r:.60}: {_MOUNTS_EXAMPLE}.")
    if not str(mount.get("mountPath", "")).startswith("/"):
        raise ConfigError(f"a mount of {name!r:.60} must have a mountPath that begins with /.")
    check_mounts([mount], "volume_mounts")


def _text(field: str) -> Callable[[JsonObject], str]:
    """Return a function that reads a field with a text. It raises `ConfigError`."""

    def read(source: JsonObject) -> str:
        value = source.get(field)
        if not isinstance(value, str) or not value:
            raise ConfigError(f"volumes: a volume lacks {field}, as a text.")
        return value

    return read


def _path(source: JsonObject) -> str:
    """Return a path that no pattern misjudges: it has no `..`, and no part that means nothing."""
    path = _text("path")(source)
    if not path.startswith("/") or posixpath.normpath("/" + path.lstrip("/")) != path:
        raise ConfigError(f"volumes: path = {path!r:.80} must begin with / and have no part '.', '..' or ''.")
    return path


_CONTENTS: Mapping[str, Callable[[JsonObject], str]] = {
    _CLAIM: _text("claimName"),
    "nfs": lambda source: f"{_text('server')(source)}:{_path(source)}",
    "hostPath": _path,
    "secret": _text("secretName"),
    "configMap": _text("name"),
}
"""The kinds that kernels may ask for if the operator allows it, each with the text that names its content."""
