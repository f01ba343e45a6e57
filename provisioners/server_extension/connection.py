"""The websocket of a client.

It answers for a kernel that waits, and works as Jupyter Server's own afterwards.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from jupyter_client.jsonutil import json_default
from jupyter_server.services.kernels.connection.base import serialize_msg_to_ws_v1
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError

from roost.provisioners.jupyter_internals import (
    forget_session,
    give_up_info,
    has_info,
    hide_traceback,
    is_buffered_for,
    register_session,
    serialize_for_client,
)
from roost.provisioners.provisioner import RoostProvisioner
from roost.scheduler.messages import UnreadableMessage, find_parts, read_header, read_parent

from .client_message import V1, BadMessage, ClientMessage, check_frame, read_message
from .held_messages import FULL
from .pending_start import PendingStart, build_error, build_reply
from .quick_manager import QuickManager
from .reasons import describe_end
from .replay import AWAY_MARGIN_S, Replay, find_away_s
from .subscription import Subscription

_LOST = "The Jupyter Server was restarted before this cell ran: run it again."
_ASK_AGAIN_S = 0.5
"""How long a connection pauses between two checks for a restart while it waits for the kernel's first answer."""
_RESTARTED_WITHIN_S = 5.0
"""How long a connection waits for the restart of an ended kernel to begin. Jupyter looks every 3 s."""
_MOST_CELLS = 10_000
"""At most this many cells of a client are remembered until they are answered."""
_INVALID_FRAME = 1007
"""The websocket's code for a frame whose contents are invalid (RFC 6455, 7.4.1)."""


