"""Checks of the values that clients send: names must be printable and short, and times positive."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from roost.launchers.protocol.launch_checks import find_impossible
from roost.placement.model import Request
from roost.scheduler.errors import ConfigError
from roost.scheduler.messages import Owner, StartKernel

MOST_CHARACTERS = 256


def check_input(message: StartKernel | None, arguments: Mapping[str, Any]) -> None:
    """Check a start, or the arguments of another call. Raises `ConfigError`."""
    if message is not None:
        check_start(message)
    if "argv" in arguments:
        check_process(arguments["argv"], arguments.get("env") or {})
    if (owner := arguments.get("owner")) is not None:
        check_owner(owner)
    if (request := arguments.get("request")) is not None:
        check_request(request)
    check_name("the kernelspec's name", arguments.get("kernel_name", ""))


def check_start(start: StartKernel) -> None:
    """Raise `ConfigError` for a missing id, a name that cannot be shown, a zero byte or a bad time."""
    check_name("the kernel's id", start.kernel_id)
    check_name("the launch's id", start.launch_id)
    if not start.kernel_id or not start.launch_id:
        raise ConfigError("a start needs a kernel id and a launch id: give both.")
    check_owner(start.owner)
    check_request(start.request)
    check_name("the kernelspec's name", start.connection.kernel_name)
    check_process(start.argv, start.env, start.cwd)
    for name, seconds in (
        ("launch_timeout", start.launch_timeout_s),
        ("queue_timeout", start.queue_timeout_s),
    ):
        if seconds is not None and seconds <= 0:
            raise ConfigError(f"{name} is {seconds:g} s: give seconds above 0.")
    if not 0.0 <= start.asked_at < math.inf:
        raise ConfigError(f"asked_at is {start.asked_at:g}: give seconds since the epoch, or 0.")


def check_process(argv: Iterable[str], env: Mapping[str, str], cwd: str = "") -> None:
    """Raise `ConfigError` if no process can have this command, these variables or this folder."""
    if impossible := find_impossible(argv, env, cwd):
        raise ConfigError(f"{impossible}.")


def check_owner(owner: Owner) -> None:
    """Raise `ConfigError` if a name of the owner cannot be shown."""
    for what in ("user", "application", "host", "server"):
        check_name(f"the owner's {what}", getattr(owner, what))


def check_request(request: Request) -> None:
    """Raise `ConfigError` if a name in the request cannot be shown."""
    check_name("the policy's name", request.policy)
    for what, names in (
        ("label", (*request.labels.items(), *request.near.items())),
        ("resource", ((name,) for name in request.resources)),
        ("taint", ((name,) for name in request.tolerates)),
        ("GPU model", ((name,) for name in request.gpu_models)),
        ("GPU", ((name,) for name in request.visible_gpus or ())),
    ):
        _check_all(f"a {what}", names)


def check_name(what: str, name: str) -> None:
    """Raise `ConfigError` unless a name is printable and short. Spaces are printable, surrogates are not."""
    if len(name) > MOST_CHARACTERS:
        raise ConfigError(
            f"{what} has {len(name)} characters: give at most {MOST_CHARACTERS} ({name[:40]!a}…)."
        )
    if not name.isprintable():
        raise ConfigError(f"{what} has characters that cannot be shown: {name!a}.")


def _check_all(what: str, names: Iterable[Iterable[str]]) -> None:
    for parts in names:
        for part in parts:
            check_name(what, part)
