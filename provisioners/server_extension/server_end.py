"""The end of a server: later requests are refused, file operations end, and no thread keeps the process alive.

Jupyter's file operations run in threads of AnyIO. Such a thread ends with the task that made it. The event loop of a
server that stops leaves its tasks, so without this module a file may stay half-written, and Python may wait for an
idle thread without end.
"""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import anyio.to_thread
from tornado.web import ErrorHandler

from roost.placement.model.format import format_count
from roost.provisioners.jupyter_internals import add_to_cleanup

_FILES_S = 60.0
"""How long the server waits for file operations. Its process could not end before them anyway."""
_REPORTED_S = 4.0
"""After which time the log says that it waits."""
_LAST_S = 0.5
"""How long an operation may take after the event loop has stopped, before it is reported."""
_LOOK_S = 0.01
_QUIET_LOOKS = 3
"""A task that has ended one file operation begins the next within two rounds of the event loop."""


class ServerEnd:
    """The end of one server, which `add` prepares. The methods run in this order."""

    def __init__(self, serverapp: Any) -> None:
        self._serverapp = serverapp
        self._log = serverapp.log
        self._began_at = 0.0

    def add(self) -> None:
        add_to_cleanup(self._serverapp, self.begin, self.end_file_operations)
        _at_exit(self.end_threads)
        if self._is_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            # Without a terminal Jupyter leaves Ctrl-C to Python, which ends the event loop and no kernel.
            signal.signal(signal.SIGINT, lambda *_: self._serverapp.stop(from_signal=True))

    def _is_program(self) -> bool:
        """True unless the server is a part of another program, which has signals of its own."""
        loop = getattr(self._serverapp, "io_loop", None)
        is_main = threading.current_thread() is threading.main_thread()
        return is_main and loop is not None and not loop.asyncio_loop.is_running()

    def begin(self) -> None:
        """Refuse later requests: a browser's open connection could begin them until the end."""
        self._began_at = time.monotonic()
        application = self._serverapp.web_app

        def refuse(request: Any, **options: Any) -> Any:
            return application.get_handler_delegate(request, ErrorHandler, {"status_code": 503})

        application.find_handler = refuse

    async def end_file_operations(self) -> None:
        """Wait until no task is in a file operation, or begins the next one."""
        limiter = anyio.to_thread.current_default_thread_limiter()
        quiet, is_reported = 0, False
        while quiet < _QUIET_LOOKS:
            left = len(limiter.statistics().borrowers)
            count, took_s = format_count(left, "file operation"), time.monotonic() - self._began_at
            if took_s > _REPORTED_S and left and not is_reported:
                self._log.warning("roost: the server waits for %s, for a minute at most.", count)
                is_reported = True
            if took_s > _FILES_S:
                self._log.error(
                    "roost: the server stops before the end of %s: files may be incomplete.", count
                )
                break
            quiet = 0 if left else quiet + 1
            await asyncio.sleep(0 if quiet else _LOOK_S)

    def end_threads(self) -> None:
        """End the threads for file operations. Report those that are in an operation for too long."""
        threads = list(_file_threads())
        for thread in threads:
            with suppress(queue.Full):  # it has been told before
                thread.stop()
        until = time.monotonic() + _LAST_S
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        for thread in filter(threading.Thread.is_alive, threads):
            text = "roost: the process %d ends when a file operation ends, which is at %s."
            self._log.error(text, os.getpid(), _find_place(thread))


def _at_exit(act: Callable[[], None]) -> None:
    """Call `act` when Python ends, before it waits for the threads that are left. `atexit` would call it afterwards."""
    threading._register_atexit(act)  # type: ignore[attr-defined]


def _file_threads() -> Iterator[Any]:
    """Yield the live worker threads of AnyIO."""
    for thread in threading.enumerate():
        if type(thread).__name__ == "WorkerThread" and type(thread).__module__.startswith("anyio."):
            yield thread


def _find_place(thread: threading.Thread) -> str:
    """Return the line of Python's code at which a thread is."""
    frame = sys._current_frames().get(thread.ident or 0)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "its end"
