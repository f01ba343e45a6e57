"""A small kernel whose messages lack what ipykernel's have, and which a message interrupts. It needs pyzmq alone.

Its first messages have null as their `parent_header`, as those of xeus-python. It shows a value by `display_data`, as
IRkernel does, and leaves out fields. It ends if SIGINT interrupts it.
"""

from __future__ import annotations

import sys

_PROGRAM = r"""
import json, os, signal, sys, zmq
from jupyter_client.session import Session

connection = json.load(open(sys.argv[1]))
assert "interrupt_mode" not in connection
signal.signal(signal.SIGINT, lambda *_: os._exit(3))
session = Session(key=connection["key"].encode(), signature_scheme=connection["signature_scheme"])
context = zmq.Context()


def bind(kind, name):
    socket = context.socket(kind)
    address = f"tcp://{connection['ip']}:" if connection["transport"] == "tcp" else f"ipc://{connection['ip']}-"
    socket.bind(f"{address}{connection[name]}")
    return socket


names = ("shell_port", "control_port", "stdin_port")
shell, control, stdin = (bind(zmq.ROUTER, name) for name in names)
iopub, heart = bind(zmq.PUB, "iopub_port"), bind(zmq.REP, "hb_port")


def publish(kind, content, request=None):
    message = session.msg(kind, content, parent=request)
    if request is None:
        message["parent_header"] = None
    if content is None:
        message["content"] = None
    session.send(iopub, message)


def answer(socket, names, request, content):
    kind = request["header"]["msg_type"].replace("_request", "_reply")
    session.send(socket, kind, content, parent=request, ident=names)


def is_interrupted(timeout_ms):
    if not control.poll(timeout_ms):
        return False
    names, request = session.recv(control)
    publish("status", {"execution_state": "busy"}, request)
    answer(control, names, request, {"status": "ok"})
    publish("status", {"execution_state": "idle"}, request)
    if request["header"]["msg_type"] == "shutdown_request":
        sys.exit()
    return request["header"]["msg_type"] == "interrupt_request"


def execute(request):
    code = request["content"]["code"]
    publish("execute_input", {"code": code}, request)
    publish("clear_output", None)
    if code == "bad":
        for each in (b"{", b"[" * 200_000, b"7", b"{}"):
            iopub.send_multipart([b"topic", b"<IDS|MSG>", b"", each, each, each, each])
            iopub.send_multipart([b"topic", each])
    elif code == "value":
        publish("display_data", {"data": {"text/plain": "41"}, "metadata": None}, request)
        publish("display_data", {"data": {"text/plain": "42"}}, request)
    elif code == "wait":
        publish("stream", {"text": "waits\n"}, request)
        while not is_interrupted(None):
            pass
        error = {"ename": "Interrupted", "evalue": None, "traceback": None}
        publish("error", error, request)
        return {"status": "error", **error}
    else:
        publish("stream", {"name": "stdout", "text": code}, request)
    return {"status": "ok"}


poller = zmq.Poller()
for each in (shell, control, heart):
    poller.register(each, zmq.POLLIN)
publish("status", {"execution_state": "starting"})
while True:
    ready = dict(poller.poll())
    if heart in ready:
        heart.send(heart.recv())
    if shell in ready:
        names, request = session.recv(shell)
        publish("status", {"execution_state": "busy"})
        publish("status", {"execution_state": "busy"}, request)
        kind = request["header"]["msg_type"]
        info = {"protocol_version": "5.3", "implementation": "odd", "language_info": {"name": "odd"}, "banner": ""}
        content = execute(request) if kind == "execute_request" else {"status": "ok", **info}
        answer(shell, names, request, content)
        publish("status", {"execution_state": "idle"}, request)
    elif control in ready:
        is_interrupted(0)
"""

ODD_SPEC = {
    "argv": [sys.executable, "-c", _PROGRAM, "{connection_file}"],
    "interrupt_mode": "message",
    "language": "odd",
    "metadata": {"supported_encryption": []},
}
"""The changes of a kernelspec that make it the odd kernel's."""
