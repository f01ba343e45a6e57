"""JupyterLab with roost's kernels, on one machine with one GPU, on a Ray cluster and on SSH hosts.

On a cluster most tests have the marker `long`. ROOST_SCREENSHOTS names a folder for pictures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kit.clusters.ssh.shared_cluster import cluster_settings
from kit.jupyter import browser
from kit.jupyter.kernelspecs import kernelspecs
from kit.machine.daemons import settle
from roost.scheduler.client.client import connect, disconnect
from roost.testing.deadlines import allow_s

QUICK = {
    "ray": ("test_a_waiting_cell_shows_its_place", "test_the_status_and_the_launcher"),
    "ssh": ("test_a_waiting_cell_shows_its_place",),
}
GPUS = {
    "local": {"gpus": 1},
    "ray": {"gpus": 4, "gpu_models": ["A100"]},
    "ssh": {"gpus": 1, "gpu_models": ["A100"]},
}
"""The request for all GPUs of one model, by backend."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture in ("server", "notebooks"):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, list(GPUS), indirect=True, scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = browser.why_not()
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        for backend, quick in QUICK.items():
            if f"[{backend}" in item.name and not item.name.startswith(quick):
                item.add_marker("long")


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, module_runtime_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[browser.JupyterServer]:
    """Return a JupyterLab, with the kernelspecs of `prepared`."""
    with (
        prepared(request, module_runtime_dir, tmp_path_factory) as folder,
        browser.running_server(folder, options=[browser.EXTENSION]) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def notebooks(
    request: pytest.FixtureRequest, module_runtime_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Return a folder for notebooks, with the kernelspecs of `prepared`."""
    with prepared(request, module_runtime_dir, tmp_path_factory) as folder:
        yield folder


@contextmanager
def prepared(
    request: pytest.FixtureRequest, runtime_dir: Path, folders: pytest.TempPathFactory
) -> Iterator[Path]:
    """Prepare a backend with four kernelspecs: `gpu` asks for all GPUs, `huge` for more than any node has, `cpu` for
    none, and `plain` is not roost's.
    """
    backend, folder = request.param, folders.mktemp("lab")
    settings: dict[str, Any] = {
        "RoostLocalBackend": {"gpus": 1, "gpu_model": "T4", "cpus": 8, "memory": "64GiB"}
    }
    (folder / "jupyter_roost_config.json").write_text(json.dumps(settings))
    browser.prepare_lab(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_CONFIG_DIR", str(folder))
        patch.setenv("JUPYTER_PATH", str(folder))
        if backend == "ray":
            patch.setenv("RAY_ADDRESS", request.getfixturevalue("ray_cluster").address)
        elif backend == "ssh":
            settings["RoostSshBackend"] = cluster_settings(request.getfixturevalue("ssh_hosts"))
            (folder / "jupyter_roost_config.json").write_text(json.dumps(settings))
        kernelspecs(folder, "gpu", backend=backend, config={**GPUS[backend], "memory": "1GiB"})
        kernelspecs(folder, "huge", backend=backend, config={"gpus": 64})
        kernelspecs(folder, "cpu", backend=backend)
        plain = {"metadata": {"kernel_provisioner": {"provisioner_name": "local-provisioner"}}}
        kernelspecs(folder, "plain", **plain)
        connect(backend).up().result(allow_s(100))
        yield folder
        disconnect()
        settle(runtime_dir)


@pytest.fixture(scope="module")
def chromium(server: browser.JupyterServer) -> Iterator[browser.Browser]:
    """Return Chromium. It ends before the server: no other event loop can run in this thread until then."""
    with browser.chromium() as running:
        yield running


@pytest.fixture
def lab(server: browser.JupyterServer, chromium: browser.Browser) -> Iterator[browser.Lab]:
    """Return a fresh page. After the test the server has no kernel."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    lab = browser.Lab(context.new_page(), server)
    yield lab
    context.close()
    lab.end_kernels()


@pytest.fixture
def take(lab: browser.Lab, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that takes a screenshot and names it after the backend, too."""
    backend = request.node.callspec.params["server"]
    return lambda name: lab.take(f"{name}-{backend}")
