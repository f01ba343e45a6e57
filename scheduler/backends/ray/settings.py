"""The settings of the backend `ray`."""

from __future__ import annotations

from traitlets import Unicode

from roost.scheduler.backends.agent_per_node.settings import AgentPerNodeSettings


class RoostRayBackend(AgentPerNodeSettings):
    """`c.RoostRayBackend`: the Ray cluster, and roost's agents on its nodes."""

    address = Unicode(
        "", help="Where Ray's GCS listens, host:port; empty: RAY_ADDRESS, else the cluster of this machine."
    )
