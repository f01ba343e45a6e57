"""JupyterLab on a Ray cluster that loses its daemons or a node: what three notebooks show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.jupyter import browser
from kit.jupyter.kernelspecs import kernelspecs
from kit.machine.daemons import settle
from roost.scheduler.client.client import connect, disconnect
from roost.testing.clusters.raylets import Machine, Raylets, why_not
from roost.testing.deadlines import allow_s, until_blocking
from roost.testing.leftovers import VARIABLE

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

MACHINES = (Machine(cpus=4, gpus=2, gpu_model="T4"), Machine(cpus=2, gpus=1, gpu_model="T4"))
NOTEBOOKS = 3
TOLD_S = 10.0
"""Within this time after the end of the cluster, each notebook says what follows."""
BACK_S = 60.0


@pytest.fixture
def cluster(module_runtime_dir: Path) -> Iterator[Raylets]:
    with Raylets(
        *MACHINES, keeps_state=True, environment={VARIABLE: f"{module_runtime_dir}/node"}
    ) as started:
        yield started


@pytest.fixture
def ray_server(
    cluster: Raylets, module_runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[browser.JupyterServer]:
    """Return a JupyterLab with a kernelspec for one GPU."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    browser.prepare_lab(tmp_path)
    kernelspecs(tmp_path, "gpu", backend="ray", config={"gpus": 1})
    with browser.running_server(tmp_path, options=[browser.EXTENSION]) as server:
        yield server
    disconnect()
    settle(module_runtime_dir)


@pytest.fixture
def pages(ray_server: browser.JupyterServer) -> Iterator[list[browser.Lab]]:
    """Return pages, each with a notebook that has one GPU."""
    with browser.chromium() as running:
        opened = []
        for number in range(NOTEBOOKS):
            page = running.new_context(viewport={"width": 1280, "height": 800}).new_page()
            lab = browser.Lab(page, ray_server)
            dialog = page.locator(".jp-Dialog").filter(has_text="Kernel Restarting")
            page.add_locator_handler(dialog, lambda shown: shown.get_by_role("button").first.click())
            lab.write_notebook(f"train-{number}.ipynb", "gpu", f"mine = {number}", "mine", "mine", "mine")
            lab.open(f"train-{number}.ipynb")
            lab.wait_for_session(number + 1)
            lab.run_again(0)
            lab.prompt(0, "[1]:")
            opened.append(lab)
        yield opened
        opened[0].end_kernels()


def test_notebooks_say_that_their_cluster_is_away(cluster: Raylets, pages: list[browser.Lab]) -> None:
    cluster.kill_gcs()
    for node in cluster.nodes:
        cluster.kill_raylet(node.address)
    for number, lab in enumerate(pages):
        shown = lab.page.locator(".roost-status").filter(has_text="⚠ the Ray cluster is away")
        shown.wait_for(timeout=allow_s(TOLD_S * 1000), state="attached")
        lab.run_again(1)
        text = lab.output(1, str(number))
        assert "roost: the Ray cluster is away; this kernel lives on." in text
        lab.take(f"a-cluster-is-away-{number}")
        lab.run_again(2)
        assert "roost:" not in lab.output(2, str(number)), "a notebook is told once"
    reasons = {kernel["reason"] for kernel in pages[0].api("GET", "kernels")}
    assert reasons == {"the Ray cluster is away; this kernel lives on"}
    cluster.restart_gcs()
    for node in cluster.nodes:
        cluster.start_again(node.address)
    for number, lab in enumerate(pages):
        calm = lab.page.locator(".roost-status").filter(has_text="GPU").filter(has_not_text="⚠")
        calm.wait_for(timeout=allow_s(BACK_S * 1000), state="attached")
        lab.run_again(3)
        assert "roost:" not in lab.output(3, str(number))
        lab.take(f"a-cluster-is-back-{number}")
    assert not any(kernel.get("reason") for kernel in pages[0].api("GET", "kernels"))


def test_a_restart_that_waits_shows_why(
    cluster: Raylets, ray_server: browser.JupyterServer, pages: list[browser.Lab]
) -> None:
    cluster.stop_node(cluster.nodes[1].address)

    def find_waiting() -> list[str]:
        return [
            kernel.id for kernel in connect("ray").kernels().result(allow_s(10)) if kernel.state == "queued"
        ]

    until_blocking(lambda: len(find_waiting()) == 1, "the restart of the lost kernel waits", 60, 0.1)
    (waiting,) = find_waiting()
    numbers = {each["kernel"]["id"]: int(each["path"][6]) for each in pages[0].api("GET", "sessions")}
    lab = pages[numbers.pop(waiting)]
    lab.run(1, "'mine' in dir()")
    lab.output(1, "Position 1 in the queue")
    lab.take("a-restart-waits")
    lab.reload()
    lab.status("position 1 in the queue")
    lab.run(2, "'mine' in dir()")
    lab.output(2, "Position 1 in the queue")
    pages[0].api("DELETE", f"kernels/{min(numbers)}")
    lab.output(2, "False")
    lab.take("a-restart-has-a-gpu")
    assert not [line for line in ray_server.log if "Traceback" in line]
