"""`roost events`: the last events of the service, and with `--follow` all later ones."""

from __future__ import annotations

import argparse
import json
import queue
import time

from roost.placement.model.format import format_age, format_bytes
from roost.placement.model.json_codec import encode
from roost.scheduler.client.call import wait_for
from roost.scheduler.messages import Event, Kernel

from .clean_text import clean
from .options import connect_scheduler

_ID = 8
"""How many characters of a kernel's id are shown."""
_SHORT_S = 10.0
"""Less CPU time than this is shown with tenths of a second."""


def show_events(arguments: argparse.Namespace) -> int:
    """Print the last events.

    With `--follow`, print all later events too, until the command is interrupted.
    """
    client = connect_scheduler(arguments)
    coming: queue.SimpleQueue[Event] = queue.SimpleQueue()
    if arguments.follow:
        client.listen(coming.put)  # before the question, so that no event is missed
    events = wait_for(client.events(arguments.limit))
    if arguments.json and not arguments.follow:
        print(json.dumps({"events": [encode(event) for event in events]}, indent=2, ensure_ascii=False))
        return 0
    for event in events:
        _show(event, as_json=arguments.json)
    try:
        while arguments.follow:
            event = coming.get()
            if event not in events:
                _show(event, as_json=arguments.json)
    except KeyboardInterrupt:
        pass
    return 0


def _show(event: Event, *, as_json: bool) -> None:
    print(
        json.dumps(encode(event), ensure_ascii=False) if as_json else clean(format_event(event)), flush=True
    )


def format_event(event: Event) -> str:
    """Return an event as one line: time, kind, kernel id, user, node and details."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at))
    kernel = event.kernel
    if kernel is None:
        return f"{at}  {event.kind:<9}  {event.detail}".rstrip()
    node = kernel.node_id or "-"
    used = _format_use(kernel) if event.kind == "exited" else ""
    details = "; ".join(filter(None, (event.detail, used)))
    return f"{at}  {event.kind:<9}  {kernel.id[:_ID]}  {kernel.owner.user}  {node}  {details}".rstrip()


def _format_use(kernel: Kernel) -> str:
    """Return the CPU time and memory that an ended kernel has used; empty if they are unknown."""
    process = kernel.process
    if process is None or not process.peak_bytes:
        return ""
    memory = f"at most {format_bytes(process.peak_bytes)}"
    if not process.cpu_s:  # only the agent that has started a kernel gets to know it
        return f"used {memory}"
    cpu = f"{process.cpu_s:.1f} s" if process.cpu_s < _SHORT_S else format_age(process.cpu_s)
    return f"used {cpu} of CPU time and {memory}"
