"""Notebooks in JupyterLab whose kernels wait for GPUs, as people use them."""

from __future__ import annotations

import re
from collections.abc import Callable

from kit.jupyter.browser import Lab
from roost.testing.deadlines import allow_s, until_blocking

Take = Callable[[str], None]
SHOWN_S = 15.0
"""How long a text or a result may take to appear. An idle machine needs less than a second."""


def hold_gpus(lab: Lab) -> str:
    """Let a kernel hold all GPUs. Return its id."""
    kernel_id = str(lab.api("POST", "kernels", {"name": "gpu"})["id"])
    until_it_runs(lab, kernel_id)
    return kernel_id


def wait_in_queue(lab: Lab, code: str) -> str:
    """Open a notebook that waits for the GPUs and has run a cell. Return the id of the kernel that holds them."""
    holder = hold_gpus(lab)
    lab.open()
    lab.create_notebook("gpu")
    lab.run(0, code)
    assert "Position 1 in the queue" in lab.output(0, "Position", SHOWN_S)
    return holder


def until_it_runs(lab: Lab, kernel_id: str) -> None:
    until_blocking(
        lambda: " GPU" in lab.get(f"roost/api/kernels/{kernel_id}")["text"], "the kernel runs", SHOWN_S
    )


def test_a_waiting_cell_shows_its_place_and_runs_when_the_gpus_are_free(lab: Lab, take: Take) -> None:
    holder = wait_in_queue(lab, "print('on', 40 + 2)")
    take("waiting")
    lab.api("DELETE", f"kernels/{holder}")
    assert lab.output(0, "on 42", SHOWN_S).strip() == "on 42"


def test_an_interrupt_takes_the_notebook_out_of_the_queue(lab: Lab, take: Take) -> None:
    wait_in_queue(lab, "print(1)")
    lab.press("Escape", "i", "i")
    assert "withdrawn" in lab.output(0, "withdrawn", SHOWN_S)
    take("interrupted")


def test_a_restart_while_waiting_ends_the_cells_and_keeps_the_place(lab: Lab, take: Take) -> None:
    holder = wait_in_queue(lab, "print('first')")
    lab.press("Escape", "0", "0")
    lab.page.get_by_role("button", name="Confirm Kernel Restart").click()
    lab.prompt(0, "[ ]:")  # the Lab itself lets go of the cell, and shows no message about it any more
    take("restarted")
    lab.run(1, "print('second')")
    assert "Position 1 in the queue" in lab.output(1, "Position", SHOWN_S)
    lab.api("DELETE", f"kernels/{holder}")
    assert lab.output(1, "second", SHOWN_S).strip() == "second"
    assert "first" not in lab.output(0).splitlines()


def test_a_refusal_says_why(lab: Lab, take: Take) -> None:
    lab.open()
    lab.card("huge").click()
    shown = lab.page.locator(".jp-Dialog-body").filter(has_text="64 GPUs")
    shown.wait_for(timeout=allow_s(SHOWN_S * 1000))
    take("refused")
    assert lab.api("GET", "kernels") == []


def test_three_notebooks_wait_and_move_up(lab: Lab, take: Take) -> None:
    holder = hold_gpus(lab)
    lab.open()
    kernels = []
    for place in (1, 2, 3):
        if place > 1:
            lab.open_launcher()
        lab.create_notebook("gpu")
        lab.run(0, f"print('ran as number', {place})")
        lab.output(0, f"Position {place} in the queue", SHOWN_S)
        kernels.append(lab.api("GET", "sessions")[-1]["kernel"]["id"])
    take("three")
    lab.api("DELETE", f"kernels/{holder}")
    lab.output(0, "Position 2 in the queue", SHOWN_S)  # the third notebook is in sight
    for kernel_id in kernels[:2]:
        until_it_runs(lab, kernel_id)
        lab.api("DELETE", f"kernels/{kernel_id}")
    assert lab.output(0, "number 3", SHOWN_S).strip() == "ran as number 3"


def test_a_cell_that_waits_outlives_a_reload_and_runs_once(lab: Lab, take: Take) -> None:
    holder = wait_in_queue(lab, "print('ran'); open('ran', 'a').write('x')")
    lab.reload()
    lab.api("DELETE", f"kernels/{holder}")
    (session,) = lab.api("GET", "sessions")
    kernel_id = session["kernel"]["id"]
    until_it_runs(lab, kernel_id)
    lab.run(
        0, "import pathlib; file = pathlib.Path('ran'); print('size', len(file.read_text())); file.unlink()"
    )
    assert lab.output(0, "size", SHOWN_S).strip() == "size 1"


def test_a_kernel_that_is_killed_says_why(lab: Lab, take: Take) -> None:
    lab.open()
    lab.create_notebook("gpu")
    lab.run(0, "print('up')")
    lab.output(0, "up", SHOWN_S)
    lab.run(1, "import os; os.kill(os.getpid(), 9)")
    assert "SIGKILL" in lab.output(1, "SIGKILL", SHOWN_S)
    take("killed")


def test_plain_kernels_run_beside_a_waiting_one(lab: Lab) -> None:
    hold_gpus(lab)
    lab.api("POST", "kernels", {"name": "gpu"})  # it waits
    lab.open()
    lab.create_notebook("plain")
    lab.run(0, "print('plain', 40 + 2)")
    assert lab.output(0, "plain 42", SHOWN_S).strip() == "plain 42"
    assert lab.status().inner_text() == ""


def said_on_card(lab: Lab, name: str) -> str:
    """Return what roost adds to a kernelspec's card in the launcher, which may be some moments after the card."""
    return str(lab.card(name).evaluate("card => getComputedStyle(card, '::after').content"))


def test_the_status_and_the_launcher_show_what_a_kernel_asks_for_and_uses(lab: Lab, take: Take) -> None:
    holder = hold_gpus(lab)
    lab.open()
    until_blocking(
        lambda: re.match(r'"\d GPUs?.*1 GiB', said_on_card(lab, "gpu")), "the card shows the request", SHOWN_S
    )
    assert said_on_card(lab, "plain") == "none"
    take("launcher")
    lab.create_notebook("gpu")
    lab.status("position 1 in the queue")
    lab.api("DELETE", f"kernels/{holder}")
    status = lab.status("MiB of 1 GiB")
    assert re.fullmatch(r"\S+ · \d GPUs? · [\d.]+ MiB of 1 GiB", status.inner_text())
    assert "Asked for: " in (status.get_attribute("title") or "")
    take("status")


def test_notebook_7_shows_the_status_too(lab: Lab, take: Take) -> None:
    lab.write_notebook("seven.ipynb", "gpu")
    lab.visit("notebooks/seven.ipynb")
    lab.status("MiB of 1 GiB")
    take("notebook-7")


def test_the_page_of_the_clusters(lab: Lab, take: Take) -> None:
    hold_gpus(lab)
    lab.api("POST", "kernels", {"name": "gpu"})
    lab.visit("roost")
    lab.page.get_by_role("heading", name="Queue").wait_for(timeout=allow_s(SHOWN_S * 1000))
    assert "GPUs are wholly free" in lab.page.locator(".totals").inner_text()
    take("clusters")
    lab.page.emulate_media(color_scheme="dark")
    take("clusters-dark")
