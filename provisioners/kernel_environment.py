"""The environment variables and the working directory of a kernel."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from roost.placement.model import Request
from roost.placement.model.visible_gpus import list_visible_gpus
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.errors import ConfigError

ALLOWED = (
    "LANG", "LANGUAGE", "LC_*", "TZ", "TERM", "COLORTERM", "NO_COLOR", "KERNEL_*", "JPY_SESSION_NAME", "PYTHONHASHSEED",
    "PYTHONUNBUFFERED", "PYTHONUTF8", "OMP_NUM_THREADS", "MPLBACKEND",
)  # fmt: skip
"""Variables of the application that a kernel on another node gets, as `fnmatch` patterns. Left out are variables that
name files of this machine (PATH, HOME, LD_*, PYTHONPATH) and variables that may be secrets."""

NEVER = ("JPY_PARENT_PID", "JPY_API_TOKEN", "JUPYTER_TOKEN")
"""Variables of the application that no kernel gets. The agent sets JPY_PARENT_PID to a number of its own."""
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|APIKEY|(^|_)(KEYS?|AUTH|PASS|PWD)(_|$)", re.IGNORECASE)
"""Names of variables that are probably secrets. No pattern passes them on; a kernelspec can still set them."""


def check_patterns(patterns: Sequence[str]) -> None:
    """Raise `ConfigError` for a pattern without a letter or digit before its first `[`.

    `*` would match all names.
    """
    for pattern in patterns:
        if not re.search(r"[A-Za-z0-9]", pattern.partition("[")[0].replace("?", "")):
            raise ConfigError(f"environment: {pattern!r} matches every variable; begin as in 'PROJ_*'.")


def check_variables(spec_env: Container[str]) -> None:
    """Raise `ConfigError` for a kernelspec that sets KERNEL_USERNAME. Only the application names the owner."""
    if "KERNEL_USERNAME" in spec_env:
        raise ConfigError(
            "KERNEL_USERNAME in the kernelspec's env is refused, because the application that starts the kernel says "
            "whose it is: remove it."
        )


def build_environment(
    env: Mapping[str, str], spec_env: Container[str], *, is_local: bool, also: Sequence[str] = ()
) -> dict[str, str]:
    """Return the part of `env` that the kernel gets: on this machine, everything except `NEVER`.

    A kernel on another node gets its kernelspec's variables (`spec_env`), and variables that match `ALLOWED` or `also`.
    """
    patterns = (*ALLOWED, *also)

    def is_wanted(name: str) -> bool:
        if is_local or name in spec_env:
            return True
        return not _SECRET.search(name) and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return {name: value for name, value in env.items() if name not in NEVER and is_wanted(name)}


def limit_gpus(request: Request, backend: str, env: Mapping[str, str]) -> Request:
    """Return the request for GPUs that the kernel's variables `env` name."""
    if not request.gpus or not get_spec(backend).follows_visible_gpus:
        return request
    return replace(request, visible_gpus=list_visible_gpus(env))


def choose_directory(env: Mapping[str, str], cwd: str | None, *, is_local: bool) -> str:
    """Return KERNEL_WORKING_DIR, else `cwd`, else this process's directory, else the home directory.

    For a kernel on this machine (`is_local`), folders that do not exist are skipped.
    """
    for folder in (env.get("KERNEL_WORKING_DIR"), cwd):
        if folder and (not is_local or os.path.isdir(folder)):
            return os.path.abspath(folder) if is_local else folder
    try:
        return os.getcwd()
    except FileNotFoundError:
        return os.path.expanduser("~")
