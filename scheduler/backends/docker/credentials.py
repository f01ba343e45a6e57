"""The service's user's credentials for registries, as `docker login` has left them. They are in no log and no error."""

from __future__ import annotations

from docker import auth
from docker.errors import DockerException


class CredentialsError(Exception):
    """The credentials cannot be read. The text says why, as a clause."""


def read_credentials(repository: str) -> dict[str, str] | None:
    """Return the credentials for the registry of a repository such as `ghcr.io/team/python`; None if there are none.

    They come from `config.json` in `DOCKER_CONFIG` or `~/.docker`, or from the helper program that this file names, so
    the call may block for seconds. Raises `CredentialsError`.
    """
    try:
        registry, _ = auth.resolve_repository_name(repository)
        found = auth.resolve_authconfig(auth.load_config(), registry)
    except (DockerException, ValueError, OSError) as problem:
        reason = str(problem) if isinstance(problem, DockerException) else type(problem).__name__
        raise CredentialsError(f"the credentials of its registry cannot be read ({reason:.200})") from None
    return dict(found) if found else None
