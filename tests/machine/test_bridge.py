"""The bridge as a program, with the kit's launcher: cells, keys, interrupts, and every kind of end."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from kit.jupyter.odd_launcher import Bridged, bridged, odd_launcher
from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.usefixtures("runtime_dir")


def run(client: BlockingKernelClient, code: str) -> str:
    """Execute code, and return the text that it prints."""
    texts: list[str] = []
    client.execute_interactive(
        code,
        timeout=allow_s(60),
        output_hook=lambda message: texts.append(message["content"].get("text", "")),
    )
    return "".join(texts)


def refused(bridge: Bridged, within_s: float = 0.5, **changes: Any) -> bool:
    """True if a client with other keys gets no answer."""
    client = BlockingKernelClient()
    client.load_connection_info({**bridge.connection, **changes})
    client.start_channels(shell=True, iopub=False, stdin=False, hb=False, control=False)
    try:
        client.kernel_info()
        client.get_shell_msg(timeout=within_s)
    except Empty:
        return True
    finally:
        client.stop_channels()
    return False


def test_cells_a_wrong_key_and_an_exit_code(tmp_path: Path) -> None:
    with bridged(tmp_path, odd_launcher()) as bridge, bridge.client() as client:
        assert run(client, "print(6 * 7)") == "42\n"
        assert refused(bridge, key="another key")
        assert not refused(bridge, allow_s(60))
        lines = run(client, "for number in range(5_000): print(number)").splitlines()
        assert lines == [str(number) for number in range(5_000)]
        assert run(client, "import os; print(os.getpgid(0) == os.getpid())") == "True\n"
        client.execute("os._exit(5)")
        assert bridge.wait() == 5


def test_an_interrupt_of_a_launcher_that_takes_no_requests(tmp_path: Path) -> None:
    with bridged(tmp_path, odd_launcher("deaf")) as bridge, bridge.client() as client:
        cell = client.execute("print('runs', flush=True)\nimport time\nwhile True: time.sleep(0.1)")
        while client.get_iopub_msg(timeout=allow_s(60))["msg_type"] != "stream":
            pass
        os.kill(bridge.process.pid, signal.SIGINT)
        assert client._recv_reply(cell, timeout=allow_s(60))["content"]["ename"] == "KeyboardInterrupt"
        client.execute("import os; os.kill(os.getpid(), 11)")
        assert bridge.wait() == -signal.SIGSEGV


def test_a_shutdown_ends_a_launcher_that_resists(tmp_path: Path) -> None:
    """Its channels outside are sockets in a private folder."""
    command = odd_launcher("stubborn")
    with bridged(tmp_path, command, transport="ipc") as bridge, bridge.client() as client:
        assert client.shutdown(reply=True, timeout=allow_s(60))["content"]["status"] == "ok"
        assert bridge.wait() == 0


def test_a_termination_ends_a_launcher_that_resists(tmp_path: Path) -> None:
    with bridged(tmp_path, odd_launcher("stubborn")) as bridge, bridge.client():
        os.kill(bridge.process.pid, signal.SIGTERM)
        assert bridge.wait() == -signal.SIGKILL
