"""`roost attach` in a terminal: Jupyter's own console, on a kernel of another program."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pexpect

import roost
from kit.machine.daemons import settle
from roost.scheduler.client.client import disconnect
from roost.testing.deadlines import allow_s

DEADLINE_S = 180
PROMPT = r"In \["
CODE = (
    ("y = x + 1", PROMPT),
    ("y * 100", f"4200[^$]*{PROMPT}"),
    ("exit", pexpect.EOF),
)
"""Each typed line, with a pattern of the answer that the terminal must show."""


async def test_a_console_works_on_a_kernel_and_leaves_it_alone(runtime_dir: Path) -> None:
    async with roost.start_kernel() as kernel:
        await kernel.execute("x = 41", check=True)
        await asyncio.to_thread(use_console, kernel.id)
        result = await kernel.execute("x, y", check=True)
        assert result.outputs[0]["data"]["text/plain"] == "(41, 42)"
    disconnect()
    await asyncio.to_thread(settle, runtime_dir)


def use_console(kernel_id: str) -> None:
    command = ["-m", "roost", "attach", kernel_id[:8]]
    console = pexpect.spawn(
        sys.executable, command, timeout=allow_s(DEADLINE_S), encoding="utf-8", dimensions=(40, 120)
    )
    try:
        console.expect(PROMPT)
        for code, answer in CODE:
            console.send(code)
            console.expect_exact(code[-1])  # the terminal has it
            console.send("\r")
            console.expect(answer)
        console.wait()
        assert console.exitstatus == 0
    finally:
        console.close(force=True)
