"""The program that a contact runs on a host. It arrives on standard input, and needs the standard library alone.

It finds `ARGUMENTS`, `say` and `fetch_archive` (see `open_ssh.run_on_host`). The archive is fetched only if the host
lacks it. Then roost's own code on the host gives the answer (`launchers/agent/on_host.py`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from roost.scheduler.backends.node_archive import advise_python, check_base, find_base, find_code, unpack

PROLOGUE_S = 30.0
"""How long a prologue may run on a host."""
MOST_BYTES = 100 * 1024
"""At most this much is read of what a prologue prints, and of the environment after it. An answer is one line."""
_HEADER = f"""\
from collections.abc import Callable, Mapping
from typing import Any
PROLOGUE_S = {PROLOGUE_S}
MOST_BYTES = {MOST_BYTES}
"""
"""The beginning of a program, which `run_prologue` needs."""


@functools.cache
def write_program() -> str:
    """Return the source of the program, as it was at the first call.

    An upgrade may replace the files while the service runs. Their lines would no longer be those of the functions.

    Its ARGUMENTS: `digest` of the archive, `prologue` of the agent, and one of three tasks. `question` is answered with
    a `HostAnswer`. `kernel_prologue` alone is answered with {"variables": …}, which it changes. `kernel_python` is a
    `HostPython`, answered with {"result": …}. An answer {"failed": …} says why a kernelspec fits no host like this.
    """
    return join_program(find_changes, prepare, serve, call="serve(ARGUMENTS, say, fetch_archive)")


def join_program(*parts: Callable[..., Any], call: str) -> str:
    """Return the source of a program with these functions, and with those that prepare a host. It ends with `call`."""
    common: tuple[Callable[..., Any], ...] = (
        find_base,
        check_base,
        find_code,
        unpack,
        advise_python,
        apply_prologue,
        run_prologue,
    )
    sources = [inspect.getsource(part) for part in (*common, *parts)]
    return "\n\n".join([_HEADER, *sources, f"{call}\n"])


def serve(arguments: dict[str, Any], say: Callable[[Any], None], fetch_archive: Callable[[], bytes]) -> None:
    """Say the answer to a question of the service."""
    import os
    import sys

    def work() -> dict[str, Any]:
        connection = os.environ.get("SSH_CONNECTION", "")
        if problem := apply_prologue(arguments["prologue"]):
            return {"problem": problem}
        for name in [name for name in os.environ if name.startswith("SSH_")]:
            del os.environ[name]  # they are of this connection, and kernels outlive it
        changed, problem = run_prologue(arguments.get("kernel_prologue", ""), os.environ)
        if problem:
            return {"failed": problem}
        variables = find_changes(os.environ, changed)
        if "question" not in arguments and "kernel_python" not in arguments:
            return {"variables": variables}
        problem = prepare(arguments["digest"], fetch_archive)
        if problem:
            return {"problem": problem}
        from roost.launchers.agent import on_host

        if "kernel_python" in arguments:
            return on_host.probe_python(arguments["kernel_python"], variables)
        return on_host.answer(arguments["question"], connection)

    try:
        say(work())
    except ImportError as problem:
        reason = str(problem).replace("ModuleNotFoundError: ", "")
        say({"problem": f"{sys.executable} cannot run roost's agent ({reason}): {advise_python(reason)}"})
    except OSError as problem:
        where = problem.filename or os.environ.get("ROOST_RUNTIME_DIR", "")
        reason = f"{problem.strerror or problem} ({where})"
        say({"problem": f"roost's files cannot be written on the host: {reason}"})


def prepare(digest: str, fetch_archive: Callable[[], bytes]) -> str:
    """Let this process find roost's code, which is fetched if need be. Return why that failed, or an empty text."""
    import os
    import sys

    base = os.environ["ROOST_RUNTIME_DIR"] = find_base(os.environ)
    problem = check_base(base)
    if problem:
        return problem
    code = find_code(base, digest) or unpack(fetch_archive(), base, digest)
    os.chdir(base)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
    sys.path.insert(0, code)
    return ""


def apply_prologue(prologue: str) -> str:
    """Run a prologue, and take its environment for this process. Return why that failed, or an empty text."""
    import os

    changed, problem = run_prologue(prologue, os.environ)
    if not problem:
        os.environ.clear()
        os.environ.update(changed)
    return problem


def run_prologue(prologue: str, before: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Run lines of sh in a login shell with the environment `before`. Return the one after them, or why they failed.

    The lines are in no command line, because `ps` shows it to all users. They may leave processes behind.
    """
    import os
    import shutil
    import signal
    import subprocess
    import sys

    if not prologue:
        return dict(before), ""
    shell = shutil.which("bash") or "/bin/sh"
    # Files, not pipes: a process that the lines leave behind would hold a pipe open.
    with (
        os.fdopen(os.memfd_create("environment"), "r+b") as environment,
        os.fdopen(os.memfd_create("printed"), "r+b") as printed,
    ):
        # `os.environ` would have what Python itself changes for the locale C.
        program = f"open({environment.fileno()}, 'wb').write(open('/proc/self/environ', 'rb').read())"
        own = {"ROOST_LINES": prologue, "ROOST_PYTHON": sys.executable, "ROOST_PROGRAM": program}
        script = (
            'roost_lines=$ROOST_LINES; unset ROOST_LINES; set -e; eval "$roost_lines"\n'
            'exec "$ROOST_PYTHON" -I -S -c "$ROOST_PROGRAM"'
        )
        process = subprocess.Popen(
            [shell, "-l", "-c", script],
            env={**before, **own},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            pass_fds=[environment.fileno()],
            start_new_session=True,
        )
        try:
            code = process.wait(PROLOGUE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return {}, f"the prologue did not end within {PROLOGUE_S:g} s: shorten it"
        environment.seek(0)
        content = environment.read(MOST_BYTES + 1)
        printed.seek(max(0, printed.seek(0, os.SEEK_END) - MOST_BYTES))
        lines = printed.read(MOST_BYTES).decode(errors="replace").splitlines()
    if code or not content:
        # bash adds the other line if `eval` fails in a function, as in `module`.
        lines = [line.strip() for line in lines if line.strip() and "pop_var_context" not in line]
        why = f" ({lines[-1][:300]})" if lines else ""
        return {}, f"the prologue failed with code {code}{why}: correct its lines"
    if len(content) > MOST_BYTES:
        return {}, f"the variables after the prologue have more than {MOST_BYTES // 1024} KiB: set fewer"
    entries = content.decode(errors="surrogateescape").split("\0")
    found = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    return {name: value for name, value in found.items() if name not in own}, ""


def find_changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that differ `after` a prologue. One that it has removed is empty."""
    kept = ("_", "SHLVL", "PWD", "OLDPWD")  # each shell sets them for itself
    changed = {name: after.get(name, "") for name in [*before, *after] if before.get(name) != after.get(name)}
    return {
        name: value
        for name, value in changed.items()
        if name not in kept and not name.startswith(("SSH_", "ROOST_"))
    }
