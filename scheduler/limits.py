"""What users may have: checked when a start is asked for, before it queues."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .amounts import format_bytes
from .config import Settings
from .errors import LimitExceeded, NotAllowed
from .values import KernelRequest

_AMOUNTS = ("cpus", "memory_bytes", "gpus")


def with_defaults(request: KernelRequest, settings: Settings) -> KernelRequest:
    """The request with the operator's defaults for what it does not say."""
    return replace(
        request,
        cpus=request.cpus or settings.default_cpus,
        memory_bytes=request.memory_bytes or settings.default_memory_bytes,
        gpus=request.gpus or settings.default_gpus,
        policy=request.policy or settings.default_policy,
    )


def admit(request: KernelRequest, user: str, held: Iterable[KernelRequest], settings: Settings) -> None:
    """Raise `NotAllowed` or `LimitExceeded` if `user`, who already holds (or waits for) `held`, may not have this."""
    if user in settings.denied_users or (settings.allowed_users and user not in settings.allowed_users):
        raise NotAllowed(
            f"user {user!r} may not start kernels here; ask the operator of this cluster.", user=user
        )
    held = list(held)
    if settings.max_kernels_per_user is not None and len(held) >= settings.max_kernels_per_user:
        raise LimitExceeded(
            f"{user} has {len(held)} kernels, and {settings.max_kernels_per_user} are allowed: stop one first.",
            cap="max_kernels_per_user",
            allowed=settings.max_kernels_per_user,
        )
    for name in _AMOUNTS:
        asked = getattr(request, name)
        _check(f"max_{name}_per_kernel", name, asked, "one kernel asks for", settings)
        total = asked + sum(getattr(other, name) for other in held)
        _check(
            f"max_{name}_per_user", name, total if asked else 0, f"with this one {user} would have", settings
        )


def _check(cap: str, name: str, amount: float, who: str, settings: Settings) -> None:
    allowed: float | None = getattr(settings, cap)
    if allowed is not None and amount > allowed + 1e-6:
        raise LimitExceeded(
            f"{who} {_text(name, amount)}, and {cap} allows {_text(name, allowed)}: ask for less.",
            cap=cap,
            allowed=allowed,
            asked=amount,
        )


def _text(name: str, amount: float) -> str:
    if name == "memory_bytes":
        return f"{format_bytes(amount)} of memory"
    return f"{amount:g} {'CPUs' if name == 'cpus' else 'GPUs'}"
