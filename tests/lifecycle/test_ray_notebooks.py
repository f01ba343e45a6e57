"""Notebooks that only name a kernelspec run on a Ray cluster: nbclient, Papermill, and Ray inside the kernel."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import nbformat
import papermill
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from roost.placement import Request
from roost.scheduler.backends.ray import join, nodes
from roost.scheduler.client.client import connect
from roost.testing.deadlines import allow_s

RAY_WITHIN = """
import os, ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ray.init(namespace=os.environ["RAY_NAMESPACE"], log_to_driver=False)
group = ray.util.get_placement_group(os.environ["ROOST_PLACEMENT_GROUP"])

@ray.remote(num_cpus=0, num_gpus=0.5, scheduling_strategy=PlacementGroupSchedulingStrategy(group))
def where():
    return ray.util.get_node_ip_address(), os.environ["CUDA_VISIBLE_DEVICES"]

print(*ray.get(where.remote()), os.environ["CUDA_VISIBLE_DEVICES"])
ray.shutdown()
"""


pytestmark = pytest.mark.backends("ray", why="uses Ray inside a kernel")


@pytest.fixture
def on_half_an_a100(specs_of: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for notebooks, where the kernelspec `roosted` asks for half an A100."""
    specs_of(config={"gpus": 0.5, "gpu_models": ["A100"]})
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    return tmp_path


def written(folder: Path, source: str) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "roosted", "display_name": "roosted", "language": "python"}
    path = folder / "notebook.ipynb"
    nbformat.write(notebook, path)
    return path


def test_ray_within_a_notebook_runs_on_the_leases_own_devices(on_half_an_a100: Path) -> None:
    notebook = nbformat.read(written(on_half_an_a100, RAY_WITHIN), as_version=4)
    NotebookClient(notebook, timeout=int(allow_s(100))).execute()
    (printed,) = [output.text for output in notebook.cells[0].outputs if output.get("name") == "stdout"]
    node, of_the_task, of_the_kernel = printed.split()
    assert node.endswith(".3")
    assert of_the_task == of_the_kernel


def test_ray_within_a_notebook_joins_the_namespace_of_the_kernelspec(
    specs_of: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs_of(config={"options": {"namespace": "team"}})
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    source = """
import os, ray

ray.init(namespace=os.environ["RAY_NAMESPACE"], log_to_driver=False)
print(ray.get_runtime_context().namespace)
ray.shutdown()
"""
    notebook = nbformat.read(written(tmp_path, source), as_version=4)
    NotebookClient(notebook, timeout=int(allow_s(100))).execute()
    (printed,) = [output.text for output in notebook.cells[0].outputs if output.get("name") == "stdout"]
    assert printed.strip() == "team"


def test_papermill(on_half_an_a100: Path) -> None:
    source = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['RAY_ADDRESS'])"
    papermill.execute_notebook(
        str(written(on_half_an_a100, source)), str(on_half_an_a100 / "out.ipynb"), progress_bar=False
    )
    device, address = (
        nbformat.read(on_half_an_a100 / "out.ipynb", as_version=4).cells[0].outputs[0].text.split()
    )
    assert device in "0123"
    assert address == os.environ["RAY_ADDRESS"]


async def test_a_kernel_is_prepared_on_the_node_of_its_request(
    specs_of: Callable[..., KernelSpecManager],
) -> None:
    """Its first start is forked there. No other test has these variables, so no zygote of theirs serves it."""
    env, service = {"OMP_NUM_THREADS": "3"}, connect("ray")
    config = {"gpus": 0.5, "gpu_models": ["A100"]}
    km = AsyncKernelManager(kernel_name="roosted", kernel_spec_manager=specs_of(config=config, env=env))
    argv = [*km.kernel_spec.argv]  # type: ignore[union-attr]
    await service.warm(argv, env, Request(gpus=0.5, gpu_models=("A100",)))
    await km.start_kernel()
    try:
        kernel = await service.kernel(km.kernel_id)
        assert (kernel.how, kernel.why_not_forked) == ("forked", "")
    finally:
        await km.shutdown_kernel(now=True)


async def test_the_next_kernel_is_forked_although_it_goes_to_another_node(
    specs_of: Callable[..., KernelSpecManager],
) -> None:
    """No other test has these variables. The first kernel fills its node."""
    specs, service = specs_of(config={"cpus": 2}, env={"OMP_NUM_THREADS": "5"}), connect("ray")
    first, second = (AsyncKernelManager(kernel_name="roosted", kernel_spec_manager=specs) for _ in range(2))
    try:
        await first.start_kernel()
        await asyncio.sleep(allow_s(6))  # the next place is prepared a second after the start
        await second.start_kernel()
        kernels = [await service.kernel(km.kernel_id) for km in (first, second)]
        assert kernels[0].node_id != kernels[1].node_id
        assert (kernels[1].how, kernels[1].why_not_forked) == ("forked", "")
    finally:
        for km in (first, second):
            if km.has_kernel:
                await km.shutdown_kernel(now=True)


def test_the_free_resources_of_each_node_can_be_read(ray_cluster: object) -> None:
    """roost reads the free resources with private calls of Ray. If Ray changes these calls, roost knows only totals."""
    join.join(ray_cluster.address, namespace="roost")  # type: ignore[attr-defined]
    try:
        found = nodes.read()
        assert len(found) == 3
        assert all(node.free is not None and node.groups is not None for node in found)
        assert {node.model for node in found} == {"", "T4", "A100"}
        import ray

        public = nodes.decode_public(ray.nodes())
        assert {node.daemon: (node.id, node.total, node.labels) for node in public} == {
            node.daemon: (node.id, node.total, node.labels) for node in found
        }
    finally:
        join.leave()
