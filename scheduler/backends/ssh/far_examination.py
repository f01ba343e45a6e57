"""The program that `roost ssh check` runs on a host. It goes the way of a start, and says each step that it has done.

It finds `ARGUMENTS`, `say` and `fetch_archive` (see `open_ssh.run_on_host`), and needs the standard library until the
archive is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from roost.scheduler.backends.node_archive import advise_python, check_base, find_base, find_code, unpack

from .far_side import apply_prologue, join_program


def write_program() -> str:
    """Return the source of the program.

    Its ARGUMENTS: `digest` of the archive, `prologue`, `question`, `address` (or ""), `token`, `reach_s`.
    """
    call = "examine(ARGUMENTS, say, fetch_archive)"
    return join_program(read_home, ask_loginctl, listen_once, examine, call=call)


def examine(
    arguments: dict[str, Any], say: Callable[[Any], None], fetch_archive: Callable[[], bytes]
) -> None:
    """Go the way of a start, and say the facts about this host. A problem ends the way."""
    import os
    import pwd
    import sys

    def work() -> dict[str, Any]:
        connection = os.environ.get("SSH_CONNECTION", "").split()
        facts: dict[str, Any] = {
            "python": ".".join(map(str, sys.version_info[:3])),
            "executable": sys.executable,
            "user": pwd.getpwuid(os.getuid()).pw_name,
        }
        if arguments["prologue"]:
            if problem := apply_prologue(arguments["prologue"]):
                return {"problem": problem}
            say({"step": "prologue"})
        base = os.environ["ROOST_RUNTIME_DIR"] = find_base(os.environ)
        if problem := check_base(base):
            return {"problem": problem}
        code = find_code(base, arguments["digest"])
        facts["was_there"] = bool(code)
        if not code:
            code = unpack(fetch_archive(), base, arguments["digest"])
        say({"step": "archive"})
        os.chdir(base)
        sys.path.insert(0, code)
        import roost.launchers.agent.main  # noqa: F401 - the agent's imports are tested
        from roost.launchers.agent import on_host

        say({"step": "imports"})
        answer = on_host.answer(arguments["question"], " ".join(connection))
        if "problem" in answer:
            return answer
        facts["node"] = answer["node"]
        say({"step": "amounts"})
        facts["home"] = read_home(os.path.expanduser("~"))
        facts["logout"] = [ask_loginctl(), ask_loginctl(facts["user"])]
        say({"step": "rules"})
        address = arguments["address"] or (connection[2] if len(connection) == 4 else "127.0.0.1")
        facts["address"] = address
        facts["address_problem"] = listen_once(address, arguments, say)
        return facts

    try:
        say(work())
    except ImportError as problem:
        reason = str(problem)
        text = f"{sys.executable} cannot run roost's agent ({reason}): {advise_python(reason)}"
        say({"problem": text, "kind": "python"})
    except OSError as problem:
        where = problem.filename or os.environ.get("ROOST_RUNTIME_DIR", "")
        say({"problem": f"roost's files cannot be written there: {problem.strerror or problem} ({where})"})


def read_home(home: str) -> dict[str, str]:
    """Return the type and the options of the file system with the home, from /proc/self/mountinfo."""
    import os

    found = {"type": "", "options": ""}
    longest = -1
    path = os.path.realpath(home)
    with open("/proc/self/mountinfo", errors="replace") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            mount = before.split()[4]
            is_above = mount == "/" or path == mount or path.startswith(mount + "/")
            if is_above and len(mount) >= longest:
                longest = len(mount)
                words = after.split()
                found = {"type": words[0], "options": words[-1]}
    return found


def ask_loginctl(*user: str) -> str:
    """Return what `loginctl show-user` prints; empty without systemd."""
    import subprocess

    try:
        done = subprocess.run(
            ["loginctl", "--no-pager", "show-user", *user],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=3,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def listen_once(address: str, arguments: Any, say: Callable[[Any], None]) -> str:
    """Let the near end connect to a free port of this address. Return why it cannot, as a clause, or an empty text.

    `ports` has the lowest and the highest port that a kernel may have; empty: any.
    """
    import errno
    import random
    import socket

    def open_listener() -> socket.socket:
        ports = range(arguments["ports"][0], arguments["ports"][1] + 1) if arguments["ports"] else range(1)
        for port in random.sample(ports, k=len(ports)):
            try:
                return socket.create_server((address, port), family=family)
            except OSError as problem:
                if problem.errno != errno.EADDRINUSE:
                    raise
        raise OSError(errno.EADDRINUSE, "no port of kernel_ports is free")

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with open_listener() as listener:
            listener.settimeout(arguments["reach_s"])
            say({"step": f"listens {listener.getsockname()[1]} {address}"})
            peer, _ = listener.accept()
            with peer:
                peer.sendall(arguments["token"].encode())
    except TimeoutError:
        return ""  # the near end knows more
    except OSError as problem:
        return f"nothing can listen on {address} there: {problem.strerror or problem}"
    return ""
