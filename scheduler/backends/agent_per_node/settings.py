"""The settings that all backends with an agent on each node share."""

from __future__ import annotations

from traitlets import Float, Unicode

from roost.launchers.protocol.agent_settings import AgentSettings
from roost.scheduler.config.shared_sections import (
    EnforcementSettings,
    ForkingSettings,
    PortSettings,
    parse_port_range,
)


class AgentPerNodeSettings(ForkingSettings, EnforcementSettings, PortSettings):
    """How roost's agents on the nodes behave. Each backend adds its own settings in a subclass."""

    address = Unicode("", help="Where the cluster manager listens.")
    python = Unicode(
        "",
        help="Interpreter of roost's agents on the nodes; empty: that of the cluster manager's processes there.",
    )
    manager_grace_s = Float(300.0, min=0.0, help="How long kernels wait until they are claimed again.")
    agent_idle_exit_s = Float(3600.0, min=0.0, help="Agents leave after this time without leases.")

    def agent_settings(self) -> AgentSettings:
        """Return the settings of each agent. A backend adds the facts about the agent's node."""
        return AgentSettings(
            idle_exit_s=self.agent_idle_exit_s,
            forking=self.forking(),
            enforcement=self.enforcement(),
            kernel_ports=parse_port_range(self.kernel_ports),
            is_remote=True,
            gpu_visibility="manager",
            python=self.python,
        )
