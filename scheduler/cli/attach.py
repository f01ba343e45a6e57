"""`roost attach` and `roost output`."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from roost.provisioners.attached_kernel import AttachedKernel
from roost.provisioners.attached_kernel import attach as attach_kernel
from roost.provisioners.journal_reader import CellRun, read_runs
from roost.provisioners.kernel_connection import to_jupyter
from roost.scheduler.backends.spec import describe_extra
from roost.scheduler.client.call import wait_for
from roost.scheduler.client.client import user_folder
from roost.scheduler.client.state_folder import write_private_json
from roost.scheduler.errors import BackendUnavailable, ConfigError, LaunchTimeout

from .clean_text import clean, clean_but_colours
from .kernels import find_kernels
from .options import connect_worlds, print_answer, scheduler_options

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def attach(arguments: argparse.Namespace) -> int:
    """Open Jupyter's console on a kernel. The kernel goes on when the console is closed."""
    try:
        import jupyter_console  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"The command attach needs Jupyter's console: {describe_extra('console')}."
        ) from None
    ((client, kernel),) = find_kernels(connect_worlds(arguments), [arguments.kernel])
    use = wait_for(client.kernel(kernel.id, with_use=True)).use
    if use is not None and use.execution_state == "busy":
        print("roost: the kernel runs a cell; the console begins when the cell ends.", file=sys.stderr)
    with attach_kernel(kernel.id, arguments.backend, **scheduler_options(arguments)) as attached:
        connection = to_jupyter(attached.connection)
        file = user_folder("attach") / f"{kernel.id}-{os.getpid()}.json"
        write_private_json(file, {name: _to_text_value(value) for name, value in connection.items()})
        try:
            _build_console(attached).launch_instance(argv=["--existing", str(file)])
        except RuntimeError as problem:
            if "kernel_info" not in str(problem):
                raise
            what = f"kernel {kernel.id} does not answer: it runs a cell, and a console begins after that."
            raise LaunchTimeout(f"{what} `roost output {kernel.id}` shows what the cell prints.") from None
        finally:
            file.unlink(missing_ok=True)
    return 0


def _build_console(attached: AttachedKernel) -> Any:
    """Return a class of Jupyter's console that connects to `attached`, a kernel of another program."""
    from jupyter_console.app import ZMQTerminalIPythonApp

    class Console(ZMQTerminalIPythonApp):  # type: ignore[misc,unused-ignore]
        def init_kernel_client(self) -> None:
            """Connect as roost does, because Jupyter's console cannot use the kernel's encryption."""
            self.kernel_client = attached.client()
            self.kernel_client.hb_channel.start()

        def init_shell(self) -> None:
            super().init_shell()
            run_cell = self.shell.run_cell

            def run_or_leave(code: str, *more: Any, **options: Any) -> None:
                """Run code. At `exit` or `quit`, only leave the console and keep the kernel."""
                if code.strip().removesuffix("()") in ("exit", "quit"):
                    self.shell.ask_exit()
                else:
                    run_cell(code, *more, **options)

            self.shell.run_cell = run_or_leave

    return Console


def print_output(arguments: argparse.Namespace) -> int:
    ((client, kernel),) = find_kernels(connect_worlds(arguments), [arguments.kernel])
    try:
        runs = asyncio.run(read_runs(client, kernel.id))
    except asyncio.TimeoutError:
        where = kernel.node_id or "its node"
        raise BackendUnavailable(
            f"the agent on {where}, which keeps the output, does not answer. Try again later."
        ) from None
    if kernel.state == "exited":
        for run in runs:
            run.end_with_process()
    return print_answer(
        arguments, {"kernel": kernel.id, "cells": [*map(_to_json, runs)]}, lambda: _show(runs)
    )


def _to_text_value(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value


def _to_json(run: CellRun) -> dict[str, Any]:
    names = ("cell_id", "session", "code", "execution_count", "outputs", "is_done", "is_lost", "is_cut")
    return {name: getattr(run, name) for name in names}


def _show(runs: Sequence[CellRun]) -> None:
    if not runs:
        print(
            "Nothing is kept: the kernel has executed nothing, its agent has just started, or journal_memory is 0."
        )
    for run in runs:
        state = "  (the kernel ended)" if run.is_lost else "" if run.is_done else "  (still running)"
        first, _, rest = clean(run.code or "[its code was not kept]").partition("\n")
        print(f"In [{run.execution_count or '?'}]: {first}{' …' if rest else ''}{state}")
        if run.is_cut:
            print("[the beginning of this output was not kept]")
        for output in run.outputs:
            text = clean_but_colours(_to_text(output))
            print(text, end="" if text.endswith("\n") else "\n")


def _to_text(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return str(output["text"])
    if output["output_type"] == "error":
        return _ESCAPES.sub("", "\n".join(output["traceback"]))
    data = output["data"]
    return str(data.get("text/plain") or f"[{', '.join(data)}]")
