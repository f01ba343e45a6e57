"""The program that a contact runs on a host. It arrives on standard input, and needs the standard library alone.

It finds `ARGUMENTS`, `say` and `fetch_archive` (see `open_ssh.run_on_host`). The archive is fetched only if the host
lacks it. Then roost's own code on the host gives the answer (`launchers/agent/on_host.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from roost.scheduler.backends.node_archive import advise_python, check_base, find_base, find_code, unpack

_HEADER = """\
from collections.abc import Callable, Mapping
from typing import Any
"""
_PROLOGUE_S = 30.0


def write_program() -> str:
    """Return the source of the program. Its ARGUMENTS: `digest` of the archive, `prologue`, `question`."""
    parts = (find_base, check_base, find_code, unpack, advise_python, run_prologue, serve)
    sources = [_HEADER, f"_PROLOGUE_S = {_PROLOGUE_S}", *(inspect.getsource(part) for part in parts)]
    return "\n\n".join([*sources, "serve(ARGUMENTS, say, fetch_archive)\n"])


def serve(arguments: dict[str, Any], say: Callable[[Any], None], fetch_archive: Callable[[], bytes]) -> None:
    """Say the answer to a question of the service."""
    import os
    import sys

    def work() -> dict[str, Any]:
        connection = os.environ.get("SSH_CONNECTION", "")
        if arguments["prologue"] and (problem := run_prologue(arguments["prologue"])):
            return {"problem": problem}
        for name in [name for name in os.environ if name.startswith("SSH_")]:
            del os.environ[name]  # they are of this connection, and kernels outlive it
        base = os.environ["ROOST_RUNTIME_DIR"] = find_base(os.environ)
        if problem := check_base(base):
            return {"problem": problem}
        code = find_code(base, arguments["digest"])
        if not code:
            code = unpack(fetch_archive(), base, arguments["digest"])
        os.chdir(base)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
        sys.path.insert(0, code)
        from roost.launchers.agent import on_host

        return on_host.answer(arguments["question"], connection)

    try:
        say(work())
    except ImportError as problem:
        reason = str(problem).replace("ModuleNotFoundError: ", "")
        say({"problem": f"{sys.executable} cannot run roost's agent ({reason}): {advise_python(reason)}"})
    except OSError as problem:
        where = f" ({problem.filename})" if problem.filename else ""
        say({"problem": f"roost's files cannot be written on the host: {problem.strerror or problem}{where}"})


def run_prologue(prologue: str) -> str:
    """Run the prologue in a login shell, and take its environment. Return why that failed, or an empty text."""
    import os
    import shutil
    import subprocess
    import sys

    shell = shutil.which("bash") or "/bin/sh"
    program = "import os, sys; sys.stdout.buffer.write(bytes(1).join(b'%s=%s' % item for item in os.environb.items()))"
    script = f'exec 3>&1 1>&2\nset -e\n{prologue}\nexec "$ROOST_PYTHON" -c "$ROOST_PROGRAM" >&3'
    env = {**os.environ, "ROOST_PYTHON": sys.executable, "ROOST_PROGRAM": program}
    try:
        done = subprocess.run(
            [shell, "-l", "-c", script],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROLOGUE_S,
        )
    except subprocess.TimeoutExpired:
        return f"the prologue did not end within {_PROLOGUE_S:g} s"
    content = done.stdout.decode(errors="surrogateescape")
    if done.returncode or not content:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return (
            f"the prologue failed with code {done.returncode}: {lines[-1] if lines else 'it printed nothing'}"
        )
    found = dict(line.split("=", 1) for line in content.split("\0") if "=" in line)
    os.environ.clear()
    os.environ.update(
        {name: value for name, value in found.items() if name not in ("ROOST_PYTHON", "ROOST_PROGRAM")}
    )
    return ""
