"""Which changes of a node wake starts that wait."""

from __future__ import annotations

from dataclasses import replace

from roost.placement import Device, Node
from roost.scheduler.backends.more_room import has_more_room


def test_a_node_has_more_room_if_any_amount_is_freer() -> None:
    node = Node(id="a", cpus=4, memory_bytes=100, devices=(Device(id="0"), Device(id="1")), cpus_promised=2)
    one_gpu = replace(node, gpus_promised=1, devices=(Device(id="0", promised=1), Device(id="1")))
    other_gpu = replace(node, gpus_promised=1, devices=(Device(id="0"), Device(id="1", promised=1)))
    assert not has_more_room(node, node)
    assert not has_more_room(node, replace(node, cpus_promised=3, kernels=1, cpus_used=1.0))
    assert has_more_room(one_gpu, node)
    assert not has_more_room(node, one_gpu)
    assert has_more_room(one_gpu, other_gpu), "a start may need the GPU that is free now"
    assert has_more_room(replace(node, is_draining=True), node)
    assert has_more_room(node, replace(node, cpus=5)), "root has changed the totals"
