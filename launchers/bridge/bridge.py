"""The course of one kernel behind the bridge: start its launcher, take the answer, pass messages on, end.

roost's ports are opened when the kernel listens on its own. roost's agent then reports the kernel as started.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zmq

from roost.launchers.daemon.file_input import UnfitFile, read_document
from roost.launchers.daemon.process import name_user
from roost.launchers.daemon.tasks import cancel_all, spawn
from roost.launchers.protocol.shared_values import PORT_NAMES, Connection
from roost.placement.model.json_codec import WireError, decode

from . import comm_port
from .answer import Answer, AnswerKey
from .launcher import Launcher
from .listener import AnswerListener, TooOld
from .placeholders import MissingPlace, build_environment, fill_command
from .relay import PortTaken, Relay

log = logging.getLogger(__name__)

_PORT_RANGE = "0..0"
"""The range of the launcher's ports: any port. Nobody outside the node uses them."""
_SHUTS_DOWN_S = 1.0
"""How long a launcher may take to end by itself after a shutdown request.

With a Python launcher, ipykernel waits half a minute for the launcher's listener. Nobody collects that child's end.
"""

_RELAY_ENDED = "The bridge cannot pass messages on any more: the kernel's log says why."


class BridgeError(Exception):
    """The kernel cannot run. The text is a sentence for the kernel's user."""


async def run(connection_file: Path, command: Sequence[str], launch_timeout_s: float) -> int:
    """Run a launcher's kernel to its end, and return the launcher's exit code. Raises `BridgeError`."""
    connection, kernel_id = read_connection(connection_file), find_kernel_id(connection_file)
    stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _set, stop, "")
    try:
        key = AnswerKey()
    except ImportError:
        raise BridgeError(
            "The bridge needs pycryptodome: run `pip install pycryptodome` for its Python."
        ) from None
    listener = AnswerListener(key, kernel_id, os.getsid(0))
    try:
        launcher = await _start(command, os.environ, kernel_id, await listener.open(), key.public)
        try:
            answer = await _take_answer(listener, launcher, stop, launch_timeout_s)
            listener.close()
            kernel = _Kernel(launcher, answer, stop) if answer is not None else None
            if kernel is not None:
                await kernel.pass_on(connection)
        finally:
            code = await launcher.end()
    finally:
        listener.close()
    # The bridge itself has ended this launcher, because of a shutdown request.
    return 0 if code < 0 and kernel is not None and kernel.is_shut_down else code


def read_connection(path: Path) -> Connection:
    """Return roost's side of the kernel. Raises `BridgeError`."""
    try:
        connection = decode(Connection, read_document(path), ignore_unknown=True)
    except (UnfitFile, OSError) as problem:
        raise BridgeError(f"The connection file cannot be used: {problem}.") from None
    except WireError as problem:
        raise BridgeError(f"The connection file {path} cannot be used: {problem}.") from None
    if not all(getattr(connection, name) for name in PORT_NAMES):
        raise BridgeError(f"The connection file {path} lacks a port.")
    return connection


def find_kernel_id(connection_file: Path) -> str:
    """Return the kernel's id from the name of its connection file, or another one if it has none."""
    return connection_file.stem.removeprefix("kernel-") or str(uuid.uuid4())


async def _start(
    command: Sequence[str], env: Mapping[str, str], kernel_id: str, address: str, public_key: str
) -> Launcher:
    """Start the launcher. Raises `BridgeError`."""
    values = {
        "kernel_id": kernel_id,
        "response_address": address,
        "public_key": public_key,
        "port_range": _PORT_RANGE,
        "transport_encryption": "auto" if zmq.has("curve") else "disabled",
    }
    try:
        argv, filled = fill_command(command, build_environment(env, kernel_id, name_user()), values)
        return await Launcher.start(argv, filled)
    except MissingPlace as problem:
        raise BridgeError(str(problem)) from None
    except OSError as problem:
        raise BridgeError(
            f"The launcher {command[0]} cannot be started: {problem.strerror}; correct argv in the kernelspec."
        ) from None


async def _take_answer(
    listener: AnswerListener, launcher: Launcher, stop: asyncio.Future[str], timeout_s: float
) -> Answer | None:
    """Return the launcher's answer, or None if the launcher was stopped or has failed with a code of its own.

    Raises `BridgeError`.
    """
    waiting = asyncio.ensure_future(listener.wait())
    ends: list[asyncio.Future[Any]] = [waiting, launcher.ended, stop]
    try:
        await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
    except TooOld:
        raise BridgeError(
            "The launcher answers in version 0, which anybody on the node can read and forge: "
            "use a launcher of Enterprise Gateway 3.0 or newer, or run `roost migrate` without --keep-launcher."
        ) from None
    finally:
        waiting.cancel()
    refusal = f"; the last answer was refused, because it {listener.last_refusal}"
    why = refusal if listener.last_refusal else ""
    if not launcher.ended.done() and not stop.done():
        raise BridgeError(
            f"The launcher has not answered, or its kernel has not listened, within {timeout_s:g} s{why}: "
            "set KERNEL_LAUNCH_TIMEOUT if it needs longer."
        )
    if launcher.ended.done() and launcher.ended.result() == 0:
        raise BridgeError(
            f"The launcher ended before its kernel listened{why}: it must stay in the foreground."
        )
    return None


class _Kernel:
    """A launcher whose kernel listens.

    `stop` is set when the kernel has to end: to a sentence about a failure, or to an empty text.
    """

    def __init__(self, launcher: Launcher, answer: Answer, stop: asyncio.Future[str]) -> None:
        self._launcher = launcher
        self._answer = answer
        self._stop = stop
        self._tasks: set[asyncio.Task[Any]] = set()
        self.is_shut_down = False
        """True after a shutdown request."""

    async def pass_on(self, connection: Connection) -> None:
        """Pass messages on until the launcher has ended, or has to end. Raises `BridgeError`."""
        loop = asyncio.get_running_loop()
        try:
            relay = Relay(
                connection,
                self._answer,
                on_shutdown=lambda: loop.call_soon_threadsafe(self._shut_down),
                on_end=lambda: loop.call_soon_threadsafe(_set, self._stop, _RELAY_ENDED),
            )
        except PortTaken as problem:
            raise BridgeError(str(problem)) from None
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        try:
            ends: list[asyncio.Future[Any]] = [self._launcher.ended, self._stop]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            await self._launcher.end()
            if self._stop.done() and (sentence := self._stop.result()):
                raise BridgeError(sentence)
        finally:
            relay.stop()
            await cancel_all(self._tasks)

    def _shut_down(self) -> None:
        if not self.is_shut_down:
            self.is_shut_down = True
            spawn(self._end_by_itself(), self._tasks, log)

    async def _end_by_itself(self) -> None:
        await comm_port.end(self._answer.comm_port)  # a launcher does not end before its listener
        await asyncio.wait([self._launcher.ended], timeout=_SHUTS_DOWN_S)
        _set(self._stop, "")

    def _interrupt(self) -> None:
        spawn(self._send_interrupt(), self._tasks, log)

    async def _send_interrupt(self) -> None:
        # The launcher's own way comes first: it also cancels the jobs of a Spark context.
        if not await comm_port.interrupt(self._answer.comm_port, signal.SIGINT):
            self._launcher.signal(signal.SIGINT)


def _set(future: asyncio.Future[str], value: str) -> None:
    if not future.done():
        future.set_result(value)
