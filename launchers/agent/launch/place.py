"""Where an agent runs. The rest of the agent does not ask which of the two it is.

`OnNode`: one agent for all kernels of its user. It forks and limits them, and they live on when it leaves.
`InPod`: the first process of a pod or container, with one kernel. Agent, lease and kernel end together, and the cluster
manager limits them.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from roost.launchers.agent.leases.lease_rules import STOP_GRACE_S, LeaseRules
from roost.launchers.agent.limits.cgroups import find_own_group
from roost.launchers.agent.machine.sessions import OwnSession, SharedSession, kill_outsiders
from roost.launchers.protocol.agent_settings import AgentSettings

_TAKEN_GRACE_S = 0.1  # a manager that ends a session may kill it 0.25 s after SIGTERM
_SAME_SIGNAL_S = 0.05
_AFTER_ANSWER_S = 0.05


class OnNode:
    """The place of an agent that serves a node."""

    own_group = None  # this agent limits its kernels itself
    ends_kernels = False
    speaks_for_node = True
    why_never_forked = ""

    def __init__(self, settings: AgentSettings) -> None:
        self.session = OwnSession()
        self.ip = settings.address  # if empty, the agent listens at a Unix socket in its folder
        self.kernel_ports = list_ports(settings)
        self.keeps_context = settings.is_remote
        self.exit_after_release_s = settings.idle_exit_s

    def report_exit(self, code: int | None, report: Callable[[], None]) -> None:
        report()

    def terminate(self, leases: LeaseRules) -> None:
        """Handle a signal of the machine or the cluster manager. The agent leaves next."""

    async def leave(self, leases: LeaseRules) -> None:
        """End the leases that end with the agent."""


class InPod:
    """The place of an agent that is the first process of a pod or container."""

    ends_kernels = True
    speaks_for_node = False
    why_never_forked = "a pod or container has no warm process"
    keeps_context = True  # kernels get this process's context, not their application's
    exit_after_release_s = _AFTER_ANSWER_S

    def __init__(self, settings: AgentSettings) -> None:
        self.session = SharedSession() if settings.shares_session else OwnSession()
        self.own_group = find_own_group()  # the cluster manager limits it
        self.ip = settings.address or "127.0.0.1"
        self.kernel_ports = list_ports(settings)
        self._unit = settings.unit

    def report_exit(self, code: int | None, report: Callable[[], None]) -> None:
        if self.session.is_shared and code == -signal.SIGTERM:
            # The manager ends this agent by the same signal. `terminate` then reports the loss first.
            asyncio.get_running_loop().call_later(_SAME_SIGNAL_S, report)
        else:
            report()

    def terminate(self, leases: LeaseRules) -> None:
        # First, because the manager may kill its group 0.25 s later: only the agent can end processes outside.
        if self.session.is_shared:
            kill_outsiders()
        leases.report_loss(f"its {self._unit} was ended")  # the manager may report a better reason before

    async def leave(self, leases: LeaseRules) -> None:
        await leases.release_all(_TAKEN_GRACE_S if self.session.is_shared else STOP_GRACE_S)


Place = OnNode | InPod


def list_ports(settings: AgentSettings) -> range:
    """Return the ports that the operator allows for kernels; empty: any."""
    return (
        range(settings.kernel_ports[0], settings.kernel_ports[1] + 1) if settings.kernel_ports else range(0)
    )


def find_place(settings: AgentSettings) -> Place:
    """Return where the agent with these settings runs."""
    return InPod(settings) if settings.is_per_kernel else OnNode(settings)
