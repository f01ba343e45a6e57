"""Jupyter's own console in a terminal, on a kernel of another program, by its connection file."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pexpect
import pytest

import roost
from kit.machine.daemons import settle
from roost.provisioners.kernel_connection import to_jupyter
from roost.scheduler.client.client import connect, disconnect
from roost.testing.deadlines import allow_s

DEADLINE_S = 180
PROMPT = r"In \["
CODE = (("y = x + 1", PROMPT), ("y * 100", f"4200[^$]*{PROMPT}"))
"""Each typed line, with a pattern of the answer that the terminal must show."""
ROOT = Path(__file__).resolve().parents[2]
JUPYTER_CONFIG = ROOT / "provisioners" / "jupyter_config"
"""The folder of what a wheel installs for Jupyter's consoles. The tests run on an editable install."""


async def test_a_console_works_on_a_kernel_and_leaves_it_alone(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(JUPYTER_CONFIG))
    async with roost.start_kernel() as kernel:
        await kernel.execute("x = 41", check=True)
        file = tmp_path / "connection.json"
        await write_connection(kernel.id, file)
        await asyncio.to_thread(use_console, file)
        result = await kernel.execute("x, y", check=True)
        assert result.outputs[0]["data"]["text/plain"] == "(41, 42)"
    disconnect()
    await asyncio.to_thread(settle, runtime_dir)


async def test_jupyter_run_works_on_a_kernel_by_its_file(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(JUPYTER_CONFIG))
    async with roost.start_kernel() as kernel:
        await kernel.execute("x = 41", check=True)
        file = tmp_path / "connection.json"
        await write_connection(kernel.id, file)
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "jupyter", "run", "--existing", str(file)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(program.communicate(b"x += 1; print(x)"), allow_s(DEADLINE_S))
        assert (program.returncode, out) == (0, b"42\n")
        result = await kernel.execute("x", check=True)
        assert result.outputs[0]["data"]["text/plain"] == "42"
    disconnect()
    await asyncio.to_thread(settle, runtime_dir)


async def write_connection(kernel_id: str, file: Path) -> None:
    """Write the connection file of a kernel, as Jupyter has it in its runtime folder."""
    connection = (await connect("local").kernel(kernel_id)).connection
    assert connection is not None
    assert connection.curve_secretkey
    file.write_text(json.dumps({**to_jupyter(connection), "key": connection.key}))


def use_console(file: Path) -> None:
    command = ["-m", "jupyter", "console", "--existing", str(file)]
    console = pexpect.spawn(
        sys.executable, command, timeout=allow_s(DEADLINE_S), encoding="utf-8", dimensions=(40, 120)
    )
    try:
        console.expect(PROMPT)
        for code, answer in (*CODE, ("exit(keep_kernel=True)", pexpect.EOF)):
            console.send(code)
            console.expect_exact(code[-1])  # the terminal has it
            console.send("\r")
            console.expect(answer)
        console.wait()
        assert console.exitstatus == 0
    finally:
        console.close(force=True)
