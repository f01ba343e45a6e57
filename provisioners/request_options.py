"""Reads a request from a kernelspec's options, the configuration and the kernel's environment."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from roost.placement.request import Request
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.backends.spec import DEFAULT_BACKEND
from roost.scheduler.config.memory_size import parse_bytes
from roost.scheduler.errors import ConfigError
from roost.scheduler.service.messages import DEFAULT_LAUNCH_TIMEOUT_S

OPTIONS = (
    "backend", "cpus", "memory", "gpus", "gpu_models", "gpu_memory", "labels", "near", "resources", "tolerates",
    "policy", "options", "encrypt", "fork", "launch_timeout", "environment", "backend_options",
)  # fmt: skip
"""The keys that a kernelspec may have in `metadata.kernel_provisioner.config`."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    """The request of one kernel, and how long its start may take (the queue and the launch together)."""

    request: Request
    launch_timeout_s: float


def check_names(
    names: Iterable[str],
    known: Sequence[str] = OPTIONS,
    problem: str = "The kernelspec's provisioner config has the unknown option",
) -> None:
    """Raise `ConfigError` for the first name that is not `known`."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{problem} {name!r}.{guess} Known names are {', '.join(known)}.")


def check_backend_options(backend: str, options: Any) -> None:
    """Raise `ConfigError` for a backend option that a kernelspec may not set. It may set only the cluster's address.

    Only the operator may set the rest. Otherwise a user could choose other totals, or a configuration without limits.
    """
    has_address = bool(get_spec(backend).address_variable)
    if not isinstance(options, Mapping):
        raise ConfigError(f"backend_options = {options!r:.60} is not a table of names and values.")
    for name, value in options.items():
        if name != "address" or not has_address:
            can = "only the address" if has_address else "nothing"
            raise ConfigError(f"backend_options has {name!r:.40}: for {backend}, a kernelspec can set {can}.")
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"backend_options: address = {value!r:.60} is not a text such as 'host:6379'.")


def read_start_options(options: Mapping[str, Any], env: Mapping[str, str]) -> StartOptions:
    """Combine `options` (keys as in OPTIONS) with the KERNEL_* variables in `env`. The variables win.

    A `ConfigError` names the option or the variable.
    """

    def read(option: str, variable: str, parse: Callable[[str, Any], T]) -> T:
        text = env.get(variable, "").strip() if variable else ""
        return parse(variable, text) if text else parse(option, options.get(option))

    fields: dict[str, Any] = {
        "cpus": read("cpus", "KERNEL_CPUS", _amount),
        "memory_bytes": read("memory", "KERNEL_MEMORY", _memory),
        "gpus": read("gpus", "KERNEL_GPUS", _gpus),
        "gpu_models": read("gpu_models", "", _names),
        "gpu_memory_bytes": read("gpu_memory", "KERNEL_GPU_MEMORY", _memory),
        "labels": read("labels", "", _labels),
        "near": read("near", "", _labels),
        "resources": read("resources", "KERNEL_RESOURCES", _resources),
        "tolerates": read("tolerates", "", _names),
        "policy": read("policy", "", _text),
        "options": _backend_request_options(options, env),
    }
    try:
        request = Request(**fields)
    except ValueError as problem:
        raise ConfigError(str(problem)) from None
    return StartOptions(
        request=request, launch_timeout_s=read("launch_timeout", "KERNEL_LAUNCH_TIMEOUT", _timeout_s)
    )


def _backend_request_options(options: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    given = options.get("options")
    if _is_unset(given):
        given = {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"options = {given!r:.60} is not a table of names and values.")
    return get_spec(options.get("backend") or DEFAULT_BACKEND).read_options(given, env)


def _is_unset(value: Any) -> bool:
    return value is None or value == ""


def _amount(name: str, value: Any, *, least: str = "ask for 0 (no promise) or more") -> float:
    if _is_unset(value):
        return 0.0
    try:
        amount = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        amount = math.nan
    if not math.isfinite(amount):
        raise ConfigError(f"{name} = {value!r:.40} is not a number.")
    if amount < 0:
        raise ConfigError(f"{name} = {value} is negative: {least}.")
    return amount


def _resources(name: str, value: Any) -> dict[str, float]:
    if _is_unset(value):
        return {}
    items = value
    if isinstance(value, str):
        items = dict(item.rpartition("=")[::2] for item in value.split(",") if item.strip())
    if not isinstance(items, Mapping) or not all(isinstance(key, str) and key.strip() for key in items):
        raise ConfigError(f"{name} = {value!r:.60} is not a table of names and amounts.")
    amounts = {key.strip(): _amount(f"{name} {key.strip()}", item) for key, item in items.items()}
    return {key: amount for key, amount in amounts.items() if amount}


def _gpus(name: str, value: Any) -> float:
    gpus = _amount(name, value)
    if gpus > 1 and gpus != int(gpus):
        raise ConfigError(
            f"{name} = {value} is not possible: ask for a share of one GPU (up to 1) or a whole number."
        )
    return gpus


def _memory(name: str, value: Any) -> int:
    if _is_unset(value):
        return 0
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value < 0:
        raise ConfigError(f"{name} = {value} is negative: ask for 0 (no promise) or more.")
    try:
        return parse_bytes(value)
    except ConfigError as problem:
        raise ConfigError(f"{name} = {problem.user_message}") from None


def _timeout_s(name: str, value: Any) -> float:
    if _is_unset(value):
        return DEFAULT_LAUNCH_TIMEOUT_S
    timeout_s = _amount(name, value, least="give seconds above 0")
    if timeout_s == 0:
        raise ConfigError(f"{name} = {value} leaves no time to start: give seconds above 0.")
    return timeout_s


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"{name} = {value!r:.40} is not a text.")
    return value


def _names(name: str, value: Any) -> tuple[str, ...]:
    if _is_unset(value):
        return ()
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, (list, tuple, set)) or not all(isinstance(item, str) for item in items):
        raise ConfigError(f"{name} = {value!r:.60} is not a list of names.")
    return tuple(item.strip() for item in items if item.strip())


def _labels(name: str, value: Any) -> dict[str, str]:
    if _is_unset(value):
        return {}
    if isinstance(value, str):
        value = dict(item.partition("=")[::2] for item in value.split(",") if item)
    if not isinstance(value, Mapping) or not all(
        isinstance(item, str) for pair in value.items() for item in pair
    ):
        raise ConfigError(f"{name} = {value!r:.60} is not a table of names and texts.")
    return {key.strip(): text.strip() for key, text in value.items()}
