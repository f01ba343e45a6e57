"""The operator's caps, which the scheduler checks before a start joins the queue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from roost.placement.model import Request
from roost.placement.model.format import format_bytes, format_count
from roost.scheduler.config.settings import Settings
from roost.scheduler.errors import LimitExceeded, NotAllowed

_AMOUNTS = ("cpus", "memory_bytes", "gpus")
_EXACT = 1e-6
"""The difference between two sums that counts as none."""
_NAMED = 5
"""At most this many of the kernels that count towards a cap are named."""


def with_defaults(request: Request, settings: Settings) -> Request:
    """Return the request with the operator's defaults in place of amounts of zero and of a missing policy."""
    return replace(
        request,
        cpus=request.cpus or settings.default_cpus,
        memory_bytes=request.memory_bytes or settings.default_memory,
        gpus=request.gpus or settings.default_gpus,
        policy=request.policy or settings.default_policy,
    )


def check_user(user: str, kernel_name: str, settings: Settings) -> None:
    """Raise `NotAllowed` if `user` may not start kernels of the kernelspec `kernel_name`.

    The allowed users of a kernelspec replace those of the service. Its denied users are added to those of the service.
    """
    rule = settings.kernelspec_users.get(kernel_name.lower(), {})  # Jupyter ignores case
    own = rule.get("allowed", [])
    allowed = own or settings.allowed_users
    if user in settings.denied_users or (not own and allowed and user not in allowed):
        raise NotAllowed(f"user {user!r} may not start kernels here; ask the operator.", user=user)
    if user in rule.get("denied", []) or (allowed and user not in allowed):
        of = f"of the kernelspec {kernel_name!r:.80}"
        raise NotAllowed(f"user {user!r} may not start kernels {of}; ask the operator.", user=user)


def check_alone(request: Request, user: str, settings: Settings) -> None:
    """Raise `LimitExceeded` if `user` may never have this request, even as the only kernel."""
    most = settings.max_kernels_per_user
    if most is not None and most < 1:
        raise LimitExceeded(
            f"max_kernels_per_user allows {user} {format_count(most, 'kernel')}: ask the operator.",
            cap="max_kernels_per_user",
            allowed=most,
            is_never=True,
        )
    for name in _AMOUNTS:
        for per in ("kernel", "user"):
            asked = getattr(request, name)
            _check(per, name, asked, "one kernel asks for", "ask for less", settings, is_never=True)


def check_beside(request: Request, user: str, held: Mapping[str, Request], settings: Settings) -> None:
    """Raise `LimitExceeded` if `user` may not have this request now, besides the kernels in `held`."""
    most = settings.max_kernels_per_user
    if most is not None and len(held) >= most:
        raise LimitExceeded(
            f"{user} has {format_count(len(held), 'kernel')}, and max_kernels_per_user allows {most}: "
            f"stop one first{_named(held)}.",
            cap="max_kernels_per_user",
            allowed=most,
            is_never=False,
        )
    for name in _AMOUNTS:
        asked = getattr(request, name)
        holders = [id_ for id_, other in held.items() if getattr(other, name)]
        if asked and holders:
            total = asked + sum(getattr(held[id_], name) for id_ in holders)
            do = f"ask for less, or stop another kernel{_named(holders)}"
            _check("user", name, total, f"with this one {user} would have", do, settings, is_never=False)


def has_user_cap(settings: Settings) -> bool:
    """True if a cap counts all kernels of a user."""
    caps = ("max_kernels_per_user", "max_cpus_per_user", "max_memory_per_user", "max_gpus_per_user")
    return any(getattr(settings, cap) is not None for cap in caps)


def check_wait(user: str, waiting: Sequence[str], wait_s: float, settings: Settings) -> None:
    """Raise `LimitExceeded` if `wait_s` is too long, or too many starts wait.

    `waiting` has the user of each waiting start.
    """
    if settings.max_launch_timeout_s is not None and wait_s > settings.max_launch_timeout_s:
        raise LimitExceeded(
            f"the start may wait {wait_s:g} s, and max_launch_timeout_s allows {settings.max_launch_timeout_s:g} s: "
            "ask for a shorter launch_timeout.",
            cap="max_launch_timeout_s",
            allowed=settings.max_launch_timeout_s,
            asked=wait_s,
            is_never=True,
        )
    for cap, who, count in (
        ("max_queued_per_user", user, sum(each == user for each in waiting)),
        ("max_queued", "all users together", len(waiting)),
    ):
        most: int = getattr(settings, cap)
        if count >= most:
            what = f"{who} {'has' if who == user else 'have'} {format_count(count, 'start')} in the queue"
            raise LimitExceeded(
                f"{what}, and {cap} allows {most}: try again when some have ended.",
                cap=cap,
                allowed=most,
                is_never=most < 1,
            )


def find_default_timeout(settings: Settings) -> float:
    """Return how many seconds a start may take that names no time: the operator's default, within the cap."""
    return limit_wait(settings.default_launch_timeout_s, settings)


def limit_wait(wait_s: float, settings: Settings) -> float:
    """Return how many seconds a start may wait that nobody has asked to wait as long: `wait_s`, within the cap."""
    most = settings.max_launch_timeout_s
    return wait_s if most is None else min(wait_s, most)


def _check(
    per: str, name: str, amount: float, who: str, do: str, settings: Settings, *, is_never: bool
) -> None:
    """Raise `LimitExceeded` if `amount` is more than the cap on `name` allows."""
    cap = f"max_{name.removesuffix('_bytes')}_per_{per}"
    allowed: float | None = getattr(settings, cap)
    if allowed is not None and amount > allowed + _EXACT:
        raise LimitExceeded(
            f"{who} {_text(name, amount)}, and {cap} allows {_text(name, allowed)}: {do}.",
            cap=cap,
            allowed=allowed,
            asked=amount,
            is_never=is_never,
        )


def _named(kernel_ids: Iterable[str]) -> str:
    """Return a text with the first characters of the ids, which `roost stop` accepts; empty without ids."""
    ids = list(kernel_ids)
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f" ({', '.join(id_[:8] for id_ in ids[:_NAMED])}{more})" if ids else ""


def _text(name: str, amount: float) -> str:
    if name == "memory_bytes":
        return f"{format_bytes(amount)} of memory"
    return format_count(amount, "CPU" if name == "cpus" else "GPU")
