"""Runs a kernelspec's Python to learn whether its kernels can start, fork and use encryption."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from roost.launchers.agent.warm.kernel_command import (
    LAUNCHER,
    LAUNCHERS,
    NotForked,
    check_command,
    parse_ipykernel_command,
)

PROBE_S = 30.0
"""How long the probe may take. A first import of ipykernel from a network disk is slow."""

_PLACE = '[*os.stat("/")[1:3], os.path.basename(os.path.realpath("/proc/self/ns/mnt"))]'
"""An expression: its value is another one in a container, which has other files (`_is_here`)."""
_SHOW = f"import json, os, sys; print(json.dumps([sys.executable, {_PLACE}]))"
_PROBE = """
import json, os, platform, sys
found = {"python": platform.python_version(), "interpreter": sys.executable, "place": PLACE}
try:
    import ipykernel, ipykernel.kernelspec, zmq
    metadata = ipykernel.kernelspec.get_kernel_dict().get("metadata", {})
    has_curve = "curve" in metadata.get("supported_encryption", ()) and bool(zmq.has("curve"))
    found.update(ipykernel=ipykernel.__version__, has_curve=has_curve, can_fork=sys.platform == "linux")
except Exception as error:
    why, install = f"{type(error).__name__}: {error}", f"{sys.executable} -m pip install ipykernel"
    found["problem"] = f"{sys.executable} cannot import ipykernel ({why}): `{install}`."
print("\\n" + json.dumps(found))
""".replace("PLACE", _PLACE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """The result of a probe."""

    executable: str = ""
    """The path of the command's program."""
    is_ipykernel: bool = False
    python: str = ""
    """The version of Python."""
    interpreter: str = ""
    """The path of the interpreter itself, which `executable` may only start."""
    ipykernel: str = ""
    """The version of ipykernel."""
    can_fork: bool = False
    has_curve: bool = False
    why_not_forked: str = ""
    """Why kernels are executed, not forked, and what to write instead: a sentence. Empty if they can be forked."""
    problem: str = ""
    """Why kernels cannot start; empty if they can."""


def probe(argv: Sequence[str], env: Mapping[str, str]) -> ProbeResult:
    """Run the Python of the kernel command `argv` in the environment `env`, and return its versions and abilities.

    Blocks for up to 30 s. For a command that is not ipykernel's, only check whether program and module can be found.
    """
    if not argv:
        return ProbeResult(problem="Its argv is empty: a kernelspec needs a command.")
    executable = shutil.which(argv[0], path=env.get("PATH"))
    if executable is None:
        return ProbeResult(problem=f"{argv[0]} is no executable here: install it, or correct argv.")
    command = parse_ipykernel_command(argv)
    if command is None:
        problem = _find_missing_module(executable, argv, env)
        advice = "" if problem else _find_launched(argv, env)
        return ProbeResult(executable=executable, problem=problem, why_not_forked=advice)
    try:
        done = subprocess.run(
            [executable, *command.flags, "-c", _PROBE],
            env=dict(env), cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_S,
        )  # fmt: skip
        found = json.loads(done.stdout.strip().rpartition("\n")[2])
        if not isinstance(found, dict):
            raise ValueError(found)
        is_here = _is_here(found.pop("place"))
        try:
            check_command(command, executable)
        except NotForked as refusal:
            found["why_not_forked"] = _advise(str(refusal), found["interpreter"]) if is_here else ""
        return ProbeResult(executable=executable, is_ipykernel=True, **found)
    except subprocess.TimeoutExpired:
        problem = f"{executable} did not answer within {PROBE_S:g} s: check whether it runs."
    except (OSError, ValueError, TypeError) as error:
        reason = "it prints no JSON" if isinstance(error, ValueError) else error
        problem = f"{executable} does not run as a Python interpreter ({reason})."
    return ProbeResult(executable=executable, is_ipykernel=True, problem=problem)


def _is_here(place: object) -> bool:
    """True if a process that found itself in this `_PLACE` sees the files that this process sees."""
    return place == [*os.stat("/")[1:3], os.path.basename(os.path.realpath("/proc/self/ns/mnt"))]


def _advise(reason: str, interpreter: str) -> str:
    command = f"{interpreter} -m {LAUNCHER}"
    return (
        f"Kernels are executed, not forked, because {reason}: write {command} in argv, and variables in env."
    )


def _find_launched(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """Return the advice for a command such as `conda run` or `env` that starts ipykernel; else an empty text.

    There is none for a command that enters a container, because its Python is not one of this machine.
    """
    at = next((n for n, part in enumerate(argv[:-1]) if part == "-m" and argv[n + 1] in LAUNCHERS), 0)
    if not at:
        is_hidden = any(LAUNCHER in part for part in argv[1:])  # in a line for a shell
        return _advise(f"{argv[0]} starts the interpreter", "the interpreter's path") if is_hidden else ""
    show = [*argv[:at], "-c", _SHOW]
    try:
        done = subprocess.run(
            show, env=dict(env), cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROBE_S
        )  # fmt: skip
        interpreter, place = json.loads(done.stdout.strip().rpartition("\n")[2])
    except (OSError, ValueError, TypeError, subprocess.TimeoutExpired):
        return ""
    can_advise = os.path.isabs(interpreter) and _is_here(place)
    return _advise(f"{argv[0]} starts the interpreter", interpreter) if can_advise else ""


def _find_missing_module(executable: str, argv: Sequence[str], env: Mapping[str, str]) -> str:
    """Return an error text if `argv` is `python -m MODULE` and MODULE is missing, else an empty text."""
    if not os.path.basename(executable).startswith("python") or tuple(argv[1:2]) != ("-m",) or len(argv) < 3:
        return ""
    module = argv[2].partition(".")[0]
    script = (
        "import importlib.util, sys; sys.exit(77 if importlib.util.find_spec(sys.argv[1]) is None else 0)"
    )
    try:
        done = subprocess.run(
            [executable, "-c", script, module], env=dict(env), cwd="/", capture_output=True, timeout=PROBE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (
        f"{executable} has no module {module}: install it, or correct argv." if done.returncode == 77 else ""
    )
