"""The application that holds a kernel: its name, and how it shows errors and messages."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from roost.scheduler.client.client import Client
from roost.scheduler.errors import (
    BackendUnavailable,
    Cancelled,
    ConfigError,
    LaunchError,
    LimitExceeded,
    NoNodeEver,
    NoNodeNow,
    NotAllowed,
    RoostError,
)
from roost.scheduler.messages import SERVER

from .jupyter_internals import find_pending, forget_pending


class CommandNotFound(LaunchError, FileNotFoundError):
    """The kernelspec's command does not exist. Callers of jupyter_client expect a FileNotFoundError."""


@runtime_checkable
class Holder(Protocol):
    """The contract between the provisioner and the kernel manager of roost's extension of Jupyter Server.

    The holder is the `parent` of a kernel's manager. Other parents have none of these members.
    """

    queue_timeout_s: float
    """How long a start may wait in the queue."""
    server_name: str
    """The name under which the next server adopts these kernels; empty if none does."""
    adopting: set[str]
    """The ids of the kernels that are adopted now. The provisioner takes them over instead of starting them."""

    def find_client(self, kernel_id: str, backend: str) -> Client | None:
        """Return the client of the service that has this kernel; None for the application's own service."""

    def note_waiting(self, kernel_id: str) -> None:
        """Note that `waiting` of the kernel's provisioner has changed. Any thread may call this."""


def find_holder(km: Any) -> Holder | None:
    """Return the holder of the kernel whose manager is `km`; None without roost's extension.

    A holder without kernels is false, so compare the result with None.
    """
    holder = getattr(km, "parent", None)
    return holder if isinstance(holder, Holder) else None


def describe_application(km: Any) -> tuple[str, bool, str]:
    """Return the application's name, whether it adopts its kernels after a restart, and its server name.

    `km` is the kernel's manager. The first name is empty outside a Jupyter Server. The last one is empty without the
    extension: the next server then finds no kernels of this one.
    """
    is_server, holder = is_in_jupyter_server(km), find_holder(km)
    server_name = "" if holder is None else holder.server_name
    return (SERVER if is_server else ""), bool(server_name), server_name


def is_adopted(km: Any, kernel_id: str) -> bool:
    """True if the application that holds `km` adopts the kernel `kernel_id` instead of starting it."""
    holder = find_holder(km)
    return holder is not None and kernel_id in holder.adopting


def is_in_jupyter_server(km: Any) -> bool:
    """True if a Jupyter Server holds `km`. The check does not import Jupyter Server."""
    return "jupyter_server.MappingKernelManager" in _list_kinds(getattr(km, "parent", None))


def is_in_console(km: Any) -> bool:
    """True if Jupyter's console in a terminal holds `km`."""
    return "jupyter_console.ZMQTerminalIPythonApp" in _list_kinds(getattr(km, "parent", None))


def _list_kinds(holder: object) -> set[str]:
    """Return the classes of an object, each with its top package."""
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(holder).__mro__}


def choose_start_level(km: Any) -> int:
    """Return the level at which a start is logged.

    nbconvert and Papermill show INFO beside their own output, which says nothing about a start.
    """
    return logging.INFO if is_in_jupyter_server(km) else logging.DEBUG


def choose_watch_log(
    km: Any, log: logging.Logger | logging.LoggerAdapter[Any]
) -> logging.Logger | logging.LoggerAdapter[Any]:
    """Return the log for what happens to a kernel while the application does something else.

    In a console, where somebody types then, its warnings are only for debugging: Jupyter's console shows INFO. Warnings
    of the connection with the service are not shown there either. Python prints them if nobody handles them.
    """
    if not is_in_console(km):
        return log
    logging.getLogger("roost").addHandler(logging.NullHandler())
    return _QuietLog(log, {})


class _SentenceLog(logging.LoggerAdapter):  # type: ignore[type-arg]
    """A log without the tracebacks of failed starts, whose errors are sentences for users. They have this level."""

    def __init__(self, log: Any, level: int) -> None:
        super().__init__(log, {})
        self._level = level

    def exception(self, msg: object, *arguments: object, **options: Any) -> None:
        if getattr(msg, "is_sentence", False):
            self.log(self._level, msg)
        else:
            super().exception(msg, *arguments, **options)


def _log_sentences(km: Any) -> None:
    """Have a failed start of `km` logged as one line: jupyter_client logs it twice, each with its traceback."""
    for logging_object, level in ((km, logging.ERROR), (km.parent, logging.DEBUG)):
        if logging_object is not None:
            log = logging_object.log  # by default its parent's
            logging_object.log = _SentenceLog(log.logger if isinstance(log, _SentenceLog) else log, level)


class _QuietLog(logging.LoggerAdapter):  # type: ignore[type-arg] # Python 3.10 cannot subscript it
    """A log for which warnings are only for debugging."""

    def log(self, level: int, msg: object, *arguments: object, **options: Any) -> None:
        super().log(logging.DEBUG if level == logging.WARNING else level, msg, *arguments, **options)


def find_queue_timeout_s(km: Any) -> float | None:
    """Return how long roost's server extension lets a start wait in the queue; None without the extension."""
    holder = find_holder(km)
    return None if holder is None else holder.queue_timeout_s


def to_http_error(problem: RoostError) -> Exception:
    """Return an HTTPError with the user message of `problem` as its whole text."""
    return build_http_error(_STATUSES.get(type(problem), 500), problem.user_message)


def build_http_error(status: int, sentence: str) -> Exception:
    """Return an HTTPError with this sentence as its whole text.

    Jupyter Server answers a failed `POST /api/sessions` with this text.
    """
    from tornado.web import HTTPError

    class ShownError(HTTPError):
        is_sentence = True
        if hasattr(HTTPError, "get_message"):  # earlier versions of tornado use `log_message` as a format
            log_message = sentence  # tornado would double each %

        def __str__(self) -> str:
            return sentence

    return ShownError(status, sentence)


@contextmanager
def show_errors_in_jupyter(km: Any) -> Iterator[None]:
    """Turn roost's errors in this block into HTTPErrors, if a Jupyter Server holds `km`.

    Jupyter Server shows users the text of an HTTPError, but not the text of other errors. A start of `km` that fails
    in this block is forgotten.
    """
    try:
        yield
    except BaseException as problem:
        _forget_failed_start(km)
        if isinstance(problem, RoostError) and is_in_jupyter_server(km) and "tornado.web" in sys.modules:
            _log_sentences(km)
            raise to_http_error(problem) from None
        raise


def _forget_failed_start(km: Any) -> None:
    """Make the multi-kernel manager forget a failed start of `km`.

    Otherwise a server that stops waits for this start (jupyter_client 8.10).
    """
    kernels = getattr(km, "parent", None)
    if kernels is None:
        return
    task = find_pending(kernels, km.kernel_id)

    def forget(_: object) -> None:
        if find_pending(kernels, km.kernel_id) is task:
            forget_pending(kernels, km.kernel_id)

    if isinstance(task, asyncio.Task):
        task.add_done_callback(forget)


_STATUSES: dict[type[RoostError], int] = {
    NotAllowed: 403,
    LimitExceeded: 403,
    ConfigError: 400,
    NoNodeEver: 400,
    Cancelled: 409,
    NoNodeNow: 503,
    BackendUnavailable: 503,
}
"""HTTP statuses: 4xx if the caller must change something, 503 if the caller can try again later."""
