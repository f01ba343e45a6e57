"""The program of the bridge, and the course of one kernel: start its launcher, take the answer, pass messages on, end.

    python -m roost.launchers.bridge CONNECTION_FILE LAUNCHER ARGUMENT...

roost's ports are opened when the kernel listens on its own. roost's agent then reports the kernel as started. The
program ends with the launcher's exit code, or by the signal that has ended the launcher. If the kernel cannot run, it
prints one sentence and ends with code 1.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import resource
import signal
import sys
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

from .answer import Answer, AnswerKey, AnswerListener
from .launcher import Launcher, send_interrupt, send_shutdown
from .relay import PortTaken, Relay

log = logging.getLogger(__name__)

_USAGE = "python -m roost.launchers.bridge {connection_file} LAUNCHER ARGUMENT..."
_VARIABLE = "KERNEL_LAUNCH_TIMEOUT"
"""The variable by which a client or a kernelspec sets the limit of a start, in seconds."""
_LAUNCH_TIMEOUT_S = 60.0
"""How long a launcher may take until its kernel listens, if nothing else is set. roost's agent waits as long."""
_EARLIER_S = 2.0
"""How much earlier the bridge gives up than roost's agent, so that the bridge's reason reaches the user."""
_PORT_RANGE = "0..0"
"""The range of the launcher's ports: any port. Nobody outside the node uses them."""
_SHUTS_DOWN_S = 1.0
"""How long a launcher may take to end by itself after a shutdown request.

With a Python launcher, ipykernel waits half a minute for the launcher's listener. Nobody collects that child's end.
"""
_RELAY_ENDED = "The bridge cannot pass messages on any more: the kernel's log says why."
REQUIRED = ("response_address", "public_key")
"""The places without which a launcher cannot answer."""
_PLACE = re.compile(r"(?<!\$)\{([a-z_]+)\}")
"""A place such as `{kernel_id}`. `${kernel_id}` belongs to a shell."""
_LOG_LEVEL = "EG_LOG_LEVEL"
_USUAL_LOG_LEVEL = "LOG_LEVEL"
_INFO = "20"


class BridgeError(Exception):
    """The kernel cannot run. The text is a sentence for the kernel's user."""


def main(arguments: list[str]) -> int:
    """Run the bridge, and return its exit code."""
    logging.basicConfig(format="roost's bridge: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # before the kernel runs, there is nothing to interrupt
    try:
        path, timeout_s, launcher = read_arguments(arguments, os.environ)
        return asyncio.run(run(path, launcher, max(timeout_s - _EARLIER_S, 1.0)))
    except BridgeError as problem:
        print(problem, file=sys.stderr)
        return 1


def read_arguments(arguments: Sequence[str], variables: Mapping[str, str]) -> tuple[Path, float, list[str]]:
    """Return the connection file, the launch timeout in seconds, and the launcher's command. Raises `BridgeError`."""
    if len(arguments) < 2:
        raise BridgeError(f"The bridge is started as `{_USAGE}`: correct argv in the kernelspec.")
    text = variables.get(_VARIABLE, "")
    try:
        timeout_s = float(text or _LAUNCH_TIMEOUT_S)
    except ValueError:
        timeout_s = 0.0
    if not 0 < timeout_s < float("inf"):
        raise BridgeError(f"{_VARIABLE} = {text:.40} is not possible: give seconds above 0.")
    return Path(arguments[0]), timeout_s, list(arguments[1:])


async def run(connection_file: Path, command: Sequence[str], launch_timeout_s: float) -> int:
    """Run a launcher's kernel to its end, and return the launcher's exit code. Raises `BridgeError`."""
    connection, kernel_id = read_connection(connection_file), find_kernel_id(connection_file)
    stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _set, stop, "")
    try:
        key = AnswerKey()
    except ImportError:
        raise BridgeError(
            "The bridge needs pycryptodome: run `pip install 'roost[bridge]'` for its Python."
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
        await send_shutdown(self._answer.comm_port)  # a launcher does not end before its listener
        await asyncio.wait([self._launcher.ended], timeout=_SHUTS_DOWN_S)
        _set(self._stop, "")

    def _interrupt(self) -> None:
        spawn(self._send_interrupt(), self._tasks, log)

    async def _send_interrupt(self) -> None:
        # The launcher's own way comes first: it also cancels the jobs of a Spark context.
        if not await send_interrupt(self._answer.comm_port, signal.SIGINT):
            self._launcher.signal(signal.SIGINT)


def _set(future: asyncio.Future[str], value: str) -> None:
    if not future.done():
        future.set_result(value)


def fill(text: str, values: Mapping[str, str]) -> str:
    """Return the text with the values in their places. Unknown places stay as they are."""
    return _PLACE.sub(lambda found: values.get(found[1], found[0]), text)


def fill_command(
    argv: Sequence[str], env: Mapping[str, str], values: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Return a launcher's arguments and environment with all values in their places.

    Raises `BridgeError` if the launcher would not learn the address for its answer, or the public key.
    """
    texts = " ".join([*argv, *env.values()])
    for name in REQUIRED:
        if name not in {found[1] for found in _PLACE.finditer(texts)}:
            raise BridgeError(
                f"The launcher's command has no {{{name}}}: add it to argv as its documentation says. A launcher "
                "before Enterprise Gateway 3.0 cannot be kept: run `roost migrate` without --keep-launcher."
            )
    filled = {name: fill(value, values) for name, value in env.items()}
    return [fill(part, values) for part in argv], filled


def build_environment(env: Mapping[str, str], kernel_id: str, user: str) -> dict[str, str]:
    """Return the environment that the launchers' own servers would give them.

    Enterprise Gateway's launcher writes the kernel's key into its log at the level DEBUG, which is its default.
    """
    built = {"KERNEL_USERNAME": user, _LOG_LEVEL: _INFO, **env, "KERNEL_ID": kernel_id}
    for name in (_LOG_LEVEL, _USUAL_LOG_LEVEL):
        if _is_below_info(built.get(name, _INFO)):
            built[name] = _INFO
    return built


def _is_below_info(level: str) -> bool:
    return int(level) < int(_INFO) if level.isdecimal() else level.upper() in ("DEBUG", "NOTSET")


def end_as(code: int) -> None:
    """End this process as another one ended, given by its exit code in the form of `subprocess`."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the core file would be the bridge's
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    end_as(main(sys.argv[1:]))
