"""The snapshot of a cluster, as its nodes change."""

from __future__ import annotations

from typing import Any

from roost.placement import Device, Node, Request
from roost.scheduler.backends.agent_per_node.node_table import NodeTable


def test_the_first_reported_use_is_fresh() -> None:
    """It may come before the manager's own figures are read for the first time."""
    table: NodeTable[Any] = NodeTable(lambda node_id: Node(id=node_id, metrics_age_s=0.5))
    table.update({"here": "here"}, ["here"])
    assert table.snapshot().has_fresh_metrics(5.0).tolist() == [True]


def test_a_node_that_has_left_could_hold_what_it_held_empty() -> None:
    known = {"here": Node(id="here", cpus=4, cpus_promised=4, devices=(Device(id="0"),))}
    table: NodeTable[Any] = NodeTable(lambda node: node)
    table.update(known, ["here"])
    table.update({}, ["here"])
    asked = [Request(cpus=4, gpus=1), Request(gpus=3), Request(labels={"zone": "a"})]
    assert [table.could_hold("here", request) for request in asked] == [True, False, False]
    assert table.could_hold("nobody knows it", asked[1])
