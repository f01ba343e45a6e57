"""`roost kernels`, `roost logs` and `roost stop`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_runtime_dir
from rich.table import Table
from rich.text import Text

from roost.launchers.protocol.shared_values import name_connection_file
from roost.placement.model.format import format_age, format_amount, format_bytes
from roost.placement.model.json_codec import encode
from roost.scheduler.client.call import ANSWER_S, wait_for
from roost.scheduler.client.client import Client
from roost.scheduler.client.running_services import find_services
from roost.scheduler.config.memory_size import parse_bytes
from roost.scheduler.errors import ConfigError, RoostError, UnknownKernel
from roost.scheduler.messages import Kernel

from .clean_text import clean, clean_but_colours
from .options import connect_worlds, print_answer
from .tables import build_table, format_request, open_console, print_table, shorten_ids

_STYLES = {"running": "green", "queued": "yellow", "starting": "yellow", "exited": "red", "unknown": "red"}


def list_kernels(arguments: argparse.Namespace) -> int:
    clients = connect_worlds(arguments)
    found = read_worlds(clients, with_use=not arguments.pending)
    listed = [each for each in found if not arguments.pending or each[1].state == "queued"]
    worlds = {kernel.id: client.world for client, kernel in listed if client.is_elsewhere}
    kernels = [kernel for _, kernel in listed]
    document = {"kernels": [_to_document(kernel) for kernel in kernels]}

    def show() -> None:
        _show(kernels, worlds, is_queue=arguments.pending)
        if not found and (others := _find_other_backends(clients)):
            print(f"Services of other clusters run too: give --backend {' or '.join(others)}.")
        if not found and (count := _count_elsewhere(clients[0])):
            are = "kernel of yours was" if count == 1 else "kernels of yours were"
            print(
                f"{count} {are} started on this cluster by other services: with other options, or on another machine."
            )

    return print_answer(arguments, document, show)


def _count_elsewhere(client: Client) -> int:
    """Return how many kernels this user has through other services; 0 if the cluster cannot be read now."""
    try:
        return wait_for(client.count_elsewhere())
    except RoostError:
        return 0


def read_worlds(clients: Sequence[Client], *, with_use: bool = False) -> list[tuple[Client, Kernel]]:
    """Return all kernels, each with the client of its scheduler. The first client is that of this world.

    A scheduler of another world that does not answer gets a line on standard error.
    """
    calls = [(client, client.kernels(with_use=with_use)) for client in clients]
    found = []
    for client, call in calls:
        try:
            found += [(client, kernel) for kernel in wait_for(call)]
        except RoostError as problem:
            if not client.is_elsewhere:
                raise
            print(
                f"roost: kernels of another world are not listed: {clean(problem.user_message)}",
                file=sys.stderr,
            )
    return found


def _to_document(kernel: Kernel) -> dict[str, Any]:
    """Return a kernel as JSON, with the fields of its process that tell how it was started, and its connection file."""
    return {
        **encode(kernel.without_keys()),
        "how": kernel.how,
        "why_not_forked": kernel.why_not_forked,
        "connection_file": find_connection_file(kernel.id),
    }


def find_connection_file(kernel_id: str) -> str:
    """Return the path of the connection file that a Jupyter Server of this machine has written for the kernel.

    Return an empty text if there is none. A program has the connection files of its kernels elsewhere.
    """
    path = Path(jupyter_runtime_dir(), name_connection_file(kernel_id))
    return str(path) if path.is_file() else ""


def print_log(arguments: argparse.Namespace) -> int:
    tail_bytes = parse_bytes(arguments.tail)
    clients = connect_worlds(arguments)
    client = clients[0]
    try:
        client, kernel = find_kernels(clients, [arguments.kernel])[0]
    except UnknownKernel:
        kernel = wait_for(client.kernel(arguments.kernel))  # the service remembers ended kernels for a while
    text = wait_for(client.logs(kernel.id, tail_bytes=tail_bytes))

    def show() -> None:
        print(clean_but_colours(text), end="" if not text or text.endswith("\n") else "\n", flush=True)
        if kernel.state == "exited":
            print(f"roost: the kernel has ended: {clean(kernel.reason)}", file=sys.stderr)

    return print_answer(arguments, {"kernel": kernel.id, "text": text, "reason": kernel.reason}, show)


def stop(arguments: argparse.Namespace) -> int:
    clients = connect_worlds(arguments)
    if not arguments.kernels and not arguments.server:
        raise ConfigError(
            "Which kernels? Give the beginning of an id, or --server: `roost kernels` lists them."
        )
    try:
        kernels = find_kernels(clients, arguments.kernels)
    except (UnknownKernel, ConfigError) as problem:
        if len(arguments.kernels) > 1:
            raise type(problem)(f"{problem.user_message} No kernel was stopped.", **problem.fields) from None
        raise
    if arguments.server:
        kernels += _find_kernels_of(clients, arguments.server)
    calls = {kernel.id: client.stop(kernel.id, grace_s=arguments.grace) for client, kernel in kernels}
    outcomes = []
    for kernel_id, call in calls.items():
        try:
            outcome = _describe_end(wait_for(call, arguments.grace + ANSWER_S))
        except UnknownKernel:
            outcome = "had ended already"
        outcomes.append({"id": kernel_id, "outcome": outcome})
        if not arguments.json:
            print(f"{kernel_id} {outcome}")
    return print_answer(arguments, {"stopped": outcomes}, lambda: None)


def _describe_end(ended: Kernel) -> str:
    """Return how the service has ended the kernel: stopped, or removed while it was starting or queued."""
    if ended.process is not None:
        return "stopped"
    return "removed while it was starting" if ended.lease_id else "removed from the queue"


def find_kernels(clients: Sequence[Client], prefixes: Sequence[str]) -> list[tuple[Client, Kernel]]:
    """Return the kernels whose ids begin with the `prefixes`: one kernel for each prefix, and none twice.

    Each comes with the client of its scheduler.

    Raises `UnknownKernel` if a prefix has no kernel, and `ConfigError` if it has several.
    """
    known = read_worlds(clients)
    found = {}
    for prefix in prefixes:
        matches = [each for each in known if prefix and each[1].id.startswith(prefix)]
        matches = [each for each in matches if each[1].id == prefix] or matches
        if not matches:
            raise UnknownKernel(_describe_missing(clients, prefix), kernel=prefix)
        if len(matches) > 1:
            ids = ", ".join(kernel.id for _, kernel in matches[:4])
            raise ConfigError(f"{len(matches)} kernels begin with {prefix!r}: {ids}. Give more of the id.")
        found[matches[0][1].id] = matches[0]
    return list(found.values())


def _describe_missing(clients: Sequence[Client], prefix: str) -> str:
    """Return the sentence that no kernel has such an id. It names the other backends whose services run here."""
    others = _find_other_backends(clients)
    elsewhere = f", and those of other clusters with --backend {' or '.join(others)}" if others else ""
    return f"There is no kernel {prefix!r}: `roost kernels` lists them{elsewhere}."


def _find_other_backends(clients: Sequence[Client]) -> list[str]:
    """Return the other backends whose services run here."""
    return sorted({each.backend for each in find_services()} - {client.backend for client in clients})


def _find_kernels_of(clients: Sequence[Client], server: str) -> list[tuple[Client, Kernel]]:
    """Return the kernels of a Jupyter Server by its name; raises `UnknownKernel`."""
    kernels = [each for each in read_worlds(clients) if each[1].owner.server == server]
    if not kernels:
        raise UnknownKernel(f"No kernel here belongs to a Jupyter Server named {server!r}.", server=server)
    return kernels


def _show(kernels: Sequence[Kernel], worlds: Mapping[str, str], *, is_queue: bool) -> None:
    """Print a table of kernels. `worlds` has the world of each kernel that is not of this one."""
    out = open_console()
    if not kernels:
        out.print("No kernel is queued." if is_queue else "There are no kernels.")
        return
    short = shorten_ids([kernel.id for kernel in kernels])
    print_table(out, (_build_queue if is_queue else _build_list)(kernels, short))
    for kernel in kernels:
        if kernel.is_pending and not is_queue:
            claimed = (
                f"its slice of {kernel.node_id} is being claimed" if kernel.node_id else "no reason known"
            )
            out.print(f"{short[kernel.id]} is pending: {clean(kernel.waits_for) or claimed}")
    for kernel_id, world in worlds.items():
        out.print(f"{short[kernel_id]} is in another world: {world}")


def _build_list(kernels: Sequence[Kernel], short: Mapping[str, str]) -> Table:
    table = build_table("KERNEL", "STATE", "OWNER", "NODE", "GPU", "REQUEST", "USE", "AGE", right=("AGE",))
    for kernel in sorted(kernels, key=lambda kernel: kernel.created_at):
        table.add_row(
            short[kernel.id],
            Text(_format_state(kernel), style=_STYLES.get(kernel.state, "")),
            _format_owner(kernel),
            kernel.node_id or "-",
            ", ".join(kernel.device_ids) or "-",
            format_request(kernel.request),
            _format_use(kernel),
            format_age(time.time() - kernel.created_at),
        )
    return table


def _format_state(kernel: Kernel) -> str:
    """Return the state. For a running kernel, say whether it is busy, or for how long it has been idle."""
    if kernel.is_pending:
        return "pending"
    use = kernel.use
    if kernel.state != "running" or use is None or not use.execution_state:
        return kernel.state
    return f"idle {format_age(use.idle_s)}" if use.execution_state == "idle" else use.execution_state


def _format_owner(kernel: Kernel) -> str:
    """Return the user, and the application that holds the kernel now; `nobody` if the holder has ended."""
    holder = kernel.owner.application if kernel.is_held else "nobody"
    return f"{kernel.owner.user}/{holder}" if holder else kernel.owner.user


def _format_use(kernel: Kernel) -> str:
    """Return the kernel's use; `unknown` if nobody reports it, `-` if the kernel does not run."""
    if kernel.use is None:
        return "unknown" if kernel.state == "running" else "-"
    use = kernel.use
    gpu = f", {format_bytes(use.gpu_memory_bytes)} of GPU" if use.gpu_memory_bytes else ""
    return f"{format_bytes(use.memory_bytes)}{gpu}, {format_amount(use.cpu_percent / 100)} CPU"


def _build_queue(kernels: Sequence[Kernel], short: Mapping[str, str]) -> Table:
    table = build_table("POSITION", "KERNEL", "OWNER", "AGE", "WAITS FOR", right=("POSITION", "AGE"))
    for kernel in sorted(kernels, key=lambda kernel: kernel.position or 0):
        position = "pending" if kernel.is_pending else str(kernel.position or "-")
        age, waits_for = format_age(time.time() - kernel.created_at), kernel.waits_for or "-"
        table.add_row(position, short[kernel.id], kernel.owner.user, age, waits_for)
    return table
