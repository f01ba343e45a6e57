"""The images of the engine: whether one is there, and the user of its containers."""

from __future__ import annotations

from roost.scheduler.errors import LaunchError

from .container_spec import is_root
from .engine import Engine, EngineError, JsonObject
from .settings import RoostDockerBackend

_MISSING = 404


async def has_image(engine: Engine, image: str) -> bool:
    """True if the engine has an image. Raises `LaunchError` and `BackendUnavailable`."""
    return await _inspect(engine, image) is not None


async def find_user(engine: Engine, image: str, settings: RoostDockerBackend) -> str:
    """Return the user of the image's containers.

    Raises `LaunchError` for a missing image and for root, and `BackendUnavailable`.
    """
    found = await _inspect(engine, image)
    if found is None:
        raise LaunchError(
            f"the Docker engine has no image {image}: get it with `docker pull {image}`, name another one, or set "
            "c.RoostDockerBackend.pull = 'missing'."
        )
    user = settings.user or str((found.get("Config") or {}).get("User") or "")
    if is_root(user):
        raise LaunchError(
            f"the image {image} runs as root, which kernels may not: set c.RoostDockerBackend.user, such as "
            "'1000:100', or take an image with another user."
        )
    return user


def find_numbers(user: str, image: str) -> tuple[int, int]:
    """Return the numbers of the user and the group of `find_user`. Raises `LaunchError` for a user by name."""
    uid, _, gid = user.partition(":")
    if not uid.isdecimal() or not (gid or "0").isdecimal():
        raise LaunchError(
            f"the image {image} names its user {user!r:.40}, and Podman without root needs numbers: set "
            "c.RoostDockerBackend.user, such as '1000:100'."
        )
    return int(uid), int(gid or uid)


async def _inspect(engine: Engine, image: str) -> JsonObject | None:
    """Return what the engine knows of an image; None if it has no such image."""
    try:
        found: JsonObject = await engine.call(lambda client: client.inspect_image(image))
    except EngineError as problem:
        if problem.status != _MISSING:
            raise LaunchError(f"Docker cannot use the image {image}: {problem.message}.") from None
        return None
    return found
