"""Cells that are run before JupyterLab has a session for their notebook.

JupyterLab drops such a cell without a word, with any kernel. roost's lab extension keeps it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kit.jupyter.browser import CELL_S, OPEN_S, HeldRequests, Lab
from roost.testing.deadlines import allow_s, until_blocking

Take = Callable[[str], None]
NUMBER = 20
DROPPED_S = 1.0
"""How long a dropped cell may take to show `[*]`."""
NO_KERNEL = "No Kernel"


OTHER_EXTENSION = """
let shared = {};
window._JUPYTERLAB = window._JUPYTERLAB || {};
window._JUPYTERLAB.another = {
  init: (modules) => { shared = modules; },
  get: async () => {
    const [version] = Object.values(shared["@jupyterlab/notebook"]);
    const { INotebookCellExecutor, runCell } = (await version.get())();
    const executor = { runCell: (options) => { window.ranByAnother = true; return runCell(options); } };
    const plugin = { id: "another:x", autoStart: true, provides: INotebookCellExecutor, activate: () => executor };
    return () => ({ __esModule: true, default: [plugin] });
  },
};
"""
"""An extension that runs cells in its own way. The Lab loads it before roost's."""


@pytest.fixture
def other_extension() -> Iterator[None]:
    """Install `OTHER_EXTENSION` for pages that are loaded later."""
    folder = Path(os.environ["JUPYTER_PATH"], "labextensions", "another")
    (folder / "static").mkdir(parents=True)
    build = {"load": "static/remoteEntry.js", "extension": "./extension"}
    about = {"name": "another", "version": "1.0.0", "jupyterlab": {"extension": True, "_build": build}}
    (folder / "package.json").write_text(json.dumps(about))
    (folder / "static" / "remoteEntry.js").write_text(OTHER_EXTENSION)
    yield
    shutil.rmtree(folder)


@pytest.fixture
def page_config() -> Iterator[Callable[..., None]]:
    """Return a function that disables plug-ins of the Lab, for pages that are loaded later."""
    file = Path(os.environ["JUPYTER_CONFIG_DIR"], "labconfig", "page_config.json")
    file.parent.mkdir(exist_ok=True)

    def disable(*plugins: str) -> None:
        file.write_text(json.dumps({"disabledExtensions": dict.fromkeys(plugins, True)}))

    yield disable
    file.unlink(missing_ok=True)


def open_early(lab: Lab, kernel: str, *codes: str) -> HeldRequests:
    """Open a notebook without a session, and run cells in it."""
    lab.open()
    held = lab.hold_session()
    lab.card(kernel).click()
    lab.cell(0).wait_for(timeout=allow_s(OPEN_S * 1000))
    for i, code in enumerate(codes):
        lab.run(i, code)
        assert lab.prompt_of(i) == "[*]:"
    until_blocking(lambda: at_least_one(lab, held), "a request is held", CELL_S)
    return held


def at_least_one(lab: Lab, held: HeldRequests) -> bool:
    lab.page.wait_for_timeout(20)  # the requests arrive only meanwhile
    return held.number > 0


def write_many(lab: Lab, name: str, kernel: str) -> None:
    """Write a notebook with many cells, and make the page so high that the Lab draws them all."""
    lab.page.set_viewport_size({"width": 1280, "height": 2400})
    lab.write_notebook(name, kernel, *(f"print('cell', {i})" for i in range(NUMBER)))


def choose(lab: Lab, kernel: str) -> None:
    question = lab.dialog("Select Kernel")
    question.locator("select").select_option(label=kernel)
    question.get_by_role("button", name="Select").last.click()


def open_many(lab: Lab, name: str) -> None:
    """Open a notebook of `write_many`. "Run All" runs only the cells that the Lab has read."""
    lab.open(name)
    wait_for_prompts(lab, "[ ]:")


def wait_for_prompts(lab: Lab, text: str) -> None:
    """Wait until all cells of `write_many` are drawn and have this prompt."""
    until_blocking(
        lambda: all(lab.prompt_of(i) == text for i in range(NUMBER)),
        f"all cells have the prompt {text}",
        CELL_S,
    )


@pytest.mark.parametrize("pause_ms", [0, 300, 600])
def test_no_cell_is_lost(lab: Lab, pause_ms: int) -> None:
    assert lab.count_lost(["cpu", "plain"] * 5, pause_ms) == 0


