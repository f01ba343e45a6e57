"""The settings that all backends with an agent on each node share."""

from __future__ import annotations

from traitlets import List, Unicode

from roost.scheduler.config.section import Section, seconds


class AgentPerNodeSettings(Section):
    """How roost's agents on the nodes behave. Each backend adds its own settings in a subclass."""

    address = Unicode("", help="Where the cluster manager listens.").tag(config=True)
    python = Unicode(
        "",
        help="Interpreter of roost's agents on the nodes; empty: that of the cluster manager's processes there.",
    ).tag(config=True)
    preload = List(Unicode(), help="Modules that are imported before kernels are forked.").tag(config=True)
    manager_grace_s = seconds(300.0, "How long kernels live on when the whole cluster is lost.")
    agent_idle_exit_s = seconds(3600.0, "Agents leave their nodes after this time without leases.")