class RoostConnection(ZMQChannelsWebsocketConnection):  # type: ignore[misc]
    """A connection between a client and a kernel. The `PendingStart` gets the messages while the kernel waits."""

    _start: PendingStart | None = None
    _cells: dict[str, tuple[str, Mapping[str, Any]]]
    """The client's cells that a kernel of roost's has not answered yet: launch id and header, by message id."""
    _replay: Replay | None = None
    _replaying: asyncio.Task[None] | None = None
    _asking: asyncio.Task[None] | None = None
    _subscription: Subscription | None = None
    _told = ""
    """The prospect of the kernel that a cell has shown."""
    _is_closed = False
    _has_gone = False
    """True from the end of the websocket. `_is_closed` is true only while a start has to release the connection."""
    _is_broken = False
    _has_left_out = False
    _probe: Any = None
    _written: Any = None
    is_open = False
    """True once the channels to a kernel that waited are open. For other kernels it stays False."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._cells = {}

    @property
    def _is_of_roost(self) -> bool:
        return isinstance(getattr(self.kernel_manager, "provisioner", None), RoostProvisioner)

    async def prepare(self) -> None:
        """Prepare the connection before the websocket opens. A waiting kernel's websocket opens at once."""
        await self._until_restarted()
        self._start = self._find_start()
        if self._start is None:
            await super().prepare()
        else:
            await register_session(self)

    async def _until_restarted(self) -> None:
        """While the kernel has no process, wait until its restart is over, or is known to wait."""
        km = self.kernel_manager
        provisioner: Any = km.provisioner
        if not isinstance(provisioner, RoostProvisioner) or not isinstance(km, QuickManager):
            return
        with suppress(asyncio.TimeoutError):
            while self._find_start() is None and (km.is_restarting or provisioner.has_ended):
                within_s = None if km.is_restarting else _RESTARTED_WITHIN_S
                await asyncio.wait_for(km.started.wait(), within_s)

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
        else:
            await self._connect()
        for header in self.multi_kernel_manager.take_lost_cells(self.kernel_id, self.session.session):
            self.end_cell(header, _LOST)

    def end_cell(self, header: Mapping[str, Any], sentence: str) -> None:
        """Show `sentence` as the error of a cell that no kernel has run. `header` is that of its request."""
        error = build_error(sentence)
        self.speak("iopub", "clear_output", {"wait": False}, header)
        self.speak("iopub", "error", error, header)
        self.speak("shell", "execute_reply", build_reply(error), header)
        self.speak("iopub", "status", {"execution_state": "idle"}, header)

    async def _connect(self) -> None:
        """Connect with the kernel. A client that was away then gets the missed messages."""
        replay = self._prepare_replay()
        self._replay = replay
        if self._is_of_roost:
            self._subscription = Subscription(self, self.kernel_manager, self.kernel_manager.provisioner)
        if (connected := super().connect()) is not None:
            await connected
        if replay is not None and self.channels:
            kernels = self.multi_kernel_manager
            self._replaying = asyncio.create_task(replay.run())
            self._replaying.add_done_callback(lambda _: self.end_probe())
            kernels.seen_sessions.add(self.session_key)

    def _prepare_replay(self) -> Replay | None:
        """Return the replay for a client that was away while the kernel ran; None for others.

        No replay is needed if Jupyter Server itself has kept the messages for this client.
        """
        kernels, km = self.multi_kernel_manager, self.kernel_manager
        closed_at = kernels.closed_at.pop(self.session_key, None)
        if not self._is_of_roost or is_buffered_for(kernels, self.kernel_id, self.session_key):
            return None
        if closed_at is not None:
            return Replay(self, km.provisioner, time.monotonic() - closed_at + AWAY_MARGIN_S)
        away_s = find_away_s(km)
        if away_s is False or self.session_key in kernels.seen_sessions:
            return None
        return Replay(self, km.provisioner, away_s)

    def attach(self, start: PendingStart) -> None:
        """Let `start` hold the client's messages."""
        self._start = start

    async def open_channels(self) -> None:
        """Connect with the kernel once its start has succeeded. If this fails, close the websocket."""
        if self.channels:  # of a kernel that has waited for its restart
            self.is_open = True
            return
        forget_session(self)  # or `prepare` would take this for an older connection
        try:
            await super().prepare()
            await self._connect()
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

    def take(self, message: ClientMessage) -> None:
        """Send a message of this client to the kernel, or to the start that the kernel waits for."""
        if (start := self._start or self.find_restart()) is None:
            self.deliver(message)
        else:
            start.hold(message)

    def deliver(self, message: ClientMessage) -> None:
        """Send a message of this client to the kernel."""
        subscription = self._subscription if message.channel in ("shell", "control") else None
        if subscription is not None and subscription.hold(message):
            return
        if not self.channels:
            self.log.debug("kernel=%s a message came after its client had gone", self.kernel_id)
            return
        if message.is_cell:
            if self._replay is not None and not self._replay.is_over:
                self._replay.note_request(message.header["msg_id"])
            self._tell_prospect(message.header)
        if message.is_cell and len(self._cells) < _MOST_CELLS:
            launch_id = self.kernel_manager.provisioner.launch_id
            self._cells[message.header["msg_id"]] = launch_id, message.header
        self.forward(message.channel, message.parts_with_cell_id())

    def _tell_prospect(self, header: Mapping[str, Any]) -> None:
        """Show what will end the kernel soon, in the first cell that is run since it is known."""
        prospect = self.kernel_manager.provisioner.prospect
        if prospect and prospect != self._told:
            self.speak("iopub", "stream", {"name": "stderr", "text": f"roost: {prospect}.\n"}, header)
        self._told = prospect

    def refuse_full(self, message: ClientMessage) -> None:
        """Drop a message, because too many are held. A cell ends with a sentence."""
        self.log.warning("kernel=%s a message was dropped: %s", self.kernel_id, FULL)
        if message.is_cell:
            self.end_cell(message.header, FULL)

    def disconnect(self) -> None:
        """Close the connection. Its messages that are held for the kernel stay held."""
        self._has_gone = True
        if self._replaying is not None:
            self._replaying.cancel()
        if self._subscription is not None:
            self._subscription.close()
        self.end_probe()
        if self._is_of_roost:
            self.multi_kernel_manager.note_closed(self.session_key)
        start = self._start
        if self._asking is not None and (start is None or start.state != "opening"):
            self._asking.cancel()  # its channel is closed below
        if start is None and not self._is_broken:
            if (restart := self._find_start()) is not None and self in restart.connections:
                restart.connections.remove(self)
            super().disconnect()
            return
        self._is_closed = True
        self.is_open = False
        if start is not None and start.state == "opening" and not self._is_broken:
            return  # `release` closes the channels
        if start is not None and self in start.connections:
            start.connections.remove(self)
            self.multi_kernel_manager.notify_disconnect(self.kernel_id)
        forget_session(self)
        if self.kernel_info_channel is not None:
            self.kernel_info_channel.close()
            give_up_info(self)

    def request_kernel_info(self) -> Any:
        """Ask for the kernel's info. After a restart, ask again: the process that was asked may have ended.

        All connections with the kernel wait for the first answer. Jupyter Server gives up after a minute or two.
        """
        future = super().request_kernel_info()
        if self._is_of_roost and self.kernel_info_channel is not None:
            self._asking = asyncio.create_task(self._ask_again())
        return future

    async def _ask_again(self) -> None:
        provisioner = self.kernel_manager.provisioner
        asked = provisioner.launch_id
        while not has_info(self):
            await asyncio.sleep(_ASK_AGAIN_S)
            channel = self.kernel_info_channel
            if channel is None or channel.closed():
                return
            if provisioner.launch_id != asked and not provisioner.is_launching:
                asked = provisioner.launch_id
                self.session.send(channel, "kernel_info_request")

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        """Send a message of the client to the kernel, or hold it while the kernel waits.

        A frame that is no message closes the websocket.
        """
        try:
            if self._start is None and not self._is_of_roost:
                check_frame(incoming_msg, self.subprotocol)
                super().handle_incoming_message(incoming_msg)
                return
            message = read_message(
                incoming_msg, subprotocol=self.subprotocol, pack=self.session.pack, sender=self
            )
        except BadMessage as problem:
            self.log.warning("kernel=%s a client's frame is refused: it has %s", self.kernel_id, problem)
            self.websocket_handler.close(_INVALID_FRAME, f"The frame has {problem}."[:100])
            return
        if not self._may_send(message):
            self.log.warning("kernel=%s messages of this type are not allowed", self.kernel_id)
        else:
            self.take(message)

    def _may_send(self, message: ClientMessage) -> bool:
        allowed = self.multi_kernel_manager.allowed_message_types
        return not allowed or message.header["msg_type"] in allowed

    def handle_outgoing_message(self, stream: Any, outgoing_msg: list[Any]) -> None:
        """Send a message of the kernel to the client, unless the replay has it or sends it later."""
        channel = getattr(stream, "channel", "")
        if channel == "iopub" and self._subscription is not None and self._subscription.is_listening:
            self._subscription.note(_read_ids(outgoing_msg)[1])
        if (
            self._replay is not None
            and channel == "iopub"
            and not self._replay.is_through
            and self._replay.hold(_read_ids(outgoing_msg)[0], outgoing_msg)
        ):
            return
        if (self._cells or self._replay is not None) and channel == "shell":
            request_id = _read_ids(outgoing_msg)[1]
            self._cells.pop(request_id, None)
            if self._replay is not None and not self._replay.note_reply(request_id):
                return
        with (
            self._leaving_out_bad_messages()
        ):  # an error would delay the messages that have arrived after this one
            super().handle_outgoing_message(stream, outgoing_msg)

    @contextmanager
    def _leaving_out_bad_messages(self) -> Iterator[None]:
        """Log an error that reading a kernel's message raises, once for each connection, and go on."""
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as problem:
            if not self._has_left_out:
                what = "messages of the kernel cannot be read and are left out"
                self.log.warning("kernel=%s %s (%s)", self.kernel_id, what, type(problem).__name__)
            self._has_left_out = True

    def send_live(self, message: list[bytes]) -> None:
        """Send the client a kernel's message that the replay has held. Leave out a message that cannot be read.

        Jupyter Server's rate limit does not apply.
        """
        with self._leaving_out_bad_messages():
            _, parts = self.session.feed_identities(message)
            self.write_parts("iopub", parts[1:])

    def write_parts(self, channel: str, parts: list[bytes]) -> None:
        """Send a message that the kernel has published, given by its parts from the header on."""
        if self.subprotocol == V1:
            message: Any = {"header": None, "parent_header": None, "content": None}
            hide_traceback(self, channel, message, parts)
            self._write(serialize_msg_to_ws_v1(parts, channel), binary=True)
            return
        header, parent, metadata, content = (self.session.unpack(part) for part in parts[:4])
        message = {
            "header": header, "msg_id": header["msg_id"], "msg_type": header["msg_type"], "parent_header": parent,
            "metadata": metadata, "content": content, "buffers": list(parts[4:]),
        }  # fmt: skip
        hide_traceback(self, channel, message, parts)
        written = serialize_for_client(self, message, channel)
        self._write(written, binary=isinstance(written, bytes))

    def _write(self, message: Any, *, binary: bool) -> None:
        try:
            self._written = self.write_message(message, binary=binary)
        except WebSocketClosedError:
            self.log.debug("kernel=%s a client has gone", self.kernel_id)

    async def drain(self) -> None:
        """Wait until all messages have gone out to the client."""
        written, self._written = self._written, None
        if written is not None:
            with suppress(WebSocketClosedError, StreamClosedError):
                await written

    def probe(self) -> str:
        """Send a request that the kernel answers on IOPub too, and return its id.

        The first answer on IOPub shows that the subscription works.
        """
        if self._probe is None:
            self._probe = self.kernel_manager.connect_control()
        msg_id: str = self.session.send(self._probe, "kernel_info_request")["header"]["msg_id"]
        return msg_id

    def end_probe(self) -> None:
        if self._probe is not None and not self._probe.closed():
            self._probe.close()
        self._probe = None

    def on_kernel_restarted(self) -> None:
        """Show the reason of the kernel's end. Jupyter calls this when it restarts the kernel."""
        self._show_end()
        super().on_kernel_restarted()

    def on_restart_failed(self) -> None:
        """Show the reason of the kernel's end. Jupyter calls this when it does not restart the kernel."""
        self._show_end()
        super().on_restart_failed()

    def _show_end(self) -> None:
        """Show the reason of the kernel's end as an error in the cell that ran."""
        sentence = describe_end(self.kernel_manager)
        ended = self.kernel_manager.provisioner.launch_id if self._cells else ""
        # A restart leaves cells of earlier launches without an answer.
        ran = [header for launch_id, header in self._cells.values() if launch_id == ended]
        for header in ran[:1] if sentence else ():
            error = {"ename": "KernelDied", "evalue": sentence, "traceback": [f"KernelDied: {sentence}"]}
            self.speak("iopub", "error", error, header)
        self._cells.clear()

    def speak(self, channel: str, kind: str, content: Mapping[str, Any], parent: Mapping[str, Any]) -> None:
        """Send a message to the client as if the kernel had sent it. `parent` is the header of a request."""
        message = self.session.msg(kind, content=dict(content))
        message["parent_header"] = dict(parent)
        try:
            if self.subprotocol == V1:
                self._write(serialize_msg_to_ws_v1(message, channel, self.session.pack), binary=True)
            else:
                self._write(json.dumps({**message, "channel": channel}, default=json_default), binary=False)
        except (ValueError, TypeError, RecursionError) as problem:  # other clients must not wait for this one
            self.log.warning("kernel=%s a message cannot be written: %s", self.kernel_id, problem)

    def forward(self, channel: str, parts: Sequence[bytes]) -> None:
        """Send the kernel a message, given by its parts. It may come from a connection that was closed."""
        self.session.send_raw(self.channels[channel], list(parts))

    def find_restart(self) -> PendingStart | None:
        """Return the restart that this connection's kernel waits for, with this connection among its clients."""
        start = self._find_start()
        if start is None or not start.is_restart or start.state == "over":
            return None
        if self not in start.connections and start.state != "opening" and not self._has_gone:
            start.connections.append(self)
        return start

    def count_again(self) -> None:
        """Let this connection be counted when it opens its channels, if it has none yet."""
        if not self.channels:
            self.multi_kernel_manager.notify_disconnect(self.kernel_id)

    def _find_start(self) -> PendingStart | None:
        start: PendingStart | None = self.multi_kernel_manager.starts.pending.get(self.kernel_id)
        return start


def _read_ids(message: Sequence[bytes]) -> tuple[str, str]:
    """Return the id of a kernel's message, and that of its request. Each is empty if there is none."""
    try:
        parts = find_parts(message)
        return read_header(parts[0]).msg_id, read_parent(parts[1]).msg_id
    except UnreadableMessage:
        return "", ""
