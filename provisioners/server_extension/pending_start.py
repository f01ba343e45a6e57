"""One start that waits, the messages held for its kernel, and the connections of the kernel's clients."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal

from jupyter_client.session import Session

from roost.provisioners.provisioner import RoostProvisioner
from roost.scheduler.messages import Kernel

from .client_message import ClientMessage
from .held_messages import FULL, HeldMessages
from .waiting_line import WaitingLine

_NOT_SENT = "The cell could not be sent to the kernel: run it again."
_ERROR_NAME = "KernelNotStarted"
_LINGER_MS = 10_000
"""How long ZeroMQ tries to deliver a cell that no client waits for any more."""


class PendingStart:
    """A start whose kernel is listed before it runs.

    `state` is `waiting` until the start has ended, then `opening` while the connections of clients are opened to the
    kernel, and `over` once they are. After a failure it is `failed`, until the kernel is deleted or restarted.
    """

    def __init__(
        self, kernel_id: str, arguments: Mapping[str, Any], log: logging.Logger | logging.LoggerAdapter[Any]
    ) -> None:
        self.kernel_id = kernel_id
        self.arguments = arguments
        self.is_adoption = False
        """True if an earlier server has started the kernel."""
        self.is_restart = False
        """True if the kernel has run in this server. `task` is then its restart."""
        self.km: Any = None
        self.made = asyncio.Event()
        """An event that is set together with `km`, soon after the start has begun."""
        self.task: asyncio.Task[str]
        self.following: asyncio.Task[None] | None = None
        self.is_listed = False
        self.shows_others = True
        """True if the reports about the wait may name other users and their kernels."""
        self.state: Literal["waiting", "opening", "over", "failed"] = "waiting"
        self.problem = ""
        """The error that the held cells show if the start fails or is withdrawn; empty until then."""
        self.held = HeldMessages()
        self.connections: list[Any] = []
        self.line = WaitingLine(self.send)
        self._line_in: Any = None
        """The connection whose cell shows the line, or None.

        If that connection has closed, the connection of the next cell takes over.
        """
        self.changed = asyncio.Event()
        """An event that the next change of `waiting` sets. Each change puts a new event here."""
        self._log = log

    @property
    def has_kernel(self) -> bool:
        """True if the start has ended with a kernel."""
        return self.state in ("opening", "over")

    @property
    def waiting(self) -> Kernel | None:
        """The kernel as the service last described it, while its start runs; None before that."""
        provisioner = getattr(self.km, "provisioner", None)
        return provisioner.waiting if isinstance(provisioner, RoostProvisioner) else None

    def note_change(self) -> None:
        """Note that `waiting` has changed. Any thread may call this, while or after the start runs."""

        def wake() -> None:
            changed, self.changed = self.changed, asyncio.Event()
            changed.set()

        with suppress(RuntimeError):  # the loop was closed meanwhile
            self.task.get_loop().call_soon_threadsafe(wake)

    async def until_made(self) -> None:
        """Wait until the start has made the kernel's manager (`km`), or has failed earlier."""
        made = asyncio.ensure_future(self.made.wait())
        await asyncio.wait([self.task, made], return_when=asyncio.FIRST_COMPLETED)
        made.cancel()

    async def until_admitted(self, within_s: float) -> None:
        """Wait until the start has ended, has a lease, or is known to wait; at most for `within_s`."""

        def is_admitted() -> bool:
            kernel = self.waiting
            return kernel is not None and (kernel.state == "starting" or bool(kernel.waits_for))

        await self._until(is_admitted, within_s)

    async def until_settled(self, within_s: float) -> None:
        """Wait until the adoption has ended, or is known to wait for something; at most for `within_s`."""
        await self._until(lambda: self.waiting is not None, within_s)

    async def _until(self, is_met: Callable[[], bool], within_s: float) -> None:
        """Wait until the start has ended or `is_met`, which is checked after each change of `waiting`."""
        deadline = time.monotonic() + within_s
        while not self.task.done() and not is_met() and (rest_s := deadline - time.monotonic()) > 0:
            change = asyncio.ensure_future(self.changed.wait())
            try:
                await asyncio.wait([self.task, change], timeout=rest_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                change.cancel()

    def find_state(self) -> str:
        """Return the state of a kernel that is being adopted: `starting` if it waits, `unknown` if out of reach."""
        return "unknown" if self.waiting is None or self.waiting.state == "unknown" else "starting"

    def hold(self, message: ClientMessage) -> None:
        """Hold a message for the kernel. A cell that cannot be held gets an error as its reply."""
        if self.state == "failed":
            self.end([message], self.problem)
        elif not self.held.add(message):
            self._log.warning("kernel=%s a message was dropped: %s", self.kernel_id, FULL)
            self.end([message], FULL)
        elif self._line_in not in self.connections and message.is_of_notebook:
            self.line.begin(message.header)
            self._line_in = message.sender

    def send(self, kind: str, content: Mapping[str, Any], parent: Mapping[str, Any]) -> None:
        """Send a message to all clients as the kernel would send it on IOPub."""
        for connection in list(self.connections):
            connection.speak("iopub", kind, content, parent)

    def end_cells(self, sentence: str) -> None:
        """End the held cells with `sentence` as their error. Other messages stay."""
        self.line.clear()
        self._line_in = None
        self.end(self.held.take(lambda message: message.is_cell), sentence)

    def end(self, messages: list[ClientMessage], sentence: str) -> None:
        error = build_error(sentence)
        for message in messages:
            if message.is_cell:
                self.send("error", error, message.header)
                message.sender.speak("shell", "execute_reply", build_reply(error), message.header)
                self.send("status", {"execution_state": "idle"}, message.header)

    def fail(self, sentence: str) -> None:
        """Note that there will be no kernel, and end the held cells."""
        self.state, self.problem = "failed", sentence
        self.km.execution_state, self.km.reason = "dead", sentence
        self.end_cells(sentence)
        self.held.take()

    def abort(self, sentence: str) -> None:
        """End the cells that wait for the kernel, because it is stopped; `sentence` tells their clients why.

        Also stop `open`, if it is connecting the clients with the kernel.
        """
        if self.following is not None:
            self.following.cancel()
        self.end_cells(sentence)
        self.held.take()
        for connection in self.connections:
            connection.release()

    async def open(self) -> None:
        """Connect the clients with the kernel, then send the held messages in order."""
        self.state = "opening"
        opened: set[Any] = set()
        while new := [each for each in self.connections if each not in opened]:
            await asyncio.gather(*(each.open_channels() for each in new))
            opened.update(new)
        self.state = "over"
        try:
            self.line.clear()
            connections, self.connections = [each for each in self.connections if each.is_open], []
            for message in self.held.take():
                try:
                    self._deliver(message, connections)
                except Exception:  # noqa: BLE001 - the other messages and clients must not wait for this one
                    self._log.exception("kernel=%s a held message could not be sent", self.kernel_id)
                    if message.is_cell:
                        message.sender.end_cell(message.header, _NOT_SENT)
        finally:
            for connection in opened:
                connection.release()

    def _deliver(self, message: ClientMessage, connections: list[Any]) -> None:
        """Send a held message to the kernel. If its connection was closed meanwhile, another connection sends it."""
        if message.sender in connections:
            message.sender.deliver(message)
        elif connections:
            connections[-1].forward(message.channel, message.parts)
        elif message.is_cell:
            channel = self.km.connect_shell()
            session = Session(config=self.km.session.config, key=self.km.session.key)
            session.send_raw(channel.socket, list(message.parts))  # the stream would send it later
            channel.close(linger=_LINGER_MS)


def build_error(sentence: str) -> dict[str, Any]:
    """Return the content of an IOPub `error` message for a cell that no kernel has run."""
    return {"ename": _ERROR_NAME, "evalue": sentence, "traceback": [f"{_ERROR_NAME}: {sentence}"]}


def build_reply(error: Mapping[str, Any]) -> dict[str, Any]:
    return {**error, "status": "error", "execution_count": 0, "user_expressions": {}}
