"""`roost top`: a table of the kernels' use, the busiest first, until the command is interrupted."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from rich.live import Live
from rich.table import Table
from rich.text import Text

from roost.launchers.protocol.shared_values import KernelUse
from roost.placement.model.format import format_amount, format_bytes
from roost.placement.model.json_codec import encode
from roost.scheduler.client.call import wait_for
from roost.scheduler.messages import Kernel

from .options import connect_scheduler, print_answer
from .tables import build_table, open_console, print_table, shorten_ids

_WIDE = 100
"""At least this many characters of width are needed for all columns."""
_HIGH = 0.9
"""If a kernel uses at least this share of its memory, its use is shown in red."""


def show_top(arguments: argparse.Namespace) -> int:
    """Show the running kernels again and again. Outside a terminal, show them once."""
    out = open_console(moves_cursor=True)
    kernels = _read(arguments)
    table = build_top(kernels, out.width)
    if arguments.json or not out.is_terminal:
        document = {"kernels": [encode(kernel.without_keys()) for kernel in kernels]}
        return print_answer(arguments, document, lambda: print_table(out, table))
    with Live(table, console=out, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(arguments.interval)
                live.update(build_top(_read(arguments), out.width), refresh=True)
        except KeyboardInterrupt:
            return 0


def _read(arguments: argparse.Namespace) -> list[Kernel]:
    found = wait_for(connect_scheduler(arguments).kernels(with_use=True))
    return [kernel for kernel in found if kernel.state == "running"]


def build_top(kernels: Sequence[Kernel], width: int) -> Table:
    """Return a table of running kernels in the order of their use. A narrow table has fewer columns."""
    columns = ["CPUS", "MEMORY"]
    if any(kernel.use and kernel.use.gpu_memory_bytes for kernel in kernels):
        columns.append("GPU MEMORY")
    if width >= _WIDE:
        columns += ["READ", "WRITTEN", "PROCESSES"]
    table = build_table("KERNEL", "USER", "NODE", *columns, "STATE", right=columns)
    short = shorten_ids([kernel.id for kernel in kernels])
    for kernel in sorted(kernels, key=_rank):
        cells = _format_use(kernel, kernel.use) if kernel.use else dict.fromkeys(columns, "?")
        state = (kernel.use.execution_state or "running") if kernel.use else "unknown"
        table.add_row(
            short[kernel.id], kernel.owner.user, kernel.node_id, *(cells[name] for name in columns), state
        )
    return table


def _format_use(kernel: Kernel, use: KernelUse) -> dict[str, str | Text]:
    return {
        "CPUS": _format_cpus(use, kernel.request.cpus),
        "MEMORY": _format_memory(use, kernel.request.memory_bytes),
        "GPU MEMORY": format_bytes(use.gpu_memory_bytes) if use.gpu_memory_bytes else "-",
        "READ": format_bytes(use.read_bytes),
        "WRITTEN": format_bytes(use.written_bytes),
        "PROCESSES": str(use.processes),
    }


def _rank(kernel: Kernel) -> tuple[float, int]:
    return (-kernel.use.cpu_percent, -kernel.use.memory_bytes) if kernel.use else (1.0, 0)


def _format_cpus(use: KernelUse, asked: float) -> str:
    used = f"{use.cpu_percent / 100:.2f}"
    return f"{used} of {format_amount(asked)}" if asked else used


def _format_memory(use: KernelUse, asked_bytes: int) -> str | Text:
    if not asked_bytes:
        return format_bytes(use.memory_bytes)
    text = f"{format_bytes(use.memory_bytes)} of {format_bytes(asked_bytes)}"
    return Text(text, style="bold red" if use.memory_bytes >= _HIGH * asked_bytes else "")
