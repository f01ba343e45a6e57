"""The run of one program on one kernel, and its transcript: all that a user would see, without ids and addresses."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import queue
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import zmq

from kit.machine.forked_kernels import Kernel
from roost.testing.deadlines import allow_s

from .program import Cell, Program

CELL_S = 120.0
"""How long a cell may take on a busy machine."""
END_S = 60.0
"""How long a kernel may take to end. With child processes, ipykernel takes half of this."""
HANGS = "the kernel does not end"
_LONGEST_TEXT = 4_000
_PATTERNS = (
    (re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]"), ""),
    (re.compile(r"(?<![0-9a-f])[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}(_\d+)*(?![0-9a-f])"), "ID"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{24}(_\d+)*\b"), "ID"),
    (re.compile(r"\b0x[0-9a-f]{6,}\b"), "ADDRESS"),
    (re.compile(r"ipykernel_\d+/\d+"), "ipykernel_PID/CELL"),
)


class Session:
    """A running program.

    `start` starts a kernel of the wanted kind. The cells `client` of a program use the methods that have docstrings.
    """

    def __init__(self, start: Callable[[], Kernel], folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self._start = start
        self._kernel = start()
        self._wait_until_subscribed()

    @property
    def pid(self) -> int:
        """Return the kernel's pid."""
        return self._kernel.pid

    @property
    def client(self) -> Any:
        """Return jupyter_client's client."""
        return self._kernel.client

    def print(self, *values: object) -> None:
        """Add a line to the transcript."""
        self.lines.extend(f"client| {line}" for line in self._clean(" ".join(map(str, values))).splitlines())

    def log(self) -> str:
        """Return what the kernel's process and its children have written to standard output and standard error."""
        return self._kernel.log.read_text(errors="replace")

    def ask(self, kind: str, content: dict[str, Any], channel: str = "control") -> dict[str, Any]:
        """Send a request, and return the content of its reply."""
        request = self.client.session.msg(kind, content)
        getattr(self.client, f"{channel}_channel").send(request)
        while True:
            reply = getattr(self.client, f"get_{channel}_msg")(timeout=allow_s(CELL_S))
            if reply["parent_header"].get("msg_id") == request["header"]["msg_id"]:
                return dict(reply["content"])

    def debug(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a request to the debugger, and return its answer."""
        request = {"type": "request", "seq": 1, "command": command, "arguments": arguments}
        return self.ask("debug_request", request)

    def event(self, name: str) -> dict[str, Any]:
        """Wait for an event of the debugger."""
        until = time.monotonic() + allow_s(CELL_S)
        while time.monotonic() < until:
            with contextlib.suppress(queue.Empty):
                message = self.client.get_iopub_msg(timeout=1)
                if message["msg_type"] == "debug_event" and message["content"]["event"] == name:
                    return dict(message["content"])
        raise AssertionError(f"no event {name}")

    def send(self, code: str) -> str:
        """Send a cell, and return its id without waiting."""
        return str(self.client.execute(code))

    def finish(self, request: str) -> None:
        """Add the output of a cell that `send` has sent."""
        self._collect(request)

    def interrupt(self) -> None:
        """Interrupt the kernel as Jupyter does."""
        os.killpg(os.getpgid(self.pid), signal.SIGINT)

    def run(self, program: Program) -> list[str]:
        for number, cell in enumerate(program.cells, 1):
            if cell.kind != "setup":
                self.lines.append(f"--- cell {number}")
                self._run_cell(program, cell)
        if program.is_killed:
            return self.lines
        self.lines.append("--- end")
        self.shut_down()
        return self.lines

    def end(self) -> None:
        self._kernel.end()

    def _run_cell(self, program: Program, cell: Cell) -> None:
        if cell.kind == "restart":
            self.shut_down(restart=True)
            self._kernel.end()
            self._kernel = self._start()
            self._wait_until_subscribed()
        elif cell.kind == "client":
            names = {"kernel": self, "print": self.print, "folder": self.folder}
            exec(compile(cell.code, f"{program.name}.py", "exec"), names)
        else:
            answers = cell.argument.split(",") if cell.kind == "stdin" else []
            interrupt_s = allow_s(float(cell.argument)) if cell.kind == "interrupt" else None
            request = self.client.execute(cell.code, allow_stdin=cell.kind == "stdin")
            self._collect(request, answers, interrupt_s)

    def shut_down(self, *, restart: bool = False) -> None:
        """Ask the kernel to end, and add its exit code."""
        if not self._is_dead():
            with contextlib.suppress(OSError):
                self.client.shutdown(restart=restart)
            until = time.monotonic() + allow_s(END_S)
            while not self._is_dead():
                if time.monotonic() > until:
                    self.lines.append(HANGS)
                    return
                time.sleep(0.005)
        code = self._kernel.wait()
        self.lines.append(f"exit code {code}")
        if code == -signal.SIGABRT:
            self.lines.append(self.log()[-_LONGEST_TEXT:])

    def _is_dead(self) -> bool:
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return True
        return stat.rpartition(")")[2].split()[0] == "Z"

    def _wait_until_subscribed(self) -> None:
        """Wait until messages on IOPub reach the client, and the kernel has no older request."""
        until = time.monotonic() + allow_s(CELL_S)
        while time.monotonic() < until:
            request = self.client.kernel_info()
            with contextlib.suppress(queue.Empty):
                while not _is_idle(self.client.get_iopub_msg(timeout=0.2), request):
                    pass
                break
        else:
            raise AssertionError(f"the kernel does not answer: {self.log()}")
        while self.client.get_shell_msg(timeout=allow_s(CELL_S))["parent_header"].get("msg_id") != request:
            pass

    def _collect(self, request: str, answers: Sequence[str] = (), interrupt_s: float | None = None) -> None:
        """Add the output of a request to the transcript, until its reply and its last message have come."""
        sent, began, left = time.monotonic(), math.inf, list(answers)
        asked: list[str] = []  # on a channel of their own, so their place in the output is not certain
        texts = _Streams(self._add)
        channels = {
            self.client.iopub_channel.socket: self.client.iopub_channel,
            self.client.shell_channel.socket: self.client.shell_channel,
            self.client.stdin_channel.socket: self.client.stdin_channel,
        }
        poller = zmq.Poller()
        for each in channels:
            poller.register(each, zmq.POLLIN)
        is_idle, reply = False, None
        while not (is_idle and reply):
            for each, _ in poller.poll(50):
                message = channels[each].get_msg(timeout=1)
                kind, content = message["msg_type"], message["content"]
                is_own = message["parent_header"].get("msg_id") == request
                if kind == "execute_input" and is_own:
                    began = time.monotonic()  # before it, the kernel ignores an interrupt
                if kind == "input_request":
                    asked.append(f"{content['prompt']!r} password={content['password']}")
                    self.client.input(left.pop(0) if left else "")
                elif kind.endswith("_reply"):
                    reply = content if is_own else reply
                elif _is_idle(message, request):
                    is_idle = True
                elif kind == "stream":
                    texts.add(
                        content["name"] if is_own else f"{content['name']} (other cell)", content["text"]
                    )
                else:
                    texts.flush()
                    self._add_message(kind if is_own else f"{kind} (other cell)", content)
            if interrupt_s is not None and time.monotonic() - began > interrupt_s:
                interrupt_s = None
                self.interrupt()
            if self._is_dead():
                texts.flush()
                self.lines.append("the kernel died")
                return
            if time.monotonic() - sent > allow_s(CELL_S):
                raise AssertionError(
                    f"no answer in {CELL_S} s after: {self.lines[-3:]}; log: {self.log()[-2000:]}"
                )
        texts.flush()
        for each in asked:
            self._add("asks", each)
        payload = f" {json.dumps(reply['payload'], sort_keys=True)}" if reply.get("payload") else ""
        self._add("reply", f"{reply['status']} {reply.get('execution_count')}{payload}")

    def _add(self, kind: str, text: str) -> None:
        lines = self._clean(text).splitlines() or [""]
        self.lines.extend(f"{kind}| {line}".rstrip() for line in lines)

    def _add_message(self, kind: str, content: dict[str, Any]) -> None:
        if kind.startswith(("status", "execute_input", "iopub_welcome", "debug_event")):
            return
        if kind.startswith("error"):
            self._add(kind, "\n".join(content["traceback"]) or f"{content['ename']}: {content['evalue']}")
        elif "data" in content and kind.startswith(("display_data", "execute_result", "update_display_data")):
            for mime, data in sorted(content["data"].items()):
                self._add(f"{kind} {mime}", _show(mime, data))
        else:
            self._add(kind, json.dumps(content, sort_keys=True)[:_LONGEST_TEXT])

    def _clean(self, text: str) -> str:
        for folder in (self.folder, self.folder.resolve()):
            text = text.replace(str(folder), "FOLDER")
        text = text.replace(str(self._kernel.log.parent), "AGENT")
        text = re.sub(rf"\b{self.pid}\b", "PID", text)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text


class _Streams:
    """Text of streams: how the kernel has cut it into messages does not matter."""

    def __init__(self, add: Callable[[str, str], None]) -> None:
        self._add = add
        self._texts: dict[str, str] = {}

    def add(self, name: str, text: str) -> None:
        self._texts[name] = self._texts.get(name, "") + text

    def flush(self) -> None:
        for name, text in sorted(self._texts.items()):
            self._add(name, text)
        self._texts.clear()


def _is_idle(message: dict[str, Any], request: str) -> bool:
    return (
        message["msg_type"] == "status"
        and message["content"]["execution_state"] == "idle"
        and message["parent_header"].get("msg_id") == request
    )


def _show(mime: str, data: object) -> str:
    text = data if isinstance(data, str) else json.dumps(data, sort_keys=True)
    if mime.startswith("image/") or len(text) > _LONGEST_TEXT:
        return f"{len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return text


@contextlib.contextmanager
def run_session(start: Callable[[], Kernel], folder: Path) -> Iterator[Session]:
    """Start a kernel, yield its session, and end the kernel."""
    session = Session(start, folder)
    try:
        yield session
    finally:
        session.end()
