"""The environment and the working directory that reach a kernel."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from roost.scheduler.errors import ConfigError

ALLOWED = (
    "LANG", "LANGUAGE", "LC_*", "TZ", "TERM", "COLORTERM", "NO_COLOR", "KERNEL_*", "JPY_SESSION_NAME", "PYTHONHASHSEED",
    "PYTHONUNBUFFERED", "PYTHONUTF8", "OMP_NUM_THREADS", "MPLBACKEND",
)  # fmt: skip
"""What of the application's environment a kernel on another node gets, as patterns of `fnmatch`: nothing that names
files of this machine (PATH, HOME, LD_*, PYTHONPATH), and nothing that may be a secret."""

NEVER = ("JPY_PARENT_PID", "JPY_API_TOKEN", "JUPYTER_TOKEN")
"""A kernel ends itself when its JPY_PARENT_PID does, which is not its parent here; tokens are no kernel's."""


_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|APIKEY|(^|_)(KEYS?|AUTH|PASS|PWD)(_|$)", re.IGNORECASE)
"""Names of what is probably a secret: no pattern matches it. A kernelspec can still set such a variable itself."""


def check_patterns(patterns: Sequence[str]) -> None:
    """Raise `ConfigError` for a pattern that says nothing about a name."""
    for pattern in patterns:
        if not re.search(r"[A-Za-z0-9]", pattern.partition("[")[0].replace("?", "")):
            raise ConfigError(
                f"environment: {pattern!r} would pass everything on; begin with letters, as in 'PROJ_*'."
            )


def kernel_environment(
    env: Mapping[str, str], *, spec_env: Iterable[str], is_local: bool, also: Sequence[str] = ()
) -> dict[str, str]:
    """What of `env` (the application's, with the kernelspec's over it) the kernel gets.

    A kernel of this machine gets all but `NEVER`. One on another node gets the kernelspec's own (`spec_env`: names),
    and what `ALLOWED` or the operator's and kernelspec's patterns `also` name, but for secrets.
    """
    env = {name: value for name, value in env.items() if name not in NEVER}
    if is_local:
        return env
    wanted = set(spec_env)
    patterns = (*ALLOWED, *also)
    return {
        name: value
        for name, value in env.items()
        if name in wanted
        or (not _SECRET.search(name) and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
    }


def working_directory(env: Mapping[str, str], cwd: str | None, *, is_local: bool) -> str:
    """KERNEL_WORKING_DIR, else `cwd`, else the caller's own; on this machine the first of them that is there."""
    for folder in (env.get("KERNEL_WORKING_DIR"), cwd):
        if folder and (not is_local or os.path.isdir(folder)):
            return os.path.abspath(folder) if is_local else folder
    try:
        return os.getcwd()
    except FileNotFoundError:
        return os.path.expanduser("~")
