"""The websocket of a client. It speaks for a kernel that waits, and is Jupyter Server's own for all other kernels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jupyter_client.jsonutil import json_default
from jupyter_server.services.kernels.connection.base import (
    deserialize_binary_message,
    deserialize_msg_from_ws_v1,
    serialize_msg_to_ws_v1,
)
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from tornado.websocket import WebSocketClosedError

from roost.provisioners.provisioner import RoostProvisioner

from .held_messages import HeldMessage
from .pending_start import PendingStart
from .pending_starts import describe_end

_V1 = "v1.kernel.websocket.jupyter.org"


class RoostConnection(ZMQChannelsWebsocketConnection):  # type: ignore[misc]
    """A connection between a client and a kernel. While the kernel waits, its messages go to the `PendingStart`."""

    _start: PendingStart | None = None
    _cells: dict[str, dict[str, Any]]
    """The headers of the client's cells that a kernel of roost's has not answered yet, by message id."""
    _is_closed = False
    _is_broken = False
    is_open = False
    """True once the kernel's channels are open, after a wait. Otherwise it has no meaning."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._cells = {}

    @property
    def _is_of_roost(self) -> bool:
        return isinstance(getattr(self.kernel_manager, "provisioner", None), RoostProvisioner)

    async def prepare(self) -> None:
        """Prepare the connection before the websocket opens. A waiting kernel's websocket opens at once."""
        self._start = self._find_start()
        if self._start is None:
            await super().prepare()
        else:
            await self._register_session()

    async def connect(self) -> None:
        """Connect with the kernel, or with its pending start."""
        if self._is_of_roost:
            # With Nagle's algorithm, a round trip takes 44 ms instead of 5.
            self.websocket_handler.set_nodelay(True)
        start = self._find_start() if self._start is not None else None
        if start is not None:
            self.attach(start)
            start.connections.append(self)
            self.multi_kernel_manager.notify_connect(self.kernel_id)
            self.speak("iopub", "status", {"execution_state": "starting"}, {})
        elif self._start is not None:  # the kernel came between `prepare` and now
            await self.open_channels()
            self.release()
        elif (connected := super().connect()) is not None:
            await connected

    def attach(self, start: PendingStart) -> None:
        """Let `start` hold the client's messages."""
        self._start = start

    async def open_channels(self) -> None:
        """Connect with the kernel, which is there now."""
        if self._open_sessions.get(self.session_key) is self.websocket_handler:
            del self._open_sessions[self.session_key]  # or `prepare` would take this for an older connection
        try:
            await super().prepare()
            if (connected := super().connect()) is not None:
                await connected
            self.is_open = True
        except Exception as problem:  # noqa: BLE001 - the client connects again, as after a lost connection
            self.log.warning("kernel=%s a client could not be connected: %s", self.kernel_id, problem)
            self._is_broken = True
            self.websocket_handler.close()

    def release(self) -> None:
        """Send further messages straight to the kernel."""
        self._start = None
        if self._is_closed:
            self.disconnect()

    def deliver(self, message: Any) -> None:
        """Send a message of this client to the kernel."""
        if self._is_of_roost:
            held = self._read(message)
            if held.is_cell:
                self._cells[held.header["msg_id"]] = held.header
        super().handle_incoming_message(message)

    def disconnect(self) -> None:
        """Close the connection. The messages that it held stay with the kernel."""
        start = self._start
        if start is None and not self._is_broken:
            super().disconnect()
            return
        self._is_closed = True
        self.is_open = False
        if start is not None and start.state == "opening" and not self._is_broken:
            return  # `release` closes the channels
        if start is not None and self in start.connections:
            start.connections.remove(self)
            self.multi_kernel_manager.notify_disconnect(self.kernel_id)
        if self._open_sessions.get(self.session_key) is self.websocket_handler:
            del self._open_sessions[self.session_key]
        if self.kernel_info_channel is not None:
            self.kernel_info_channel.close()

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        """Send a message of the client to the kernel, or hold it while the kernel waits."""
        if self._start is None:
            self.deliver(incoming_msg)
            return
        message = self._read(incoming_msg)
        allowed = self.multi_kernel_manager.allowed_message_types
        if not allowed or message.header.get("msg_type") in allowed:
            self._start.hold(message)

    def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
        """Send a message of the kernel to the client."""
        if self._cells and getattr(stream, "channel", "") == "shell":
            _, parts = self.session.feed_identities(outgoing_msg)
            self._cells.pop(self.session.unpack(parts[2]).get("msg_id"), None)
        super().handle_outgoing_message(stream, outgoing_msg)

    def on_kernel_restarted(self) -> None:
        """Show why the kernel has ended. It is started again."""
        self._show_end()
        super().on_kernel_restarted()

    def on_restart_failed(self) -> None:
        """Show why the kernel has ended. It is not started again."""
        self._show_end()
        super().on_restart_failed()

    def _show_end(self) -> None:
        """Show in the cell that ran why the kernel has ended."""
        sentence = describe_end(self.kernel_manager)
        for header in [*self._cells.values()][:1] if sentence else ():
            error = {"ename": "KernelDied", "evalue": sentence, "traceback": [f"KernelDied: {sentence}"]}
            self.speak("iopub", "error", error, header)
        self._cells.clear()

    def speak(self, channel: str, kind: str, content: Mapping[str, Any], parent: Mapping[str, Any]) -> None:
        """Send a message to the client as if the kernel had sent it."""
        message = self.session.msg(kind, content=dict(content), parent=dict(parent))
        try:
            if self.subprotocol == _V1:
                self.write_message(serialize_msg_to_ws_v1(message, channel, self.session.pack), binary=True)
            else:
                self.write_message(json.dumps({**message, "channel": channel}, default=json_default))
        except WebSocketClosedError:
            self.log.debug("kernel=%s a client has gone", self.kernel_id)

    def forward(self, channel: str, parts: Sequence[bytes]) -> None:
        """Send a message of another connection, which was closed, to the kernel."""
        self.session.send_raw(self.channels[channel], list(parts))

    def _find_start(self) -> PendingStart | None:
        start: PendingStart | None = self.multi_kernel_manager.pending.get(self.kernel_id)
        return start

    def _read(self, message: Any) -> HeldMessage:
        """Return a message of the client with its channel and its parts as they go to the kernel."""
        if self.subprotocol == _V1:
            channel, parts = deserialize_msg_from_ws_v1(message)
        else:
            read = deserialize_binary_message(message) if isinstance(message, bytes) else json.loads(message)
            names = ("header", "parent_header", "metadata", "content")
            parts = [self.session.pack(read.get(name) or {}) for name in names] + (read.get("buffers") or [])
            channel = read.get("channel") or "shell"
        return HeldMessage(sender=self, raw=message, channel=channel, parts=tuple(parts))
