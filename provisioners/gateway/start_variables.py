"""The variables of a start: those that a client may send, and those that the operator forces."""

from __future__ import annotations

import fnmatch
import os
import pwd
from collections.abc import Mapping
from string import Template
from typing import Any

from roost.placement.model import visible_gpus
from roost.provisioners.application import build_http_error as refuse

from .settings import RoostGateway
from .user_sources import check_name

ACCEPTED = (
    "KERNEL_ID", "KERNEL_CPUS", "KERNEL_CPUS_LIMIT", "KERNEL_MEMORY", "KERNEL_MEMORY_LIMIT", "KERNEL_GPUS",
    "KERNEL_GPUS_LIMIT", "KERNEL_GPU_MEMORY", "KERNEL_RESOURCES", "KERNEL_WORKING_DIR", "KERNEL_SPARK_OPTS",
    "KERNEL_EXTRA_SPARK_OPTS", "KERNEL_SPARK_CONTEXT_INIT_MODE",
)  # fmt: skip
"""Variables that a client may set to any value."""
GUARDED = (
    "KERNEL_UID", "KERNEL_GID", "KERNEL_NAMESPACE", "KERNEL_SERVICE_ACCOUNT_NAME", "KERNEL_CLUSTER_ROLE",
    "KERNEL_IMAGE", "KERNEL_EXECUTOR_IMAGE", "KERNEL_VOLUMES", "KERNEL_VOLUME_MOUNTS", "KERNEL_QUEUE",
    "KERNEL_NODE_LABEL", "KERNEL_PRIORITY", "KERNEL_REMOTE_HOST", "KERNEL_POD_NAME",
)  # fmt: skip
"""Variables that say as whom a kernel runs, of what, or where: a client needs the operator's leave."""
INHERITED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR",
    *visible_gpus.VARIABLES,  # a kernel of `local` gets only the GPUs that the gateway may use
)  # fmt: skip
"""Variables of the gateway that all kernels get, as `fnmatch` patterns."""
_MOST_CHARACTERS = 4_096
_MOST_VARIABLES = 200


def inherit(settings: RoostGateway) -> dict[str, str]:
    """Return the variables of this process that each kernel gets."""
    patterns = (*INHERITED, *settings.inherited_envs)
    wanted = {
        name: value
        for name, value in os.environ.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
    return {name: value for name, value in wanted.items() if not name.startswith("KERNEL_")}


def check_text(name: str, value: Any) -> str:
    """Return a text of a client. Raises `HTTPError` for anything that no variable or path needs."""
    if not isinstance(value, str):
        raise refuse(400, f"{name!a:.80} must be a text.")
    if len(value) > _MOST_CHARACTERS or any(each in value for each in "\0\n\r"):
        raise refuse(400, f"{name!a:.80} must have at most {_MOST_CHARACTERS} characters, all in one line.")
    return value


def build_variables(given: Any, person: str, settings: RoostGateway, *, timeout_s: float) -> dict[str, str]:
    """Return the variables of a start for `person`. Those of `inherit` come on top.

    `given` is the `env` of the request. `timeout_s` is how long the start may take if the client says nothing.
    KERNEL_USERNAME in the result says for whom the kernel counts. Raises `HTTPError`.
    """
    if given is None:
        given = {}
    if not isinstance(given, dict) or len(given) > _MOST_VARIABLES:
        raise refuse(400, f"env must be an object of at most {_MOST_VARIABLES} names and texts.")
    user = _read_user(given.get("KERNEL_USERNAME"), person, settings)
    accepted = {
        name: value
        for name, value in given.items()
        if name != "KERNEL_USERNAME" and _is_accepted(name, value, settings, timeout_s)
    }
    forced = {name: _fill(text, user) for name, text in settings.user_variables.items()}
    return {**accepted, **forced, "KERNEL_USERNAME": user}


def _read_user(given: Any, person: str, settings: RoostGateway) -> str:
    if given is None or given == "":
        return person
    user = check_name(check_text("KERNEL_USERNAME", given))
    if user != person and settings.users != "trust":
        raise refuse(403, f"KERNEL_USERNAME is another name than yours, {person}: leave it out.")
    return user


def _is_accepted(name: str, value: Any, settings: RoostGateway, timeout_s: float) -> bool:
    """True if the kernel gets this variable of its client. Raises `HTTPError` if the start must be refused."""
    if name in settings.user_variables:
        return False
    patterns = settings.allowed_values.get(name, ())
    if not (patterns or name in (*ACCEPTED, *GUARDED, *settings.client_envs, "KERNEL_LAUNCH_TIMEOUT")):
        return False
    check_text(name, value)
    if patterns or (name in GUARDED and name not in settings.client_envs):
        if not any(fnmatch.fnmatchcase(value, pattern) for pattern in patterns):
            raise refuse(
                403, f"{name} = {value!a:.80} is not allowed here: leave it out, or ask the operator."
            )
        return True
    if name == "KERNEL_LAUNCH_TIMEOUT":  # every laptop sends one, whether or not its user wants it
        return _read_seconds(value) > timeout_s
    return True


def _read_seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise refuse(400, f"KERNEL_LAUNCH_TIMEOUT = {text!a:.40} is not possible: give seconds.") from None


def _fill(text: str, user: str) -> str:
    """Return a forced variable for a user. Raises `HTTPError` if it needs an account, and the user has none."""
    if "{uid}" in text or "{gid}" in text:
        try:
            account = pwd.getpwnam(user)
        except KeyError:
            raise refuse(403, f"{user} has no account on the gateway's machine: ask the operator.") from None
        text = text.replace("{uid}", str(account.pw_uid)).replace("{gid}", str(account.pw_gid))
    return text.replace("{user}", user)


def check_references(kernel_name: str, spec_env: Mapping[str, str], env: Mapping[str, str]) -> None:
    """Raise `HTTPError` if a kernelspec's `env` refers to a variable that the start does not have."""
    for text in spec_env.values():
        for match in Template.pattern.finditer(text):
            name = match["named"] or match["braced"]
            if name and name not in env and name != "KERNEL_ID":
                raise refuse(
                    400,
                    f"The kernelspec {kernel_name} needs ${{{name}}}, which this start does not have: the operator "
                    "can add it to user_variables or inherited_envs.",
                )
