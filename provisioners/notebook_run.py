"""Executes a notebook for `roost run` through nbclient, on a kernel that roost places. Progress goes to stderr."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager
from rich.console import Console
from rich.text import Text

import roost
from roost.scheduler.backends.spec import DEFAULT_BACKEND
from roost.scheduler.client.client import Client
from roost.scheduler.client.state_folder import write_whole
from roost.scheduler.errors import ConfigError, KernelDied, LaunchTimeout, RoostError
from roost.scheduler.messages import Event, Kernel

from .kernel_connection import accept_odd_messages
from .placed_kernelspecs import build_manager

_READY_S = 60.0
"""How long a started kernel may take to answer."""


def run_notebook(
    notebook: str,
    *,
    output: str | None = None,
    kernel_name: str = "",
    config: Mapping[str, Any],
    cell_timeout_s: float | None = None,
) -> dict[str, Any]:
    """Execute `notebook`, write the result, and return the document that `roost run --json` prints.

    `error` in this document is the error of the cell that failed, or None. `config` overrides the
    kernelspec's options. Raises `RoostError`, and after the kernel's end KeyboardInterrupt (for SIGINT) or
    SystemExit (for SIGTERM).
    """
    try:
        import nbformat
        from nbclient import NotebookClient
    except ImportError:
        raise ConfigError("Running a notebook needs nbclient: run `pip install nbclient`.") from None
    path = Path(notebook)
    try:
        document = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call,unused-ignore]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # noqa: BLE001 - nbformat raises many kinds of errors for a file that is not a notebook
        raise ConfigError(f"{path} is not a notebook: {error}") from None
    target = Path(output) if output else path.with_suffix(".out.ipynb")
    if target.is_dir():
        raise ConfigError(f"{target} is a folder: name a file with --output.")
    if not os.access(target.parent, os.W_OK):
        raise ConfigError(f"{target} cannot be written: choose another --output.")
    name = kernel_name or document.metadata.get("kernelspec", {}).get("name") or "python3"
    manager, options = build_manager(name, config)
    scheduler = roost.connect(options.get("backend", DEFAULT_BACKEND), **options.get("backend_options", {}))
    client = NotebookClient(document, km=manager, timeout=cell_timeout_s)
    ran = _NotebookRun(client, manager, scheduler, path)
    try:
        asyncio.run(ran.main())
    except asyncio.CancelledError:
        if ran.signum == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM) from None
        raise KeyboardInterrupt from None
    finally:
        if ran.cells or ran.is_complete:
            save_notebook(nbformat.writes(document), target)  # type: ignore[no-untyped-call,unused-ignore]
            ran.report(f"Wrote {target}")
    kernel = {"id": ran.kernel_id, "name": name, "node": ran.node_id}
    files = {"notebook": str(path), "output": str(target)}
    return {**files, "kernel": kernel, "cells": ran.cells, "error": ran.error}


def save_notebook(text: str, target: Path) -> None:
    """Write an executed notebook as a whole; an earlier file stays if that fails.

    Raises `RoostError` if `target` cannot be written. The notebook is then in a folder for temporary files.
    """
    try:
        _write(text, target)
    except OSError as problem:
        message = f"{target} cannot be written ({problem.strerror})"
        try:
            folder = Path(tempfile.mkdtemp(prefix="roost-run-"))
            _write(text, folder / target.name)
        except OSError:
            raise RoostError(f"{message}: the executed notebook is lost.") from None
        raise RoostError(f"{message}: the executed notebook is in {folder / target.name}.") from None


def _write(text: str, target: Path) -> None:
    """Write to a device or a pipe, or replace a file. An earlier file keeps its mode."""
    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8")
        return
    target = target.resolve()
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    write_whole(target, text.encode(), mode=0o666 if mode is None else mode)
    if mode is not None:
        target.chmod(mode)  # with the bits that the umask has taken


class _NotebookRun:
    """One execution of a notebook.

    `cells` has the index, seconds and status of each executed cell. `error` describes the cell that failed,
    or is None. `is_complete` is true if all cells ran without an error.
    """

    def __init__(self, client: Any, manager: AsyncKernelManager, scheduler: Client, path: Path) -> None:
        self.kernel_id = str(uuid.uuid4())
        self.node_id = ""
        self.cells: list[dict[str, Any]] = []
        self.is_complete = False
        self.error: dict[str, Any] | None = None
        self.signum = 0
        self._is_idle = False
        """True if the kernel has finished all that it was asked for."""
        self._client = client
        self._manager = manager
        self._scheduler = scheduler
        self._path = path
        self._err = Console(stderr=True, soft_wrap=True, markup=False, highlight=False, emoji=False)
        self._status = self._err.status("placing the kernel")
        self._state = ""

    async def main(self) -> None:
        """Start the kernel, execute the cells and stop the kernel.

        Raises CancelledError after SIGINT or SIGTERM; `signum` is then that signal.
        """
        task = asyncio.current_task()
        assert task is not None

        def interrupt(signum: int) -> None:
            self.signum = signum
            task.cancel()

        for signum in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signum, interrupt, signum)
        with self._status:
            try:
                await self._start()
                await self._execute()
            finally:
                if self._client.kc is not None:
                    self._client.kc.stop_channels()
                if self._manager.has_kernel:
                    # An idle kernel may end by itself, so that its exit functions run.
                    await self._manager.shutdown_kernel(now=not self._is_idle)

    def report(self, line: str) -> None:
        """Print a line on stderr, above the status line. Colours are left out if stderr is no terminal."""
        self._err.print(Text.from_ansi(line))

    async def _start(self) -> None:
        stop_listening = self._scheduler.listen(self._on_event)
        try:
            folder = str(self._path.parent.absolute())
            await self._manager.start_kernel(kernel_id=self.kernel_id, cwd=folder)
        finally:
            stop_listening()
        kernel = await self._scheduler.kernel(self.kernel_id)
        self.node_id = kernel.node_id
        devices = f", GPU {', '.join(kernel.device_ids)}" if kernel.device_ids else ""
        self.report(f"Kernel {self.kernel_id[:8]} on {kernel.node_id}{devices}")
        accept_odd_messages(self._manager)  # its clients share its session
        self._client.startup_timeout = _READY_S
        try:
            await self._client.async_start_new_kernel_client()
        except RuntimeError as problem:  # jupyter_client's only error here
            if "died" not in str(problem):
                raise LaunchTimeout(f"The kernel did not answer within {_READY_S:g} s.") from None
            reason, log_tail = await self._post_mortem()
            raise KernelDied(f"The kernel has ended: {reason}.", log_tail=log_tail) from None
        reply = await self._client.async_wait_for_reply(self._client.kc.kernel_info())
        if reply is not None:
            language = reply["content"]["language_info"]
            if isinstance(language.get("name"), str):
                self._client.nb.metadata["language_info"] = language

    async def _execute(self) -> None:
        from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

        self._client.reset_execution_trackers()
        notebook = self._client.nb
        cells = enumerate(notebook.cells)
        to_run = [(index, cell) for index, cell in cells if cell.cell_type == "code" and cell.source.strip()]
        self._is_idle = True
        for done, (index, cell) in enumerate(to_run, start=1):
            first_line = cell.source.strip().partition("\n")[0]
            self._show(f"[{done}/{len(to_run)}] {first_line}")
            started = time.monotonic()
            status, self._is_idle = "ended", False
            try:
                count = self._client.code_cells_executed + 1
                await self._client.async_execute_cell(cell, index, execution_count=count)
                status = "ok"
            except CellExecutionError as error:
                status = "error"
                errors = [output for output in cell.outputs if output.output_type == "error"]
                traceback = "\n".join(errors[-1].traceback) if errors else ""
                self._fail(index, error.ename, error.evalue, traceback)
            except (ValueError, LookupError, TypeError, AttributeError) as problem:
                status = "error"
                what = (
                    f"nbclient cannot read a message that the kernel has published ({type(problem).__name__})"
                )
                self._fail(index, "UnreadableOutput", what, "")
            except CellTimeoutError:
                status = "timeout"
                self._fail(index, "Timeout", f"the cell took longer than {self._client.timeout:g} s", "")
            except DeadKernelError:
                if self.signum:  # nbclient reports every cancellation as a dead kernel
                    raise asyncio.CancelledError from None
                status = "died"
                self._fail(index, "KernelDied", *await self._post_mortem())
            finally:
                seconds = round(time.monotonic() - started, 3)
                self.cells.append({"index": index, "seconds": seconds, "status": status})
            self._is_idle = status in ("ok", "error")
            if status != "ok":
                return
            self.report(f"[{done}/{len(to_run)}] {seconds:7.2f} s  {first_line[:56]}")
        self._client.set_widgets_metadata()
        self.is_complete = True

    async def _post_mortem(self) -> tuple[str, str]:
        """Return the reason of the kernel's end, as far as the scheduler knows it, and the end of its log."""
        try:
            kernel: Kernel = await self._scheduler.kernel(self.kernel_id)
        except RoostError:
            return "the kernel ended", ""
        return kernel.reason or f"exit code {kernel.exit_code}", kernel.log_tail

    def _fail(self, index: int, name: str, what: str, details: str) -> None:
        self.error = {"cell": index, "name": name, "message": what}
        if details:
            self.report(details)
        self.report(f"Cell {index + 1} failed: {name}: {what}")

    def _on_event(self, event: Event) -> None:
        kernel = event.kernel
        if kernel is None or kernel.id != self.kernel_id:
            return
        if kernel.state == "queued" and kernel.waits_for:
            state = "pending" if kernel.is_pending else f"queued at position {kernel.position}"
            self._show_state(f"{state}: {kernel.waits_for}")
        elif kernel.state == "starting" and kernel.node_id:
            self._show_state(f"starting on {kernel.node_id}")

    def _show_state(self, text: str) -> None:
        """Show a state of the start. Outside a terminal there is no status line, so each new state gets a line."""
        if not self._err.is_terminal and text != self._state:
            self.report(text)
        self._state = text
        self._show(text)

    def _show(self, text: str) -> None:
        self._status.update(Text(text))
