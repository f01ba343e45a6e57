"""Kernels on nodes of a real Ray cluster, and what roost reads of the nodes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

from roost.placement import Request
from roost.scheduler.backends.ray import join, nodes
from roost.scheduler.client.client import connect

pytestmark = pytest.mark.backends("ray", why="looks into Ray")


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