def test_no_cell_is_lost_while_the_gpu_is_held(lab: Lab) -> None:
    holder = lab.api("POST", "kernels", {"name": "gpu"})["id"]
    until_blocking(
        lambda: " GPU" in lab.get(f"roost/api/kernels/{holder}")["text"], "a kernel has the GPU", CELL_S
    )
    lab.open()
    for _ in range(10):
        assert not lab.run_early("gpu")
        lab.output(0, "Position 1 in the queue")
        (session,) = lab.api("GET", "sessions")
        lab.api("DELETE", f"sessions/{session['id']}")
        lab.open_launcher()
    assert not lab.run_early("gpu")
    lab.api("DELETE", f"kernels/{holder}")
    lab.output(0, "42")


@pytest.mark.parametrize("kernel", ["gpu", "plain"])
def test_three_cells_keep_their_order_and_their_code(lab: Lab, take: Take, kernel: str) -> None:
    held = open_early(lab, kernel, "x = [1]", "x.append(2)", "x.append(3); print(x)")
    lab.page.locator(".roost-waits").filter(has_text="session").wait_for(timeout=allow_s(CELL_S * 1000))
    assert lab.page.locator(".roost-waits").count() == 1
    lab.cell(3).locator(".cm-content").click()
    lab.press("Escape", "m", "Enter")
    lab.page.locator(".jp-MarkdownCell .cm-focused").wait_for(timeout=allow_s(CELL_S * 1000))
    lab.page.keyboard.insert_text("# a heading")
    lab.press("Shift+Enter")
    lab.page.locator(".jp-MarkdownOutput h1").wait_for(timeout=allow_s(CELL_S * 1000))  # text does not wait
    lab.cell(1).locator(".cm-content").click()
    lab.press("Control+a")
    lab.page.keyboard.insert_text("x.append('typed while it waited')")
    take(f"early-{kernel}")
    held.release()
    assert lab.output(2, "[").strip() == "[1, 2, 3]"
    for i in range(3):
        lab.prompt(i, f"[{i + 1}]:")
    assert "typed while it waited" in lab.cell(1).locator(".cm-content").inner_text()
    assert lab.page.locator(".roost-waits").count() == 0
    lab.run(3, "print(x)")
    assert lab.output(3, "[").strip() == "[1, 2, 3]"


def test_all_cells_at_once_run_in_their_order(lab: Lab) -> None:
    write_many(lab, "many.ipynb", "plain")
    held = lab.hold_session()
    open_many(lab, "many.ipynb")
    lab.run_all()
    wait_for_prompts(lab, "[*]:")
    held.release()
    for i in range(NUMBER):
        assert lab.output(i, f"cell {i}").strip() == f"cell {i}"
        lab.prompt(i, f"[{i + 1}]:")


def test_a_refused_start_lets_go_of_all_cells_once(lab: Lab, take: Take) -> None:
    write_many(lab, "refused.ipynb", "huge")
    held = lab.hold_session()
    open_many(lab, "refused.ipynb")
    lab.run_all()
    wait_for_prompts(lab, "[*]:")
    held.release()
    refused = lab.dialog("64 GPUs")
    wait_for_prompts(lab, "[ ]:")
    take("early-refused")
    refused.get_by_role("button").first.click()
    lab.dialog("Select Kernel").get_by_role("button", name=NO_KERNEL).click()
    lab.page.wait_for_timeout(DROPPED_S * 1000)
    assert lab.page.locator(".jp-Dialog").count() == 0
    assert lab.api("GET", "kernels") == []


def test_a_missing_kernelspec_asks_once_and_the_cells_run(lab: Lab) -> None:
    write_many(lab, "missing.ipynb", "missing")
    held = lab.hold("GET", "contents/missing.ipynb/checkpoints")
    open_many(lab, "missing.ipynb")
    lab.run_all()
    wait_for_prompts(lab, "[*]:")
    held.release()
    choose(lab, "plain")
    for i in range(NUMBER):
        assert lab.output(i, f"cell {i}").strip() == f"cell {i}"
    assert lab.page.locator(".jp-Dialog").count() == 0


