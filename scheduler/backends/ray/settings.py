"""The settings of the backend `ray`."""

from __future__ import annotations

from traitlets import Float, Unicode

from roost.scheduler.backends.agent_per_node.settings import AgentPerNodeSettings
from roost.scheduler.config.shared_sections import NodeTypeSettings


class RoostRayBackend(AgentPerNodeSettings, NodeTypeSettings):
    """`c.RoostRayBackend`: the Ray cluster, its autoscaler, and roost's agents on its nodes."""

    address = Unicode(
        "", help="Where Ray's GCS listens, host:port; empty: RAY_ADDRESS, else the cluster of this machine."
    )
    scale_after_s = Float(
        30.0, min=1.0, help="How long a kernel waits for a node that is full, before it asks for a new one."
    )
    node_start_timeout_s = Float(900.0, min=0.0, help="How long the start of a new node may take.")
