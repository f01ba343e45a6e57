"""The container of a lease as the engine's API wants it, and the archive that its agent starts from. Pure functions."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Sequence
from fnmatch import fnmatchcase

from roost.launchers.daemon.process import start_time
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import FOLDER_OPTION, Assignment, Lease
from roost.launchers.protocol.start_archive import add_start
from roost.placement import Request
from roost.placement.model.format import format_bytes
from roost.scheduler.backends.agent_per_kernel import AGENT_PORT, dump_lease, shorten_id
from roost.scheduler.backends.node_archive import dump_start, pack
from roost.scheduler.config.memory_size import parse_bytes
from roost.scheduler.errors import ConfigError

from .engine import JsonObject
from .names import CREATOR_LABEL, ID_LABEL, KEY_LABEL, LEASE_LABEL, SERVICE_LABEL
from .settings import RoostDockerBackend
from .volumes import check_volumes

GRACE_S = 5
"""How long a kernel has between SIGTERM and SIGKILL when somebody stops its container."""
_IDLE_EXIT_S = 60.0
_FOLDER, _ARCHIVE = "roost", "start.zip"
_AGENT_FOLDER = "/tmp/roost-agent"
_TMP_OPTIONS = "rw,exec,nosuid,nodev,mode=1777"
"""Libraries that compile code, such as numba, load it from `/tmp`."""
_SHARES_OF_A_CPU, _LEAST_SHARES, _MOST_SHARES = 1024, 2, 262_144
_END_BYTES = 2 * tarfile.BLOCKSIZE
"""The end mark of a tar file. Podman may read no further, and then fails if the file goes on with padding."""
_IMAGE = re.compile(r"[A-Za-z0-9][\w./:@-]{0,300}", re.ASCII)
_MOST_EXACT = 10**9
"""The engine counts CPUs in billionths."""


def find_image(request: Request, settings: RoostDockerBackend) -> str:
    """Return the image of a request. Raises `ConfigError` if there is none, or if its name is no name of an image."""
    image = str(request.options.get("image") or settings.image)
    if not image:
        raise ConfigError(
            "no image is set: name one (option image, KERNEL_IMAGE) or set c.RoostDockerBackend.image."
        )
    if not _IMAGE.fullmatch(image):
        raise ConfigError(
            f"image = {image!r:.80} is no name of an image: write it as in `docker pull NAME:TAG`."
        )
    return image


def find_shm_size(request: Request, settings: RoostDockerBackend) -> int:
    """Return the bytes of /dev/shm that a request asks for; 0 leaves it to the engine. Raises `ConfigError`."""
    text = request.options.get("shm_size") or "0"
    try:
        size = parse_bytes(text)
    except ConfigError as problem:
        raise ConfigError(f"shm_size = {problem.user_message}") from None
    asked, most = format_bytes(size), format_bytes(settings.max_shm_size)
    if size > settings.max_shm_size:
        raise ConfigError(
            f"shm_size = {asked} is more than the operator allows, {most} (c.RoostDockerBackend.max_shm_size)."
        )
    if request.memory_bytes and size > request.memory_bytes:
        memory = format_bytes(request.memory_bytes)
        raise ConfigError(
            f"shm_size = {asked} is part of the kernel's memory, which is {memory}: ask for more memory."
        )
    return size


def check_request(request: Request, settings: RoostDockerBackend) -> None:
    """Raise `ConfigError` for an option that is missing, wrong or not allowed, and for a part of a GPU.

    Reads no files: what a folder really is counts when its container is made.
    """
    find_image(request, settings)
    asked, allowed = request.options.get("image"), list(filter(None, settings.allowed_images))
    if asked and not any(fnmatchcase(asked, pattern) for pattern in allowed):
        names = ", ".join(allowed) or "none"
        raise ConfigError(f"image = {asked!r:.80} is not allowed here; the operator allows {names}.")
    check_volumes(request.options, settings.allowed_volumes)
    folder = request.options.get(FOLDER_OPTION, "/")
    if not folder.startswith(("/", "~/")) or not folder.isprintable():
        raise ConfigError(f"cwd = {folder!r:.80} must be a folder of the container, such as /data or ~/work.")
    find_shm_size(request, settings)
    if request.gpus != int(request.gpus):
        raise ConfigError(f"Docker gives whole GPUs only: ask for 1 GPU instead of {request.gpus:g}.")


def build_container(
    lease: Lease,
    image: str,
    settings: RoostDockerBackend,
    service: str,
    agent_public: str,
    mounts: Sequence[JsonObject] = (),
) -> JsonObject:
    """Return the container of a granted lease, as the engine's API wants it.

    `service` is the label of the service, and `agent_public` is the public key of the container's agent. `mounts` are
    those of `find_mounts`. No secret is in it: everybody who may use the engine can read it.
    """
    return {
        "Image": image,
        "Entrypoint": [settings.python],
        "Cmd": [f"/{_FOLDER}/{_ARCHIVE}", _AGENT_FOLDER, lease.id],
        "User": settings.user,
        "StopSignal": "SIGTERM",
        "StopTimeout": GRACE_S,
        "Healthcheck": {"Test": ["NONE"]},  # it would run in the place of a kernel that has the CPUs
        "Labels": {
            LEASE_LABEL: dump_lease(lease),
            ID_LABEL: shorten_id(lease.id),
            SERVICE_LABEL: service,
            KEY_LABEL: agent_public,
            CREATOR_LABEL: f"{os.getpid()} {start_time(os.getpid())}",
        },
        "HostConfig": {
            "NetworkMode": settings.network,
            "RestartPolicy": {"Name": "no"},  # the agent ends with its kernel, and begins no second one
            "Privileged": False,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "PidsLimit": settings.pids_limit,
            **_describe_files(lease, settings, service, mounts),
            **_limits(lease, settings),
        },
    }


def _describe_files(
    lease: Lease, settings: RoostDockerBackend, service: str, mounts: Sequence[JsonObject]
) -> JsonObject:
    """Return what is mounted in a container, and whether it can change the other files."""
    if not settings.read_only:
        return {"Mounts": list(mounts)} if mounts else {}
    # The engine puts no file into a root that is read only, but into a volume. Its labels let `StartVolumes` remove it
    # if a person removes the container.
    labels = {SERVICE_LABEL: service, ID_LABEL: shorten_id(lease.id)}
    own = {"Type": "volume", "Target": f"/{_FOLDER}", "VolumeOptions": {"NoCopy": True, "Labels": labels}}
    return {"ReadonlyRootfs": True, "Tmpfs": {"/tmp": _TMP_OPTIONS}, "Mounts": [own, *mounts]}


def _limits(lease: Lease, settings: RoostDockerBackend) -> JsonObject:
    request = lease.request
    limits: JsonObject = {}
    if shm_size := find_shm_size(request, settings):
        limits["ShmSize"] = shm_size
    if request.memory_bytes:
        limits |= {"Memory": request.memory_bytes, "MemorySwap": request.memory_bytes}
    if request.cpus:
        shares = round(request.cpus * _SHARES_OF_A_CPU)
        limits["CpuShares"] = min(max(shares, _LEAST_SHARES), _MOST_SHARES)
        if settings.limit_cpus:
            limits["NanoCpus"] = round(request.cpus * _MOST_EXACT)
    if lease.device_ids:
        limits["DeviceRequests"] = [{"DeviceIDs": list(lease.device_ids), "Capabilities": [["gpu"]]}]
    return limits


def build_archive(assignment: Assignment, settings: RoostDockerBackend, user: str) -> bytes:
    """Return a tar file for the container's folder `find_place`, with the agent's code, settings and assignment.

    It is secret. Only the container's `user`, as the image or the settings name it, can read it there. A user by name
    has a number that only the image knows: everybody in the container may then read it, which is the kernel alone.
    """
    agent = AgentSettings(
        address="$HOSTNAME",
        ports=(AGENT_PORT,),
        idle_exit_s=_IDLE_EXIT_S,
        gpus=0,  # the service knows them; reading them again delays the start
        is_remote=True,
        gpu_visibility="inherit",
        is_per_kernel=True,
        unit="container",
    )
    data = add_start(pack(is_imported=True)[0], dump_start(agent, assignment))
    uid = user.partition(":")[0]
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        if not settings.read_only:
            folder = tarfile.TarInfo(_FOLDER)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        file = tarfile.TarInfo(_ARCHIVE if settings.read_only else f"{_FOLDER}/{_ARCHIVE}")
        file.size, file.mode = len(data), 0o400 if uid.isdecimal() else 0o444
        file.uid = int(uid) if uid.isdecimal() else 0
        tar.addfile(file, io.BytesIO(data))
        end = tar.offset + _END_BYTES
    return content.getvalue()[:end]


def find_place(settings: RoostDockerBackend) -> str:
    """Return the folder of the container for the archive of `build_archive`: its root, or roost's own volume."""
    return f"/{_FOLDER}" if settings.read_only else "/"


def is_root(user: str) -> bool:
    """True if a container with this `User` runs as root.

    >>> is_root(""), is_root("0:100"), is_root("root"), is_root("1000:100"), is_root("jovyan")
    (True, True, True, False, False)
    """
    name = user.partition(":")[0]
    return name in ("", "root") or (name.isdecimal() and int(name) == 0)
