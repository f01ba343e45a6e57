"""A trial start of a real kernel with a real client. It shows the imported modules and the written memory pages."""

from __future__ import annotations

import array
import ctypes
import json
import os
import select
import shutil
import signal
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from .kernel import PORT_NAMES, KernelChild, WarmState
from .memory import find_written_pages

_REHEARSAL_S = 20.0
_PR_SET_PDEATHSIG = 1


class Rehearsal(NamedTuple):
    """The result of a rehearsal: regular expressions (with flags), and pages as `find_written_pages` returns them."""

    modules: list[str]
    patterns: list[tuple[str, int]]
    pages: array.array[int]


def rehearse(warm: WarmState | None) -> Rehearsal:
    """Start a real kernel in one forked child and use it from another. If that fails, the result is empty."""
    folder = tempfile.mkdtemp(prefix="roost-rehearsal-")
    client_ended, held_by_client = os.pipe()
    report, report_in = os.pipe()
    children = []
    try:
        connection_file, listing = os.path.join(folder, "kernel.json"), os.path.join(folder, "modules.json")
        info = {"ip": "127.0.0.1", "transport": "tcp", "signature_scheme": "hmac-sha256"}
        with open(os.open(connection_file, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            json.dump({**info, "key": os.urandom(16).hex(), **dict.fromkeys(PORT_NAMES, 0)}, file)
        children.append(fork_mortal())
        if children[-1] == 0:
            os.close(held_by_client)
            argv = ["-f", connection_file, *(warm.args if warm else [])]
            env = {**os.environ, "IPYTHONDIR": folder}
            null = os.open(os.devnull, os.O_WRONLY)
            run_or_die(KernelChild({"argv": argv, "env": env, "cwd": folder}, report_in, null, warm).run)
        children.append(fork_mortal())
        if children[-1] == 0:
            os.close(report_in)
            run_or_die(lambda: play_client(connection_file, listing, report, warm is None))
        os.close(held_by_client)
        held_by_client = -1
        select.select([client_ended], [], [], _REHEARSAL_S)
        try:
            with open(listing) as file:
                modules, patterns = json.load(file)
        except (OSError, ValueError):
            return Rehearsal([], [], array.array("Q"))
        return Rehearsal(modules, [tuple(pattern) for pattern in patterns], find_written_pages(children[0]))
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for fd in (client_ended, held_by_client, report, report_in):
            if fd >= 0:
                os.close(fd)
        shutil.rmtree(folder, ignore_errors=True)


def fork_mortal() -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before prctl took effect
            os._exit(1)
    return pid


def run_or_die(function: Callable[[], None]) -> NoReturn:
    try:
        function()
    finally:
        os._exit(1)


def play_client(connection_file: str, listing: str, report: int, is_thorough: bool) -> None:
    """Use a kernel as a notebook does. Then have it list its modules and patterns in the file `listing`."""
    from jupyter_client.blocking.client import BlockingKernelClient

    ports: dict[str, int] = {}
    with open(report, "rb") as lines:
        while not ports:
            ports = json.loads(lines.readline()).get("ports")
    with open(connection_file, "rb") as file:
        info: Any = json.load(file)
    client = BlockingKernelClient()
    info |= ports
    client.load_connection_info(info)
    client.start_channels(hb=False)
    cell = f"""
import json, re, sys
patterns = [key[1:] for key in getattr(re, "_cache", ()) if key[0] is str]
with open({listing!r}, "w") as file:
    json.dump([sorted(sys.modules), patterns], file)
"""
    client.kernel_info(reply=True, timeout=_REHEARSAL_S)
    if is_thorough:
        client.comm_info(reply=True, timeout=_REHEARSAL_S)
        for code in ("import os; print(1)", "{'a': 1}", "1/0", "%pwd"):
            client.execute(code, reply=True, timeout=_REHEARSAL_S)
        client.complete("os.pat", reply=True, timeout=_REHEARSAL_S)
        client.inspect("os.path", reply=True, timeout=_REHEARSAL_S)
        client.history(hist_access_type="tail", n=1, reply=True, timeout=_REHEARSAL_S)
        client.execute(cell, reply=True, timeout=_REHEARSAL_S)
    else:
        client.execute("1+1", reply=True, timeout=_REHEARSAL_S)
        with open(listing, "w") as file:
            file.write("[[], []]")
