"""The snapshot of a cluster, as its nodes change."""

from __future__ import annotations

from typing import Any

from roost.placement import Node
from roost.scheduler.backends.agent_per_node.node_table import NodeTable


def test_the_first_reported_use_is_fresh() -> None:
    """It may come before the manager's own figures are read for the first time."""
    table: NodeTable[Any] = NodeTable(lambda node_id: Node(id=node_id, metrics_age_s=0.5))
    table.update({"here": "here"}, ["here"])
    assert table.snapshot().has_fresh_metrics(5.0).tolist() == [True]
