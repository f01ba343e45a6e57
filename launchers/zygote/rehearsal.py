"""A trial start of a real kernel with a real client. It shows the imported modules and the written memory pages."""

from __future__ import annotations

import array
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from .kernel import PORT_NAMES, KernelChild, WarmState
from .memory import find_written_pages

PREFIX = "rehearsal-"
"""A rehearsal's folder has a name that begins so. The agent removes the folders that killed zygotes have left."""
_REHEARSAL_S = 20.0
_PR_SET_PDEATHSIG = 1


class Rehearsal(NamedTuple):
    """The result of a rehearsal: modules, regular expressions (with flags), and pages from `find_written_pages`."""

    modules: list[str]
    patterns: list[tuple[str, int]]
    pages: array.array[int]


def rehearse(scratch: str | None, warm: WarmState | None) -> Rehearsal:
    """Return the results of a trial start. One forked child is the kernel, a second one its client.

    Their files are below the folder `scratch`, or where temporary files go if that cannot be written to.
    With `warm`, only the pages are found, and the modules and patterns are empty. If the kernel or the client
    fails, all results are empty.
    """
    folder = make_folder(scratch)
    client_ended, held_by_client = os.pipe()
    ours, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.send(b"go")
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in PORT_NAMES]
    children = []
    try:
        connection_file, listing = os.path.join(folder, "kernel.json"), os.path.join(folder, "modules.json")
        info = {"ip": "127.0.0.1", "transport": "tcp", "signature_scheme": "hmac-sha256"}
        with open(os.open(connection_file, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            ports = [each.getsockname()[1] for each in listeners]
            json.dump(
                {**info, "key": os.urandom(16).hex(), **dict(zip(PORT_NAMES, ports, strict=True))}, file
            )
        children.append(fork_mortal())
        if children[-1] == 0:
            os.close(held_by_client)
            argv = ["-f", connection_file, *(warm.args if warm else [])]
            env = {**os.environ, "IPYTHONDIR": folder}
            null = os.open(os.devnull, os.O_WRONLY)
            fds = [channel.detach(), null, *(each.detach() for each in listeners)]
            request = {"argv": argv, "env": env, "cwd": folder, "umask": None, "listeners": len(listeners)}
            run_or_die(KernelChild(request, fds, warm).run)
        children.append(fork_mortal())
        if children[-1] == 0:
            run_or_die(lambda: play_client(connection_file, listing, warm is None))
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
        for fd in (client_ended, held_by_client):
            if fd >= 0:
                os.close(fd)
        for each in (ours, channel, *listeners):
            each.close()
        shutil.rmtree(folder, ignore_errors=True)


def make_folder(scratch: str | None) -> str:
    try:
        return tempfile.mkdtemp(prefix=PREFIX, dir=scratch)
    except OSError:
        return tempfile.mkdtemp(prefix=PREFIX)


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


def play_client(connection_file: str, listing: str, is_thorough: bool) -> None:
    """Use a kernel as a notebook does, and have it write its modules and patterns to the file `listing`.

    Unless `is_thorough`, execute only one cell and write empty lists.
    """
    from jupyter_client.blocking.client import BlockingKernelClient

    client = BlockingKernelClient()
    client.load_connection_file(connection_file)
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
