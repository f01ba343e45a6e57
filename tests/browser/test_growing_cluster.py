"""JupyterLab on a Ray cluster without GPU nodes: a notebook brings the node that it needs, and gives it back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.clusters.ray.elastic_raylets import ElasticRaylets
from kit.clusters.ray.elastic_world import Elastic, grown_by_kernels
from kit.jupyter import browser
from kit.jupyter.kernelspecs import kernelspecs
from roost.testing.clusters.raylets import why_not
from roost.testing.deadlines import until_blocking

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

BOOT_S = 8
"""How long a new machine boots before Ray starts there."""
NODE_S = 120.0
"""How long a node may take to start or to end on a busy machine."""


@pytest.fixture
def growing_cluster(module_runtime_dir: Path) -> Iterator[ElasticRaylets]:
    with grown_by_kernels(module_runtime_dir, is_second=True) as cluster:
        cluster.steer(delay_s=BOOT_S)
        yield cluster


@pytest.fixture
def growing_lab(
    growing_cluster: ElasticRaylets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[browser.Lab]:
    """Return a page of a JupyterLab with a kernelspec for both GPUs of a node."""
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    browser.prepare_lab(tmp_path)
    kernelspecs(tmp_path, "gpu", backend="ray", config={"gpus": 2, "gpu_models": ["A100"]})
    with (
        browser.running_server(tmp_path, options=[browser.EXTENSION]) as server,
        browser.chromium() as running,
    ):
        page = running.new_context(viewport={"width": 1280, "height": 800}).new_page()
        yield browser.Lab(page, server)


def test_a_notebook_brings_its_node_and_gives_it_back(
    growing_cluster: ElasticRaylets, growing_lab: browser.Lab
) -> None:
    lab, elastic = growing_lab, Elastic(growing_cluster)
    lab.open()
    lab.create_notebook("gpu")
    lab.run(0, "answer = 6 * 7")
    lab.run(1, "answer")
    text = lab.output(0, "Ray's autoscaler was asked for", NODE_S)
    print(text)
    lab.take("a-node-is-being-started")
    lab.output(1, "42", NODE_S)
    assert lab.text(0) == ""
    lab.status(" GPU")
    lab.take("its-kernel-runs")
    assert (elastic.launched(), len(elastic.workers())) == (["gpu"], 1)
    lab.end_kernels()
    until_blocking(lambda: elastic.workers() == [], "the machine ends", NODE_S, 0.1)
    elastic.close()
