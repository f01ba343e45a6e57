"""Ray inside the kernel of a notebook that only names a kernelspec, and kernels on nodes of a real cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

from kit.jupyter.notebook_runs import run_nbclient
from roost.placement import Request
from roost.scheduler.backends.ray import join, nodes
from roost.scheduler.client.client import connect

RAY_WITHIN = """
import os, ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ray.init(namespace=os.environ["RAY_NAMESPACE"], log_to_driver=False)
group = ray.util.get_placement_group(os.environ["ROOST_PLACEMENT_GROUP"])

@ray.remote(num_cpus=0, num_gpus=0.5, scheduling_strategy=PlacementGroupSchedulingStrategy(group))
def where():
    return ray.util.get_node_ip_address(), os.environ["CUDA_VISIBLE_DEVICES"]

print(*ray.get(where.remote()), os.environ["CUDA_VISIBLE_DEVICES"], os.environ["RAY_ADDRESS"])
ray.shutdown()
"""


pytestmark = pytest.mark.backends("ray", why="uses Ray inside a kernel")


@pytest.fixture
def on_half_an_a100(specs_of: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for notebooks, where the kernelspec `roosted` asks for half an A100."""
    specs_of(config={"gpus": 0.5, "gpu_models": ["A100"]})
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    return tmp_path


def test_ray_within_a_notebook_runs_on_the_leases_own_devices(on_half_an_a100: Path) -> None:
    node, of_the_task, of_the_kernel, address = run_nbclient(RAY_WITHIN).split()
    assert node.endswith(".3")
    assert of_the_task == of_the_kernel
    assert of_the_kernel in "0123"
    assert address == os.environ["RAY_ADDRESS"]


def test_a_kernel_does_not_load_the_allocator_of_raylets(on_half_an_a100: Path) -> None:
    code = """
import os, subprocess
print(os.environ.get("LD_PRELOAD"), "jemalloc" in open("/proc/self/maps").read())
print(subprocess.run("env | grep -c -e LD_PRELOAD -e JEMALLOC", shell=True, capture_output=True, text=True).stdout)
"""
    assert run_nbclient(code).split() == [str(os.environ.get("LD_PRELOAD")), "False", "0"]


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
    assert run_nbclient(source).strip() == "team"


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
