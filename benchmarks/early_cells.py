"""Cells that are run before JupyterLab has a session for their notebook: how many does it drop?

at once     a cell that is run as soon as the notebook has appeared
0.3 s       a cell that is run 0.3 s after that
0.6 s       a cell that is run 0.6 s after that
new server  a cell that is run at once in the first notebook of a server, of the service and of the agent
GPU held    a cell that is run at once while another kernel has the GPU

The cells are run with plain kernels and roost's, in a JupyterLab in headless Chromium. Each stage has 100 cells with
roost's plug-ins for cells, and 20 with these turned off (`roost:waiting-cells`). Claim: with them no cell is lost. A
cell without a result after two minutes counts as lost, too.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from claims import SKIPPED, Report, parser
from page_tables import PageTable

from roost.bench.world import (
    PLAIN,
    ROOST,
    RUNTIME,
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

PAUSES_MS = {"at once": 0, "0.3 s": 300, "0.6 s": 600}
CARDS = {"plain": f"Python ({PLAIN})", "roost": f"Python ({ROOST})"}
GPU_CARD = "GPU"
SIDES = {"on": (), "off": ("roost:waiting-cells",)}
"""The plug-ins that each side disables."""
TABLE = PageTable(
    name="early_cells",
    columns={
        "plain kernel, without": "{}/plain/off",
        "plain kernel": "{}/plain/on",
        "roost's kernel, without": "{}/roost/off",
        "roost's kernel": "{}/roost/on",
    },
    rows={
        "cells dropped that are run at once": "at once",
        "after 0.3 s": "0.3 s",
        "after 0.6 s": "0.6 s",
        "at once on a new server": "new server",
        "at once while the GPU is held": ("", "", "GPU held/roost/off", "GPU held/roost/on"),
    },
    packages=("jupyter_server", "jupyterlab"),
    has_picture=False,
)


def disable(root: Path, plugins: tuple[str, ...]) -> None:
    """Disable plug-ins of the Lab, for pages that are loaded later."""
    file = root / "jupyter_config_dir/labconfig/page_config.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"disabledExtensions": dict.fromkeys(plugins, True)}))


@contextmanager
def open_lab(chromium: browser.Browser, root: Path) -> Iterator[browser.Lab]:
    """Start a JupyterLab with roost's extensions, and open its launcher."""
    options = [
        browser.EXTENSION,
        f"--LabApp.extra_labextensions_path={root / 'jupyter_config_dir/labextensions'}",
    ]
    with browser.running_server(root / "notebooks", options=options) as server:
        context = chromium.new_context(viewport={"width": 1280, "height": 800})
        try:
            lab = browser.Lab(context.new_page(), server)
            lab.open()
            yield lab
        finally:
            context.close()
            lab.end_kernels()


def count_on_new_servers(chromium: browser.Browser, root: Path, kernel: str, number: int) -> int:
    before = os.environ[RUNTIME]
    lost = 0
    for _ in range(number):
        with tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp") as folder:
            os.environ[RUNTIME] = folder
            try:
                with open_lab(chromium, root) as lab:
                    lost += lab.run_early(kernel) or not lab.has_result()
            finally:
                os.environ[RUNTIME] = before
                end_processes(folder)
    return lost


def until_it_has_the_gpu(lab: browser.Lab, kernel_id: str) -> None:
    until_blocking(
        lambda: "GPU" in lab.get(f"roost/api/kernels/{kernel_id}")["text"],
        "the kernel has the GPU",
        browser.RESULT_S,
    )


def count_while_the_gpu_is_held(lab: browser.Lab, number: int) -> int:
    lost = 0
    for _ in range(number):
        holder = lab.api("POST", "kernels", {"name": "gpu"})["id"]
        until_it_has_the_gpu(lab, holder)
        lab.open()
        is_lost = lab.run_early(GPU_CARD)
        if not is_lost:
            lab.output(0, "Position 1 in the queue")
        lab.wait_for_session()
        (session,) = lab.api("GET", "sessions")
        lab.api("DELETE", f"kernels/{holder}")
        until_it_has_the_gpu(lab, session["kernel"]["id"])
        lost += is_lost or not lab.has_result()
        lab.end_kernels()
    return lost


def measure(arguments: Namespace, root: Path) -> Report:
    rounds = arguments.rounds or (2 if arguments.quick else 100)
    report = Report("early_cells", rounds=rounds)

    def add(stage: str, side: str, lost: int) -> None:
        report.add(f"{stage}/{side}", lost, f"of {number}")
        print(f"{stage}, {side}: {lost} of {number} lost", file=sys.stderr, flush=True)

    with browser.chromium() as chromium:
        for side, plugins in SIDES.items():
            number = rounds if side == "on" else math.ceil(rounds / 5)
            disable(root, plugins)
            with open_lab(chromium, root) as lab:
                for stage, pause_ms in PAUSES_MS.items():
                    for name, card in CARDS.items():
                        add(stage, f"{name}/{side}", lab.count_lost([card] * number, pause_ms))
                add("GPU held", f"roost/{side}", count_while_the_gpu_is_held(lab, number))
            for name, card in CARDS.items():
                add("new server", f"{name}/{side}", count_on_new_servers(chromium, root, card, number))
    for figure in list(report.samples):
        if figure.endswith("/on"):
            report.claim(figure, at_most=0.0)
    return report


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="cells of each stage (default 100; quick 2)")
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
