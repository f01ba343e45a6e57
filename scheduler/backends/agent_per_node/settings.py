"""The settings that all backends with an agent on each node share."""

from __future__ import annotations

from traitlets import Bool, Float, List, Unicode

from roost.scheduler.config.section import Section


class AgentPerNodeSettings(Section):
    """How roost's agents on the nodes behave. Each backend adds its own settings in a subclass."""

    address = Unicode("", help="Where the cluster manager listens.")
    python = Unicode(
        "",
        help="Interpreter of roost's agents on the nodes; empty: that of the cluster manager's processes there.",
    )
    preload = List(
        Unicode(),
        help="Modules that are imported before kernels are forked. `jedi` also prepares the first completion.",
    )
    immortal_preloads = Bool(
        True,
        help="Python 3.12 and 3.13: count no references to preloaded objects, so that kernels share more memory.",
    )
    manager_grace_s = Float(300.0, min=0.0, help="How long kernels live on when the whole cluster is lost.")
    agent_idle_exit_s = Float(3600.0, min=0.0, help="Agents leave after this time without leases.")