def test_a_cancelled_question_lets_go_of_the_cells_and_the_next_run_asks_once(lab: Lab) -> None:
    write_many(lab, "cancelled.ipynb", "missing")
    held = lab.hold("GET", "contents/cancelled.ipynb/checkpoints")
    open_many(lab, "cancelled.ipynb")
    lab.run_all()
    held.release()
    lab.dialog("Select Kernel").get_by_role("button", name=NO_KERNEL).click()
    wait_for_prompts(lab, "[ ]:")
    lab.run_all()
    choose(lab, "plain")
    for i in range(NUMBER):
        assert lab.output(i, f"cell {i}").strip() == f"cell {i}"
    assert lab.page.locator(".jp-Dialog").count() == 0


def test_an_interrupt_lets_go_of_the_cells(lab: Lab) -> None:
    held = open_early(lab, "plain", "x = 1", "print(x)")
    lab.press("Escape", "i", "i")
    lab.prompt(0, "[ ]:")
    lab.prompt(1, "[ ]:")
    held.release()
    lab.run(2, "print('x' in globals())")
    assert lab.output(2).strip() == "False"
    lab.prompt(2, "[1]:")


def test_a_restart_ends_the_cells(lab: Lab) -> None:
    held = open_early(lab, "plain", "x = 1; import time; time.sleep(100)", "print(x)")
    lab.press("Escape", "0", "0")
    lab.prompt(0, "[ ]:")
    lab.prompt(1, "[ ]:")
    held.release()
    confirm = lab.page.get_by_role("button", name="Confirm Kernel Restart")
    with lab.page.expect_response(lambda answer: "/restart" in answer.url, timeout=allow_s(CELL_S * 1000)):
        confirm.click(timeout=allow_s(CELL_S * 1000))
    # The Lab drops a cell that is run while a kernel restarts.
    lab.page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(
        timeout=allow_s(CELL_S * 1000)
    )
    lab.run(2, "print('x' in globals())")
    assert lab.output(2).strip() == "False"


def test_a_deleted_cell_does_not_run(lab: Lab) -> None:
    held = open_early(lab, "plain", "x = [1]", "x.append(2)", "print(x)")
    lab.cell(1).locator(".jp-InputPrompt").click()
    lab.press("d", "d")
    until_blocking(lambda: lab.page.locator(".jp-CodeCell").count() == 3, "the cell is deleted", CELL_S)
    held.release()
    assert lab.output(1, "[").strip() == "[1]"


def test_a_moved_cell_runs(lab: Lab) -> None:
    held = open_early(lab, "plain", "print('moved')", "print('stays')")
    lab.cell(0).locator(".jp-InputPrompt").click()
    lab.press("Control+Shift+ArrowDown")
    until_blocking(lambda: "stays" in lab.cell(0).inner_text(), "the cell is moved", CELL_S)
    held.release()
    assert lab.output(1, "moved").strip() == "moved"
    lab.prompt(1, "[1]:")
    lab.prompt(0, "[2]:")


def test_a_notebook_that_is_closed_ends_its_cells(lab: Lab) -> None:
    problems: list[str] = []
    lab.page.on("pageerror", lambda problem: problems.append(str(problem)))
    held = open_early(lab, "plain", "open('ran-closed', 'w')")
    lab.page.locator(".jp-mod-current[role=tab] .lm-TabBar-tabCloseIcon").first.click()
    discard = lab.page.get_by_role("button", name=re.compile("Discard"))
    discard.click(timeout=allow_s(CELL_S * 1000))
    until_blocking(
        lambda: lab.page.locator(".jp-NotebookPanel").count() == 0, "the notebook is closed", CELL_S
    )
    held.release()
    lab.open_launcher()
    lab.create_notebook("plain")
    lab.run(0, "import os; print(os.path.exists('ran-closed'))")
    assert lab.output(0).strip() == "False"
    assert set(problems) <= {"Disposed"}  # which JupyterLab says itself, without any cell


def test_a_kernel_that_dies_ends_the_cells_behind(lab: Lab) -> None:
    held = open_early(lab, "gpu", f"import os; os.kill(os.getpid(), {signal.SIGKILL:d})", "print('behind')")
    held.release()
    lab.prompt(0, "[ ]:")
    lab.prompt(1, "[ ]:")
    assert "behind" not in lab.text(1)


