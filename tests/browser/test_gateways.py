"""Two people with a JupyterLab each, whose kernels run behind one `roost gateway`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from kit.jupyter import browser
from kit.jupyter.browser import EXTENSION, Lab
from kit.jupyter.gateway_process import CONFIG, gateway_folder
from kit.machine.daemons import wait_gone
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import allow_s, until_blocking

COUNTING = "import time\nfor i in range(60):\n    print('n', i, flush=True)\n    time.sleep(0.1)\nx = 41"
COMES_BACK_S = 60.0
"""How long a laptop and its page may take to connect again."""
ROOST = (sys.executable, "-m", "roost", "gateway")


@pytest.fixture
def folder(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with gateway_folder(runtime_dir, tmp_path, monkeypatch) as made:
        browser.prepare_lab(made)
        yield made


@contextmanager
def gateway(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a gateway at a port, until it serves. Another one may run, which it then waits for."""
    (folder / "roost_gateway_config.py").write_text(f"{CONFIG}c.ServerApp.port = {port}\n")
    with (folder / "gateway.log").open("ab") as log:
        process = subprocess.Popen(ROOST, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(allow_s(30))


def serves(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/api", timeout=allow_s(5)) as answer:
            return bool(answer.status == 200)
    except (URLError, ConnectionError):
        return False


def test_two_people_keep_their_kernels_when_the_gateway_is_killed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    with ExitStack() as stack:
        first = stack.enter_context(gateway(folder, port))
        until_blocking(lambda: serves(port), "the gateway serves", 30)
        chromium = stack.enter_context(browser.chromium())
        labs = {}
        for person in ("ada", "eve"):
            words = (*ROOST, "token", "add", person, "--json")
            done = subprocess.run(words, check=True, capture_output=True, timeout=allow_s(60))
            notebooks = folder / person
            notebooks.mkdir()
            with monkeypatch.context() as laptop:
                laptop.setenv("JUPYTER_GATEWAY_URL", f"http://127.0.0.1:{port}")
                laptop.setenv("JUPYTER_GATEWAY_AUTH_TOKEN", json.loads(done.stdout)["token"])
                server = stack.enter_context(browser.running_server(notebooks, options=[EXTENSION]))
            context = chromium.new_context(viewport={"width": 1280, "height": 800})
            stack.callback(context.close)
            labs[person] = Lab(context.new_page(), server)
        for lab in labs.values():
            lab.open()
            lab.create_notebook("roosted")
            lab.run(0, COUNTING)
        kernels = {person: [each["id"] for each in lab.api("GET", "kernels")] for person, lab in labs.items()}
        assert [len(ids) for ids in kernels.values()] == [1, 1]
        assert kernels["ada"] != kernels["eve"]
        for lab in labs.values():
            lab.output(0, "n 5", browser.CELL_S)
        second = stack.enter_context(gateway(folder, port))
        time.sleep(1)
        first.send_signal(signal.SIGKILL)
        assert wait_gone(first.pid, allow_s(10)) or first.wait(allow_s(10))
        until_blocking(lambda: serves(port), "the second gateway serves", 30)
        assert second.poll() is None
        for person, lab in labs.items():
            lab.output(0, "n 59", COMES_BACK_S)
            lab.prompt(0, "[1]:")
            assert lab.text(0).splitlines() == [f"n {i}" for i in range(60)]
            lab.run(1, "import os; print(x + 1, os.environ['KERNEL_USERNAME'])")
            assert lab.output(1, "42").strip() == f"42 {person}"
            lab.run(2, "import time; time.sleep(1000)")
            lab.prompt(2, "[*]:")
            lab.press("Escape", "i", "i")
            assert "KeyboardInterrupt" in lab.output(2, "KeyboardInterrupt")
            lab.press("Escape", "0", "0")
            cell_ms = allow_s(browser.CELL_S * 1000)
            with lab.page.expect_response(lambda answer: "/restart" in answer.url, timeout=cell_ms):
                lab.page.get_by_role("button", name="Confirm Kernel Restart").click()
            lab.page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=cell_ms)
            lab.run(3, "x")
            assert "NameError" in lab.output(3, "NameError")
            assert [each["id"] for each in lab.api("GET", "kernels")] == kernels[person]
            lab.take(f"gateway-{person}")
            lab.end_kernels()
