"""Notebooks in JupyterLab whose kernels wait for a GPU, as people use them."""

from __future__ import annotations

import time
from collections.abc import Callable

from browser import Lab

from roost.scheduler.client.client import connect

Take = Callable[[str], None]
SHOWN_S = 15.0
"""The tests' limit for a line or a result. Both take less than a second on a machine that does nothing else."""


def hold_gpu(lab: Lab) -> str:
    """Let a kernel hold the GPU. Return its id."""
    kernel_id = str(lab.api("POST", "kernels", {"name": "gpu"})["id"])
    deadline = time.monotonic() + SHOWN_S
    while [each.state for each in connect("local").kernels().result(5)] != ["running"]:
        assert time.monotonic() < deadline, "the kernel does not start"
        time.sleep(0.05)
    return kernel_id


def test_a_waiting_cell_shows_its_place_and_runs_when_the_gpu_is_free(lab: Lab, take: Take) -> None:
    holder = hold_gpu(lab)
    lab.open()
    lab.create_notebook("gpu")
    lab.run(0, "print('on', 40 + 2)")
    assert "Position 1 in the queue" in lab.output(0, "Position", SHOWN_S)
    take("waiting")
    lab.api("DELETE", f"kernels/{holder}")
    assert lab.output(0, "on 42", SHOWN_S).strip() == "on 42"


def test_an_interrupt_takes_the_notebook_out_of_the_queue(lab: Lab, take: Take) -> None:
    hold_gpu(lab)
    lab.open()
    lab.create_notebook("gpu")
    lab.run(0, "print(1)")
    lab.output(0, "Position", SHOWN_S)
    lab.press("Escape", "i", "i")
    assert "withdrawn" in lab.output(0, "withdrawn", SHOWN_S)
    take("interrupted")


def test_a_cell_that_waits_outlives_a_reload_and_runs_once(lab: Lab, take: Take) -> None:
    holder = hold_gpu(lab)
    lab.open()
    lab.create_notebook("gpu")
    lab.run(0, "open('ran', 'a').write('x')")
    lab.output(0, "Position", SHOWN_S)
    lab.reload()
    lab.api("DELETE", f"kernels/{holder}")
    deadline = time.monotonic() + SHOWN_S
    while not any(file["name"] == "ran" for file in lab.api("GET", "contents")["content"]):
        assert time.monotonic() < deadline, "the cell has not run"
        time.sleep(0.05)
    lab.run(0, "print(open('ran').read())")
    assert lab.output(0, "x", SHOWN_S).strip() == "x"


def test_a_kernel_that_is_killed_says_why(lab: Lab, take: Take) -> None:
    lab.open()
    lab.create_notebook("gpu")
    lab.run(0, "print('up')")
    lab.output(0, "up", SHOWN_S)
    lab.run(1, "import os; os.kill(os.getpid(), 9)")
    assert "SIGKILL" in lab.output(1, "SIGKILL", SHOWN_S)
    take("killed")


def test_plain_kernels_run_beside_a_waiting_one(lab: Lab) -> None:
    hold_gpu(lab)
    lab.api("POST", "kernels", {"name": "gpu"})  # it waits
    lab.open()
    lab.create_notebook("plain")
    lab.run(0, "print('plain', 40 + 2)")
    assert lab.output(0, "plain 42", SHOWN_S).strip() == "plain 42"


def test_the_page_of_the_clusters(lab: Lab, take: Take) -> None:
    hold_gpu(lab)
    lab.api("POST", "kernels", {"name": "gpu"})
    lab.visit("roost")
    lab.page.get_by_role("heading", name="Queue").wait_for(timeout=SHOWN_S * 1000)
    assert "0 of 1" in lab.page.locator(".totals").inner_text()
    take("clusters")
