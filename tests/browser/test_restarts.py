"""A JupyterLab whose server ends in the middle of a cell and comes back."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.jupyter import browser
from kit.jupyter.browser import EXTENSION, Lab, RestartableLab
from roost.testing.deadlines import allow_s, until_blocking

COMES_BACK_S = 60.0
"""How long JupyterLab may take to connect again. It tries after 1, 2, 4 … seconds."""
ROUNDS = int(os.environ.get("ROOST_ROUNDS", "50"))
COUNTING = "import time\nfor i in range({0}):\n    print('n', i, flush=True)\n    time.sleep(0.1)\nx = 41"
OPTIONS = (EXTENSION, "--RoostExtension.on_server_stop=keep")


@pytest.fixture
def restartable(notebooks: Path) -> Iterator[RestartableLab]:
    with RestartableLab(notebooks, OPTIONS) as running:
        yield running


@pytest.fixture(scope="module")
def chromium(notebooks: Path) -> Iterator[browser.Browser]:
    """Return Chromium. It ends before the backend: no other event loop can run in this thread until then."""
    with browser.chromium() as running:
        yield running


@pytest.fixture
def lab(restartable: RestartableLab, chromium: browser.Browser) -> Iterator[Lab]:
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    lab = Lab(context.new_page(), restartable.server)
    dialog = lab.page.locator(".jp-Dialog").filter(has_text="Server Connection Error")
    lab.page.add_locator_handler(dialog, lambda shown: shown.get_by_role("button").first.click())
    yield lab
    context.close()
    lab.end_kernels()


def lines(number: int) -> list[str]:
    return [f"n {i}" for i in range(number)]


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_page_goes_on_when_its_server_is_back(lab: Lab, restartable: RestartableLab, signum: int) -> None:
    lab.open()
    lab.create_notebook("gpu")
    lab.run(0, COUNTING.format(80))
    lab.output(0, "n 5", browser.CELL_S)
    restartable.end(signum)
    restartable.start()
    lab.output(0, "n 79", COMES_BACK_S)
    lab.prompt(0, "[1]:")
    assert lab.text(0).splitlines() == lines(80)
    lab.run(1, "print(x + 1)")
    assert lab.output(1, "42").strip() == "42"
    lab.run(2, COUNTING.format(800))
    lab.output(2, "n 3")
    lab.press("Escape", "i", "i")
    assert "KeyboardInterrupt" in lab.output(2, "KeyboardInterrupt")
    lab.press("Escape", "0", "0")
    cell_ms = allow_s(browser.CELL_S * 1000)
    with lab.page.expect_response(lambda answer: "/restart" in answer.url, timeout=cell_ms):
        lab.page.get_by_role("button", name="Confirm Kernel Restart").click()
    lab.page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=cell_ms)
    lab.run(3, "x")
    assert "NameError" in lab.output(3, "NameError")


def test_a_new_page_finds_the_notebook_with_what_it_has_missed(
    lab: Lab, restartable: RestartableLab, chromium: browser.Browser
) -> None:
    lab.write_notebook("long.ipynb", "gpu", COUNTING.format(60), "print(x + 1)")
    lab.open("long.ipynb")
    until_blocking(lambda: len(lab.api("GET", "sessions")) == 1, "the server has one session", browser.CELL_S)
    lab.status("GPU")
    lab.run_again(0)
    lab.output(0, "n 5", browser.CELL_S)
    (session,) = lab.api("GET", "sessions")
    restartable.end(signal.SIGKILL)
    lab.page.close()
    restartable.start()
    page = Lab(chromium.new_context(viewport={"width": 1280, "height": 800}).new_page(), restartable.server)
    page.open(session["path"])
    page.output(0, "n 59", COMES_BACK_S)
    page.prompt(0, "[1]:")
    assert page.text(0).splitlines() == lines(60)
    page.run_again(1)
    assert page.output(1, "42").strip() == "42"
    assert [found["kernel"]["id"] for found in page.api("GET", "sessions")] == [session["kernel"]["id"]]
    page.page.context.close()


def test_a_cell_that_waited_says_that_it_has_to_be_run_again(lab: Lab, restartable: RestartableLab) -> None:
    holder = lab.api("POST", "kernels", {"name": "gpu"})["id"]
    until_blocking(
        lambda: " GPU" in lab.get(f"roost/api/kernels/{holder}")["text"],
        "a kernel has the GPU",
        browser.CELL_S,
    )
    lab.open()
    lab.create_notebook("gpu")
    lab.run(0, "print('never')")
    assert "Position 1 in the queue" in lab.output(0, "Position")
    restartable.end(signal.SIGKILL)
    restartable.start()
    assert "run it again" in lab.output(0, "run it again", COMES_BACK_S)
    lab.run(0, "print('second')")
    assert "Position 1 in the queue" in lab.output(0, "Position")
    lab.api("DELETE", f"kernels/{holder}")
    assert lab.output(0, "second").strip() == "second"


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_server_ends_at_once_after_its_page_has_closed(notebooks: Path, chromium: browser.Browser) -> None:
    """Fifty times, while other programs use all cores. The seconds are printed."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    took: list[float] = []
    try:
        with RestartableLab(notebooks, (EXTENSION,)) as running:
            while True:
                context = chromium.new_context()
                lab = Lab(context.new_page(), running.server)
                lab.open()
                lab.create_notebook("gpu")
                lab.run(0, "print(42)")
                assert lab.output(0, "42").strip() == "42"
                context.close()
                began = time.monotonic()
                running.end(signal.SIGTERM)
                took.append(time.monotonic() - began)
                if len(took) == ROUNDS:
                    break
                running.start()
    finally:
        for process in busy:
            process.kill()
            process.wait()
        print(f"{len(took)} ends: median {statistics.median(took):.2f} s, longest {max(took):.2f} s")


def test_cells_that_wait_for_a_session_are_let_go_when_the_server_ends(
    lab: Lab, restartable: RestartableLab
) -> None:
    lab.open()
    held = lab.hold_session()
    lab.card("gpu").click()
    lab.cell(0).wait_for(timeout=allow_s(browser.OPEN_S * 1000))
    for i in range(2):
        lab.run(i, "print('early')")
        lab.prompt(i, "[*]:")
    restartable.end(signal.SIGKILL)
    held.release()
    lab.dialog("Error Starting Kernel").get_by_role("button").first.click()
    for i in range(2):
        lab.prompt(i, "[ ]:")
    lab.dialog("Select Kernel").get_by_role("button", name="No Kernel").click()
    restartable.start()
    lab.run(2, "print('later')")
    assert lab.output(2, "later", COMES_BACK_S).strip() == "later"
    assert "early" not in lab.text(0) + lab.text(1)
