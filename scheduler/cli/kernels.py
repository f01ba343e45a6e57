"""`roost kernels`, `roost logs` and `roost stop`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_runtime_dir
from rich.table import Table
from rich.text import Text

from roost.launchers.protocol.shared_values import name_connection_file
from roost.placement.model.format import format_age, format_amount, format_bytes, format_count
from roost.placement.model.json_codec import encode
from roost.scheduler.client.call import ANSWER_S, wait_for
from roost.scheduler.client.client import Client
from roost.scheduler.client.running_services import find_services
from roost.scheduler.client.service_folder import NAME_VARIABLE
from roost.scheduler.config.memory_size import parse_bytes
from roost.scheduler.errors import ConfigError, RoostError, UnknownKernel
from roost.scheduler.messages import Kernel

from .clean_text import clean, clean_but_colours
from .options import connect_scheduler, print_answer
from .tables import build_table, format_request, open_console, print_table, shorten_ids

_STYLES = {"running": "green", "queued": "yellow", "starting": "yellow", "exited": "red", "unknown": "red"}


def list_kernels(arguments: argparse.Namespace) -> int:
    client = connect_scheduler(arguments)
    may_have_kernels = client.may_have_kernels()  # a service would start in order to say that there are none
    found = wait_for(client.kernels(with_use=not arguments.pending)) if may_have_kernels else []
    kernels = [kernel for kernel in found if not arguments.pending or kernel.state == "queued"]
    document = {"kernels": [_to_document(kernel) for kernel in kernels]}

    def show() -> None:
        _show_prospects(kernels)
        _show(kernels, is_queue=arguments.pending)
        if not found and (others := _find_other_backends(client)):
            print(f"Services of other clusters run too: give --backend {' or '.join(others)}.")
        for world in client.find_worlds():
            print(
                f"Kernels of another world are not listed: `{NAME_VARIABLE}={world} roost kernels` lists them."
            )
        if may_have_kernels and not found and (count := _count_elsewhere(client)):
            are = "kernel of yours was" if count == 1 else "kernels of yours were"
            print(
                f"{count} {are} started on this cluster by other services: on another machine, or for another "
                "spelling of its address."
            )

    return print_answer(arguments, document, show)


def _show_prospects(kernels: Sequence[Kernel]) -> None:
    """Print a line for each thing that will end kernels soon, with their number."""
    for what, count in Counter(kernel.prospect for kernel in kernels if kernel.prospect).items():
        print(f"⚠ {format_count(count, 'kernel')}: {clean(what)}.")


def _count_elsewhere(client: Client) -> int:
    """Return how many kernels this user has through other services; 0 if the cluster cannot be read now."""
    try:
        return wait_for(client.count_elsewhere())
    except RoostError:
        return 0


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
    client = connect_scheduler(arguments)
    try:
        (kernel,) = find_kernels(client, [arguments.kernel])
    except UnknownKernel:
        kernel = wait_for(client.kernel(arguments.kernel))  # the service remembers ended kernels for a while
    text = wait_for(client.logs(kernel.id, tail_bytes=tail_bytes))

    def show() -> None:
        print(clean_but_colours(text), end="" if not text or text.endswith("\n") else "\n", flush=True)
        if kernel.state == "exited":
            print(f"roost: the kernel has ended: {clean(kernel.reason)}", file=sys.stderr)

    return print_answer(arguments, {"kernel": kernel.id, "text": text, "reason": kernel.reason}, show)


def stop(arguments: argparse.Namespace) -> int:
    if arguments.user:
        from .gateway import stop_user

        if arguments.kernels or arguments.server:
            raise ConfigError("--user stops all kernels of a user: name no others.")
        return stop_user(arguments)
    client = connect_scheduler(arguments)
    if not arguments.kernels and not arguments.server:
        raise ConfigError(
            "Which kernels? Give the beginning of an id, or --server: `roost kernels` lists them."
        )
    try:
        kernels = find_kernels(client, arguments.kernels)
    except (UnknownKernel, ConfigError) as problem:
        if len(arguments.kernels) > 1:
            raise type(problem)(f"{problem.user_message} No kernel was stopped.", **problem.fields) from None
        raise
    if arguments.server:
        kernels += _find_kernels_of(client, arguments.server)
    calls = {kernel.id: client.stop(kernel.id, grace_s=arguments.grace) for kernel in kernels}
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


def find_kernels(client: Client, prefixes: Sequence[str]) -> list[Kernel]:
    """Return the kernels whose ids begin with the `prefixes`: one kernel for each prefix, and none twice.

    Raises `UnknownKernel` if a prefix has no kernel, and `ConfigError` if it has several.
    """
    known = wait_for(client.kernels())
    found = {}
    for prefix in prefixes:
        matches = [each for each in known if prefix and each.id.startswith(prefix)]
        matches = [each for each in matches if each.id == prefix] or matches
        if not matches:
            raise UnknownKernel(_describe_missing(client, prefix), kernel=prefix)
        if len(matches) > 1:
            ids = ", ".join(kernel.id for kernel in matches[:4])
            raise ConfigError(f"{len(matches)} kernels begin with {prefix!r}: {ids}. Give more of the id.")
        found[matches[0].id] = matches[0]
    return list(found.values())


def _describe_missing(client: Client, prefix: str) -> str:
    """Return the sentence that no kernel has such an id. It names the other backends whose services run here."""
    others = _find_other_backends(client)
    elsewhere = f", and those of other clusters with --backend {' or '.join(others)}" if others else ""
    return f"There is no kernel {prefix!r}: `roost kernels` lists them{elsewhere}."


def _find_other_backends(client: Client) -> list[str]:
    """Return the other backends whose services run here."""
    return sorted({each.backend for each in find_services()} - {client.backend})


def _find_kernels_of(client: Client, server: str) -> list[Kernel]:
    """Return the kernels of a Jupyter Server by its name; raises `UnknownKernel`."""
    kernels = [kernel for kernel in wait_for(client.kernels()) if kernel.owner.server == server]
    if not kernels:
        raise UnknownKernel(f"No kernel here belongs to a Jupyter Server named {server!r}.", server=server)
    return kernels


def _show(kernels: Sequence[Kernel], *, is_queue: bool) -> None:
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


def _build_list(kernels: Sequence[Kernel], short: Mapping[str, str]) -> Table:
    titles = ("KERNEL", "NOTEBOOK", "STATE", "OWNER", "NODE", "GPU", "REQUEST", "USE", "AGE")
    table = build_table(*titles, right=("AGE",))
    for kernel in sorted(kernels, key=lambda kernel: kernel.created_at):
        table.add_row(
            short[kernel.id],
            kernel.title or "-",
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
    titles = ("POSITION", "KERNEL", "NOTEBOOK", "OWNER", "AGE", "WAITS FOR")
    table = build_table(*titles, right=("POSITION", "AGE"))
    for kernel in sorted(kernels, key=lambda kernel: kernel.position or 0):
        position = "pending" if kernel.is_pending else str(kernel.position or "-")
        age, waits_for = format_age(time.time() - kernel.created_at), kernel.waits_for or "-"
        title = kernel.title or "-"
        table.add_row(position, short[kernel.id], title, kernel.owner.user, age, waits_for)
    return table
