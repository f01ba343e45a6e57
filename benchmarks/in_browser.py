"""A notebook in the real JupyterLab, in headless Chromium, as a person uses it: plain kernels against roost's.

first      in a new server that shows the launcher: card clicked → result of a cell that is run at once
shown      a cell is run while another kernel has the GPU → it shows its place in the queue and the reason
released   the kernel with the GPU is shut down → the waiting cell's result has appeared

Without roost JupyterLab drops a cell that is run before POST /api/sessions has answered. Such a cell counts as lost,
and is run again half a second later, as a person would do it. The servers of `first` are new, and for roost the
service and the agent too. Claims about medians: first ≤ 1 × plain, shown and released ≤ 1 s. Claim about lost cells:
none with roost. `early_cells.py` counts lost cells in more ways.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from claims import SKIPPED, Report, parser
from page_tables import compare_with_plain

from roost.bench.report import take_turns
from roost.bench.world import (
    PLAIN,
    ROOST,
    RUNTIME,
    elapsed_ms,
    end_processes,
    private_world,
    write_config,
    write_kernelspec,
)

sys.path.append(str(Path(__file__).parents[1] / "docs/examples"))
sys.path.append(str(Path(__file__).parents[1] / "tests"))

from kit.jupyter import browser
from roost.scheduler.client.client import disconnect
from roost.testing.deadlines import until_blocking

LOST_AFTER_S = 0.5
"""A cell counts as lost, and is run again, if its prompt is still `[ ]:` after this time."""
CARDS = {"plain": f"Python ({PLAIN})", "roost": f"Python ({ROOST})"}
GPU_CARD = "GPU"
TABLE = compare_with_plain(
    name="in_browser",
    rows={
        "first kernel of a new server: card clicked → result of a cell that is run at once": "first",
        "such cells that JupyterLab dropped at first": "first: lost",
        "a GPU is held: cell run → its line with place and reason": "shown",
        "the GPU is released → result of the waiting cell": "released",
    },
    plain="plain kernel",
    packages=("jupyter_server", "jupyterlab"),
)


@contextmanager
def open_lab(chromium: browser.Browser, root: Path, name: str) -> Iterator[browser.Lab]:
    """Start a JupyterLab and open its launcher. The server with the name `roost` has roost's extensions."""
    options = [f"--ServerApp.jpserver_extensions=roost={name == 'roost'}"]
    if name == "roost":
        options.append(f"--LabApp.extra_labextensions_path={root / 'jupyter_config_dir/labextensions'}")
    with browser.running_server(root / "notebooks", options=options) as server:
        context = chromium.new_context(viewport={"width": 1280, "height": 800})
        try:
            lab = browser.Lab(context.new_page(), server)
            lab.open()
            yield lab
        finally:
            context.close()
            lab.end_kernels()


def click_and_run(lab: browser.Lab, card: str) -> tuple[float, bool]:
    """Click a card and run a cell. Return the milliseconds until its result, and whether it was lost at first."""
    began, is_lost = time.perf_counter(), False
    lab.card(card).click()
    lab.cell(0).wait_for(timeout=browser.OPEN_S * 1000)
    while True:
        lab.run(0, "40 + 2")
        ran_at = time.perf_counter()
        while time.perf_counter() - ran_at < LOST_AFTER_S or lab.prompt_of(0) != "[ ]:":
            if "42" in lab.text(0):
                return elapsed_ms(began), is_lost
            lab.page.wait_for_timeout(10)
        is_lost = True


def measure_first(report: Report, chromium: browser.Browser, root: Path, rounds: int) -> None:
    before = os.environ[RUNTIME]
    lost: Counter[str] = Counter()
    for name, is_warm in take_turns("first", list(CARDS), rounds=rounds):
        with tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp") as folder:
            os.environ[RUNTIME] = folder
            try:
                with open_lab(chromium, root, name) as lab:
                    took_ms, is_lost = click_and_run(lab, CARDS[name])
            finally:
                os.environ[RUNTIME] = before
                end_processes(folder)
        if is_warm:
            report.add(f"first/{name}", took_ms, "ms")
            lost[name] += is_lost
    for name in CARDS:
        report.add(f"first: lost/{name}", lost[name], f"of {rounds}")


def measure_waiting(report: Report, lab: browser.Lab, rounds: int) -> None:
    for _, is_warm in take_turns("waiting", ["roost"], rounds=rounds):
        holder = lab.api("POST", "kernels", {"name": "gpu"})["id"]
        until_blocking(
            lambda id_=holder: "GPU" in lab.get(f"roost/api/kernels/{id_}")["text"],  # type: ignore[misc]
            "the kernel has the GPU",
            browser.CELL_S,
        )
        lab.open()
        lab.create_notebook(GPU_CARD)
        began = time.perf_counter()
        lab.run(0, "40 + 2")
        lab.output(0, "Position 1 in the queue")
        shown_ms = elapsed_ms(began)
        lab.page.wait_for_timeout(1500)
        began = time.perf_counter()
        lab.api("DELETE", f"kernels/{holder}")
        lab.output(0, "42")
        released_ms = elapsed_ms(began)
        lab.end_kernels()
        if is_warm:
            report.add("shown/roost", shown_ms, "ms")
            report.add("released/roost", released_ms, "ms")


def measure(arguments: Namespace, root: Path) -> Report:
    rounds = arguments.rounds or (2 if arguments.quick else 10)
    report = Report("in_browser", rounds=rounds)
    with browser.chromium() as chromium:
        measure_first(report, chromium, root, rounds)
        with open_lab(chromium, root, "roost") as lab:
            measure_waiting(report, lab, rounds)
    report.ratio("first: roost ÷ plain", "first/roost", "first/plain")
    report.claim("first: roost ÷ plain", at_most=1.0)
    report.claim("first: lost/roost", at_most=0.0)
    for stage in ("shown", "released"):
        report.claim(f"{stage}/roost", at_most=1000.0)
    return report


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions (default 10; quick 2)")
    arguments = options.parse_args()
    if reason := browser.why_not():
        print(reason)
        return SKIPPED
    with private_world({"plain": PLAIN, "roost": ROOST}) as root:
        (root / "notebooks").mkdir()
        write_config(root, {"RoostLocalBackend": {"gpus": 1, "gpu_model": "T4"}})
        browser.prepare_lab(root / "jupyter_config_dir")
        write_kernelspec(root / "jupyter_path/kernels/gpu", ROOST, {"gpus": 1}, display_name=GPU_CARD)
        try:
            report = measure(arguments, root)
        finally:
            disconnect()
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
