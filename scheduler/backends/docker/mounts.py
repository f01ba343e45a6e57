"""The mounts of a container: folders of this machine as they really are, and volumes that the engine has.

A link in a folder may lead anywhere, so the real path counts. It is found just before the engine gets it. One race
remains: a folder that is replaced by a link in between. So an allowed folder should be one that kernels cannot change,
or one from which all that its users can reach may be mounted.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress

from roost.launchers.daemon.private_files import FolderError, runtime_dir
from roost.launchers.daemon.tasks import in_thread
from roost.placement import Request
from roost.scheduler.backends.key_pair import find_key_file
from roost.scheduler.errors import ConfigError, LaunchError

from .engine import Engine, EngineError, JsonObject
from .settings import RoostDockerBackend
from .socket_folders import SocketFolders
from .volumes import (
    SYSTEM_FOLDERS,
    AllowedVolume,
    Volume,
    check_entries,
    is_within,
    parse_allowed,
    read_volumes,
)

_ENGINE_FOLDERS = (
    "/run/containerd",
    "/run/docker",
    "/run/docker.sock",
    "/var/lib/containerd",
    "/var/lib/docker",
)
"""Where an engine keeps its sockets and the files of all containers, besides the places that it names itself."""
_LOOKS_S = 10.0
"""How long the folders may take to be found. They may be on a network file system."""


def list_guarded(settings: RoostDockerBackend, address: str, engine_folder: str) -> list[str]:
    """Return the real paths that no kernel may mount, nor any folder that contains one of them.

    They belong to the system, to the engine at `address` with its files in `engine_folder`, and to this service, with
    its user's credentials for registries.
    """
    logins = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    sockets = str(SocketFolders(address).base)
    engines = [*_ENGINE_FOLDERS, address.removeprefix("unix://"), engine_folder, sockets]
    paths = [*SYSTEM_FOLDERS, *engines, logins]
    with suppress(FolderError):  # there is none to guard
        paths.append(str(runtime_dir()))
    with suppress(FolderError):
        paths.append(str(find_key_file(settings.identity_file, name="docker")))
    return [os.path.realpath(path) for path in paths if path]


async def find_mounts(
    request: Request, settings: RoostDockerBackend, engine: Engine, engine_folder: str
) -> list[JsonObject]:
    """Return the mounts of a request's volumes as the engine's API wants them.

    Raises `LaunchError` for a missing one or one that is not allowed, and `BackendUnavailable`.
    """
    volumes = read_volumes(request.options)
    if not volumes:
        return []
    for volume in volumes:
        if not volume.is_folder:
            await _check_name(volume, engine)

    def build() -> list[JsonObject]:
        guarded = list_guarded(settings, engine.address, engine_folder)
        return build_mounts(volumes, settings.allowed_volumes, guarded)

    try:
        return await in_thread(build, deadline_s=_LOOKS_S, name="docker-folders")
    except asyncio.TimeoutError:
        names = ", ".join(volume.source for volume in volumes if volume.is_folder)
        raise LaunchError(
            f"the folders {names:.300} do not answer: look whether their disk is there."
        ) from None
    except ConfigError as problem:
        raise LaunchError(problem.user_message) from None


def build_mounts(
    volumes: Iterable[Volume], allowed: Sequence[str], guarded: Sequence[str]
) -> list[JsonObject]:
    """Return the mounts of volumes as the engine's API wants them, with the real paths of folders. Blocks.

    Raises `ConfigError` for a missing folder, and for one that is really outside of `allowed` or has a `guarded` path.
    """
    entries = [parse_allowed(text) for text in allowed]
    return [_build(volume, entries, guarded) for volume in volumes]


def _build(volume: Volume, entries: Sequence[AllowedVolume], guarded: Sequence[str]) -> JsonObject:
    mount: JsonObject = {"Target": volume.target, "ReadOnly": not volume.is_writable}
    if not volume.is_folder:
        mount["VolumeOptions"] = {"NoCopy": not volume.is_writable}
        return {**mount, "Type": "volume", "Source": volume.source}
    real = _find_real(volume)
    for path in guarded:
        if is_within(real, path) or is_within(path, real):
            raise ConfigError(
                f"the folder {volume.source!r:.200} cannot be mounted, because {path!r:.200} is not for kernels: "
                "name another folder."
            )
    covers = [entry for entry in entries if _covers(entry, real)]
    check_entries(volume, covers, entries, seen="" if real == volume.source else real)
    # The engine refuses a missing source of a mount. File systems below the folder are left out: an engine before
    # 25.0 would let kernels write to them.
    mount["BindOptions"] = {"Propagation": "rprivate", "NonRecursive": True}
    return {**mount, "Type": "bind", "Source": real}


def _find_real(volume: Volume) -> str:
    try:
        real = os.path.realpath(volume.source, strict=True)
        if stat.S_ISDIR(os.stat(real).st_mode):
            return real
        problem = "it is no folder"
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    raise ConfigError(
        f"the folder {volume.source!r:.200} cannot be mounted ({problem}): make it, or change the option volumes."
    )


def _covers(entry: AllowedVolume, real: str) -> bool:
    if not entry.source.startswith("/"):
        return False
    folder = os.path.realpath(entry.source)
    return folder != "/" and is_within(real, folder)


async def _check_name(volume: Volume, engine: Engine) -> None:
    """Raise `LaunchError` unless the engine has a volume. It would make a missing one, which nobody would remove."""
    try:
        await engine.call(lambda client: client.inspect_volume(volume.source))
    except EngineError as problem:
        raise LaunchError(
            f"Docker cannot mount the volume {volume.source} ({problem.message}): make it with "
            f"`docker volume create {volume.source}`, or change the option volumes."
        ) from None
