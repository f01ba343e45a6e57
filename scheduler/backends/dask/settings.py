"""The settings of the backend `dask`."""

from __future__ import annotations

from traitlets import Float, Unicode

from roost.scheduler.backends.agent_per_node.settings import AgentPerNodeSettings


class RoostDaskBackend(AgentPerNodeSettings):
    """`c.RoostDaskBackend`: the Dask cluster, and roost's agents on its workers' machines."""

    address = Unicode(
        "",
        help="Where Dask's scheduler listens, tcp://host:port or tls://host:port, or the path of its scheduler file; "
        "empty: DASK_SCHEDULER_ADDRESS, else Dask's configuration.",
    )
    tls_ca_file = Unicode(
        "",
        help="Certificate of the authority, for tls://; empty, like the next two: from Dask's configuration.",
    )
    tls_cert = Unicode("", help="Certificate with which roost connects to the cluster.")
    tls_key = Unicode("", help="File with the key of that certificate.")
    manager_grace_s = Float(3600.0, min=0.0, help="How long kernels live on when the whole cluster is lost.")
    """An agent cannot see whether another cluster begins on its machine, so that their kernels need an end."""
