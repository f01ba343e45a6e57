"""Reads a request from a kernelspec's options, the configuration and the kernel's environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roost.placement.model import NODE_LABEL, Request
from roost.placement.model.validation import check_amounts, check_number
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.backends.spec import DEFAULT_BACKEND, describe_unknown
from roost.scheduler.config.memory_size import check_kernel_memory, parse_bytes
from roost.scheduler.errors import ConfigError
from roost.scheduler.messages import SERVICE_TIMEOUT, is_loopback

OPTIONS = (
    "backend", "cpus", "memory", "gpus", "gpu_models", "gpu_memory", "labels", "near", "resources", "tolerates",
    "policy", "enforce", "options", "encrypt", "fork", "launch_timeout", "environment", "backend_options",
)  # fmt: skip
"""The keys that a kernelspec may have in `metadata.kernel_provisioner.config`."""


_SMALLEST = 1e-4
"""The smallest amount that a cluster manager counts: Ray's unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    """The request of one kernel, and how long its start may take (the queue and the launch together)."""

    request: Request
    launch_timeout_s: float
    """`SERVICE_TIMEOUT` if neither the kernelspec nor a variable names a time."""


def check_names(
    names: Iterable[str], known: Sequence[str] = OPTIONS, what: str = "kernelspec option"
) -> None:
    """Raise `ConfigError` for the first name that is not `known`."""
    for name in names:
        if name not in known:
            raise ConfigError(describe_unknown(what, name, known))


def check_backend_options(backend: str, options: Any) -> None:
    """Raise `ConfigError` if a kernelspec sets other backend options than the cluster's address.

    With other options, a user could evade the operator's limits.
    """
    if not isinstance(options, Mapping):
        raise ConfigError(f"backend_options = {options!r:.60} is not an object of names and values.")
    known = ("address",) if get_spec(backend).address_variable else ()
    for name, value in options.items():
        if name not in known:
            can = "only the address" if known else "nothing"
            raise ConfigError(f"backend_options has {name!r:.40}: for {backend}, a kernelspec can set {can}.")
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"backend_options: address = {value!r:.60} is not a text such as 'host:6379'.")


def read_start_options(options: Mapping[str, Any], env: Mapping[str, str]) -> StartOptions:
    """Combine `options` (keys as in OPTIONS) with the overriding KERNEL_* variables of `env`; raises `ConfigError`."""
    fields: dict[str, Any] = {"options": _read_backend_options(options, env)}
    variables = {}
    try:
        for field, option, variable, read in _FIELDS:
            text = env.get(variable, "").strip() if variable else ""
            name, value = (variable, text) if text else (option, options.get(option))
            if value is not None and value != "":
                fields[field] = read(name, value)
                variables[option] = name
        if host := _read_host(options, env):
            fields["labels"] = {**fields.get("labels", {}), NODE_LABEL: host}
        timeout_s = fields.pop("launch_timeout_s", SERVICE_TIMEOUT)
        request = Request(**fields)
        for name, amount in {"cpus": request.cpus, "gpus": request.gpus, **request.resources}.items():
            if 0 < amount < _SMALLEST:
                raise ConfigError(f"{name} = {amount:g} is less than the smallest amount, {_SMALLEST:g}.")
        return StartOptions(request=request, launch_timeout_s=timeout_s)
    except ValueError as problem:
        option, _, rest = str(problem).partition(" ")
        raise ConfigError(f"{variables.get(option, option)} {rest}") from None


def read_seconds(name: str, value: Any) -> float:
    """Return `value` as seconds.

    Raises `ConfigError`, which mentions `name`, unless it is a number above 0.
    """
    try:
        seconds = check_number(name, _to_number(value))
    except ValueError:
        seconds = 0.0
    if not seconds:
        raise ConfigError(f"{name} = {value!r:.40} is not possible: give seconds above 0.")
    return seconds


def split_pairs(
    name: str,
    texts: Iterable[str],
    example: str = "zone=a",
    split: Callable[[str, str], tuple[str, str, str]] = str.partition,
) -> dict[str, str]:
    """Return the texts KEY=VALUE as a mapping; raises `ConfigError`. With `str.rpartition`, a key may contain `=`."""
    pairs = {}
    for text in texts:
        key, equals, value = split(text, "=")
        if not (key.strip() and equals):
            raise ConfigError(f"{name} {text!r:.60} must be KEY=VALUE, for example {example}.")
        pairs[key.strip()] = value.strip()
    return pairs


def _read_backend_options(options: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    given = options.get("options") or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"options = {given!r:.60} is not an object of names and values.")
    return get_spec(options.get("backend") or DEFAULT_BACKEND).read_options(given, env)


def _read_host(options: Mapping[str, Any], env: Mapping[str, str]) -> str:
    """Return the node that KERNEL_REMOTE_HOST names; empty if it names none, or this machine where all kernels run."""
    host = env.get("KERNEL_REMOTE_HOST", "").strip()
    is_here = get_spec(options.get("backend") or DEFAULT_BACKEND).runs_on_this_machine
    return "" if is_here and is_loopback(host) else host


def _to_number(value: Any) -> Any:
    """Return the number in a text. Other values are checked later."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _number(name: str, value: Any) -> float:
    return check_number(name, _to_number(value))


def _cpus(name: str, value: Any) -> float:
    """Return a number of CPUs. A text may give thousandths, as in Kubernetes: `500m`."""
    text = value.strip() if isinstance(value, str) else ""
    if not text.endswith("m"):
        return _number(name, value)
    thousandths = _to_number(text.removesuffix("m"))
    if isinstance(thousandths, str):
        raise ConfigError(f"{name} = {value!r:.40} is not possible: give CPUs such as 0.5 or 500m.")
    return check_number(name, thousandths / 1000)


def _memory(name: str, value: Any) -> int:
    try:
        return parse_bytes(value)
    except ConfigError as problem:
        raise ConfigError(f"{name} = {problem.user_message}") from None


def _kernel_memory(name: str, value: Any) -> int:
    return check_kernel_memory(name, _memory(name, value))


def _amounts(name: str, value: Any) -> dict[str, float]:
    if isinstance(value, str):
        value = split_pairs(name, value.split(","), "licence=1", str.rpartition)
    if isinstance(value, Mapping):
        value = {key: _to_number(amount) for key, amount in value.items()}
    return {key: amount for key, amount in check_amounts(name, value).items() if amount}


def _names(_: str, value: Any) -> Any:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _labels(name: str, value: Any) -> Any:
    return split_pairs(name, value.split(",")) if isinstance(value, str) else value


_FIELDS: tuple[tuple[str, str, str, Callable[[str, Any], Any]], ...] = (
    ("cpus", "cpus", "KERNEL_CPUS", _cpus),
    ("memory_bytes", "memory", "KERNEL_MEMORY", _kernel_memory),
    ("gpus", "gpus", "KERNEL_GPUS", _number),
    ("gpu_models", "gpu_models", "", _names),
    ("gpu_memory_bytes", "gpu_memory", "KERNEL_GPU_MEMORY", _memory),
    ("labels", "labels", "", _labels),
    ("near", "near", "", _labels),
    ("resources", "resources", "KERNEL_RESOURCES", _amounts),
    ("tolerates", "tolerates", "", _names),
    ("policy", "policy", "", lambda _, value: value),
    ("enforce", "enforce", "", lambda _, value: value),
    ("launch_timeout_s", "launch_timeout", "KERNEL_LAUNCH_TIMEOUT", read_seconds),
)
"""The fields of a request, each with its option, its variable (empty: none) and its reader. `Request` checks them."""