def test_a_network_that_is_cut_lets_go_of_the_cells(lab: Lab) -> None:
    held = open_early(lab, "plain", "x = 1", "print(x)")
    held.cut()
    lab.dialog("Error Starting Kernel").get_by_role("button").first.click()
    lab.prompt(0, "[ ]:")
    lab.prompt(1, "[ ]:")
    choose(lab, "plain")
    lab.run(1, "print('again')")
    assert lab.output(1, "again", CELL_S).strip() == "again"


def test_a_notebook_without_a_checkpoint_asks_for_its_kernel_later(lab: Lab) -> None:
    """The Lab never initialises the session of such a notebook."""
    lab.write_notebook("unsaved.ipynb", "plain", "print('ran')")
    held = lab.hold("GET", "contents/unsaved.ipynb/checkpoints")
    lab.open("unsaved.ipynb")
    lab.run_again(0)
    lab.prompt(0, "[*]:")
    held.cut()
    lab.dialog("File Load Error").get_by_role("button").first.click()
    lab.dialog("Save your work").get_by_role("button", name="Cancel").click()  # the Lab would close it
    lab.prompt(0, "[ ]:")
    lab.run_again(0)
    choose(lab, "plain")
    assert lab.output(0, "ran").strip() == "ran"


def test_a_console_keeps_its_cells(lab: Lab) -> None:
    lab.open()
    held = lab.hold_session()
    lab.page.locator('.jp-LauncherCard[data-category="Console"][title="plain"]:visible').first.click()
    prompt = lab.page.locator(".jp-CodeConsole-promptCell .cm-content")
    for code in ("x = 40", "print('sum', x + 2)"):
        prompt.click(timeout=allow_s(OPEN_S * 1000))
        lab.page.keyboard.insert_text(code)
        lab.press("Shift+Enter")
    cells = lab.page.locator(".jp-CodeConsole-content .jp-CodeCell")
    until_blocking(lambda: cells.count() == 2, "the console has two cells", CELL_S)
    assert [cell.locator(".jp-InputPrompt").inner_text() for cell in cells.all()] == ["[*]:", "[*]:"]
    held.release()
    cells.last.locator(".jp-OutputArea-output").filter(has_text="sum 42").wait_for(
        timeout=allow_s(CELL_S * 1000)
    )


def test_notebook_7_keeps_cells(lab: Lab) -> None:
    lab.write_notebook("early-seven.ipynb", "plain", "x = 40", "print('sum', x + 2)")
    held = lab.hold_session()
    lab.visit("notebooks/early-seven.ipynb")
    for i in range(2):
        lab.cell(i).wait_for(timeout=allow_s(OPEN_S * 1000))
        lab.run_again(i)
        lab.prompt(i, "[*]:")
    held.release()
    assert lab.output(1, "sum").strip() == "sum 42"


def test_the_setting_turns_it_off(lab: Lab, page_config: Callable[..., None]) -> None:
    page_config("roost:waiting-cells")
    lab.open()
    held = lab.hold_session()
    lab.card("plain").click()
    lab.cell(0).wait_for(timeout=allow_s(OPEN_S * 1000))
    until_blocking(lambda: at_least_one(lab, held), "a request is held", CELL_S)
    lab.run(0, "print('dropped')")
    lab.page.wait_for_timeout(DROPPED_S * 1000)
    assert lab.prompt_of(0) == "[ ]:"
    held.release()
    lab.wait_for_session()

    def is_taken() -> bool:
        """Run a cell, which JupyterLab drops too while it is slow to notice the session."""
        lab.run(1, "print('ran')")
        lab.page.wait_for_timeout(DROPPED_S * 1000)
        return lab.prompt_of(1) != "[ ]:"

    until_blocking(is_taken, "the Lab takes the cell", OPEN_S)
    assert lab.output(1, "ran").strip() == "ran"
    assert "dropped" not in lab.text(0)


def test_another_executor_is_left_alone(
    lab: Lab, page_config: Callable[..., None], other_extension: None
) -> None:
    page_config("@jupyterlab/notebook-extension:cell-executor")
    lab.open()
    lab.create_notebook("plain")
    idle = lab.page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
    idle.wait_for(timeout=allow_s(CELL_S * 1000))  # the Lab itself drops a cell that is run before
    lab.run(0, "print('ran')")
    assert lab.output(0, "ran").strip() == "ran"
    assert lab.page.evaluate("window.ranByAnother")
