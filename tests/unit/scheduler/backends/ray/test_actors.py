"""The actors that hold GPUs, from Ray's own messages."""

from __future__ import annotations

import pytest

from roost.scheduler.backends.ray.actors import Actor, decode

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

NODE, GROUP = b"n" * 28, b"g" * 18


def actor(
    name: str = "", *, gpus: float = 1.0, node: bytes = NODE, group: bytes = b"", pid: int = 7
) -> bytes:
    from ray.core.generated import gcs_pb2

    data = gcs_pb2.ActorTableData(
        class_name="Trainer", name=name, pid=pid, job_id=b"\x02\0\0\0", placement_group_id=group
    )
    data.address.node_id = node
    if gpus:
        data.required_resources["GPU"] = gpus
    return bytes(data.SerializeToString())


def test_only_actors_of_others_that_hold_gpus_of_the_nodes_are_named() -> None:
    table = [
        actor(pid=9),
        actor("mine", pid=8),
        actor(gpus=0),
        actor(node=b"m" * 28),
        actor(group=GROUP),
    ]
    assert decode(table, {NODE.hex()}, {GROUP.hex()}) == [
        Actor(name="Trainer 'mine' of job 02000000", pid=8, node=NODE.hex()),
        Actor(name="Trainer of job 02000000", pid=9, node=NODE.hex()),
    ]
