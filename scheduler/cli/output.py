"""`roost output`: what the cells of a kernel have put out."""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Sequence
from typing import Any

from roost.provisioners.journal_reader import CellRun, read_runs

from .clean_text import clean, clean_but_colours
from .kernels import find_kernels
from .options import connect_scheduler, print_answer

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def print_output(arguments: argparse.Namespace) -> int:
    client = connect_scheduler(arguments)
    (kernel,) = find_kernels(client, [arguments.kernel])
    runs = asyncio.run(read_runs(client, kernel.id))
    return print_answer(
        arguments, {"kernel": kernel.id, "cells": [*map(_to_json, runs)]}, lambda: _show(runs)
    )


def _to_json(run: CellRun) -> dict[str, Any]:
    names = ("cell_id", "session", "code", "execution_count", "outputs", "is_done", "is_cut")
    return {name: getattr(run, name) for name in names}


def _show(runs: Sequence[CellRun]) -> None:
    if not runs:
        print(
            "Nothing is kept: the kernel has executed nothing, its agent has just started, or journal_memory is 0."
        )
    for run in runs:
        state = "" if run.is_done else "  (still running)"
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
