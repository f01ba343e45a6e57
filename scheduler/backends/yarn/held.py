"""`Held`: one lease, the ask for its container, and the container."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace

from roost.launchers.protocol.messages import AgentAddress, Lease
from roost.scheduler.backends.agent_per_kernel import Pod

from .applications import MasterLine
from .master.messages import Ask, Container
from .reasons import describe_end


@dataclass(slots=True, eq=False)
class Held:
    """A lease, the ask for its container, and the container."""

    lease: Lease
    number: int
    line: MasterLine
    ask: Ask | None = None
    """None if another process asked."""
    container: Container | None = None
    reason: str = ""
    """Why the ask waits."""
    is_asked: bool = False
    """True if the ask may have reached the master."""
    is_creating: bool = False
    """True while a claim waits for the master and for YARN."""
    loss: Lease | None = None
    """The lost lease, if the master has not reported the container's end."""
    node_trouble: str = ""
    """The trouble of a lost node."""
    address: AgentAddress | None = None
    search: asyncio.Task[None] | None = None
    """The task that looks for the container's agent."""
    is_explained: bool = True
    """False while YARN is asked for the trouble of a lost node."""
    warning: str = ""
    """The last reported warning that YARN will preempt the container."""
    cause: asyncio.Task[bool] | None = None
    """The task that waits for YARN's reason, after the agent has reported its own end."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at each change."""

    @property
    def is_granted(self) -> bool:
        is_granted = self.container is not None and self.container.state in ("granted", "started")
        return is_granted and self.loss is None

    @property
    def is_ended(self) -> bool:
        has_ended = self.container is not None and self.container.state == "ended" and self.is_explained
        return self.loss is not None or has_ended

    @property
    def is_waiting(self) -> bool:
        """True if the ask waits in YARN, and no claim waits for it any more."""
        is_asked = self.container is not None and self.container.state == "asked"
        return is_asked and not self.is_creating and self.loss is None

    async def wait_ended(self, timeout_s: float) -> bool:
        """Wait until YARN reports the end of the container; return whether it does in time."""
        deadline = time.monotonic() + timeout_s
        while not self.is_ended:
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                break
        return self.is_ended

    def view(self, python: str) -> Pod:
        """Return the container and its lease as the scheduler sees them. `python` runs the agent."""
        lease, container = self.lease, self.container
        if self.loss is not None:
            return Pod(lease=self.loss)
        if container is None or container.state == "asked":
            reason = self.reason if self.line.is_connected else self.line.reason
            return Pod(lease=replace(lease, state="pending", reason=reason))
        lease = replace(lease, node_id=container.node or lease.node_id)
        if self.is_ended:
            reason, is_final = describe_end(container, python, self.node_trouble)
            return Pod(lease=replace(lease, state="lost", reason=reason, is_final=is_final))
        return Pod(lease=replace(lease, state="held", reason=""), address=self.address)
