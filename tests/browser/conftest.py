"""One JupyterLab with roost's kernels on a machine with one GPU. ROOST_SCREENSHOTS names a folder for pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import browser as kit
import managers
import pytest
from world import settle

from roost.scheduler.client.client import connect, disconnect


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if reason := kit.why_not():
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def server(module_runtime_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[kit.JupyterServer]:
    """Return a JupyterLab with a kernelspec `gpu` that asks for the machine's GPU, and a kernelspec `plain`."""
    folder = tmp_path_factory.mktemp("lab")
    settings = {"RoostLocalBackend": {"gpus": 1, "gpu_model": "T4", "cpus": 8, "memory": "64GiB"}}
    (folder / "jupyter_roost_config.json").write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_CONFIG_DIR", str(folder))
        patch.setenv("JUPYTER_PATH", str(folder))
        managers.kernelspecs(folder, "gpu", config={"gpus": 1})
        plain = {"metadata": {"kernel_provisioner": {"provisioner_name": "local-provisioner"}}}
        managers.kernelspecs(folder, "plain", **plain)
        connect("local").up().result(60)
        options = ["--ServerApp.jpserver_extensions={'roost': True}", "--LabApp.news_url=None"]
        with kit.running_server(folder, options=options) as server:
            yield server
        disconnect()
        settle(module_runtime_dir)


@pytest.fixture(scope="module")
def chromium() -> Iterator[kit.Browser]:
    with kit.chromium() as running:
        yield running


@pytest.fixture
def lab(server: kit.JupyterServer, chromium: kit.Browser) -> Iterator[kit.Lab]:
    """Return a fresh page. After the test the server has no kernel."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    lab = kit.Lab(context.new_page(), server)
    yield lab
    context.close()
    for session in lab.api("GET", "sessions"):
        lab.api("DELETE", f"sessions/{session['id']}")
    for kernel in lab.api("GET", "kernels"):
        lab.api("DELETE", f"kernels/{kernel['id']}")


@pytest.fixture
def take(lab: kit.Lab) -> Callable[[str], None]:
    """Return a function that takes a screenshot, if screenshots are wanted."""

    def take(name: str) -> None:
        if folder := os.environ.get("ROOST_SCREENSHOTS"):
            lab.page.screenshot(path=Path(folder) / f"{name}.png")

    return take
