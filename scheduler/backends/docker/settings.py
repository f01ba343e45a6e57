"""The settings of the backend `docker`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from traitlets import Bool, Enum, Int, List, TraitError, Unicode, validate

from roost.scheduler.config.section import Memory, Section
from roost.scheduler.errors import ConfigError

from .volumes import parse_allowed

SCHEME = "unix://"
_SOCKET = "unix:///var/run/docker.sock"


class RoostDockerBackend(Section):
    """`c.RoostDockerBackend`: the Docker engine of this machine, and what users may ask of their containers."""

    address = Unicode(
        "", help="The engine's socket, as unix:///PATH; empty: DOCKER_HOST, else unix:///var/run/docker.sock."
    )
    image = Unicode("", help="The image of kernels that name none.")
    allowed_images = List(Unicode(), ["*"], help="Patterns of the images that kernels may name (fnmatch).")
    pull = Enum(
        ["never", "missing"],
        "never",
        help="'missing': the engine pulls an image that it lacks, with the credentials of the service's user. "
        "'never': such a kernel is refused.",
    )
    allowed_volumes = List(
        Unicode(),
        help="Folders of this machine and patterns of the engine's volumes (fnmatch) that kernels may mount: "
        "'/data/sets', 'team-*'. With ':rw' they may write there: '/scratch:rw'.",
    )
    python = Unicode("python3", help="The Python in the image that runs roost's agent.")
    user = Unicode(
        "", help="The user and group of kernels, as 'UID:GID'. Empty: the image's, which must not be root."
    )
    network = Unicode(
        "bridge", help="The engine's network for kernels. This machine must reach its addresses."
    )
    read_only = Bool(
        False,
        help="Containers cannot change the files of their image: kernels write to /tmp, which counts as memory, and "
        "to their volumes.",
    )
    max_shm_size = Memory("1GiB", help="The largest `shm_size` that kernels may ask for.")
    limit_cpus = Bool(False, help="Limit CPUs to the request. Kernels then start up to three times slower.")
    pids_limit = Int(4096, min=64, help="The most processes and threads in a container.")
    gpus = Int(0, min=0, help="The GPUs of this machine that the engine gives to containers.")
    gpu_model = Unicode("", help="The model of these GPUs.")
    identity_file = Unicode(
        "",
        help="The service's key pair. A service without it cannot reach the kernels of an earlier one, so it must "
        "survive restarts. Empty: roost/docker-identity.json in XDG_STATE_HOME.",
    )

    @validate("allowed_volumes")
    def _check_volumes(self, proposal: Any) -> Any:
        for text in proposal["value"]:
            try:
                parse_allowed(text)
            except ValueError as problem:
                raise TraitError(f"allowed_volumes: {problem}") from None
        return proposal["value"]


def name_cluster(settings: RoostDockerBackend) -> str:
    """Return the address of the engine that the settings name, as `BackendSpec.cluster` wants it.

    Links are followed: on most systems, /var/run is one to /run.
    """
    return SCHEME + os.path.realpath(find_address(settings.address).removeprefix(SCHEME))


def find_address(address: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the engine's address by the setting and by DOCKER_HOST. Raises `ConfigError` if it is no Unix socket.

    >>> find_address("", {})
    'unix:///var/run/docker.sock'
    """
    chosen = address or environment.get("DOCKER_HOST", "") or _SOCKET
    if not chosen.startswith(f"{SCHEME}/"):
        raise ConfigError(
            f"the Docker engine {chosen:.80} is not on this machine: roost reaches engines by their Unix socket only, "
            "so set c.RoostDockerBackend.address or DOCKER_HOST to unix:///PATH."
        )
    return chosen
