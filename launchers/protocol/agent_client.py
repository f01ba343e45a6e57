"""The client of one agent, with its operations as typed coroutines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from roost.placement.model import Node
from roost.placement.model.json_codec import decode

from .messages import (
    AgentEvent,
    Holdings,
    JournalPage,
    KernelProcess,
    KernelUse,
    Launch,
    Lease,
    Manager,
    Owner,
    Reserve,
)
from .process_context import UNKNOWN, ProcessContext
from .rpc import ClientKeys
from .rpc_client import RpcClient

T = TypeVar("T")

_QUICK_S = 10.0
_ENDS_S = 15.0
"""How long an agent may take to report that a kernel has ended, or that it does not end."""
_MARGIN_S = 5.0
"""How much longer than the agent's own deadline a call waits for the answer."""


class AgentClient:
    """One connection to an agent, on one event loop. Every call may be repeated on another connection.

    Calls raise `RemoteError` (kinds: conflict, no_lease, kernel_died, launch_timeout, bad_command,
    unknown_kernel, no_space, no_descriptors, too_large, bad_request, internal), `Disconnected`, `Unauthorized` or
    `asyncio.TimeoutError`.
    """

    def __init__(
        self,
        endpoint: str,
        keys: ClientKeys,
        *,
        on_event: Callable[[AgentEvent], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._on_event = on_event
        self._client = RpcClient(endpoint, keys=keys, on_event=self._receive, on_lost=on_lost)

    async def connect(self, timeout_s: float = 5.0) -> None:
        """Connect and subscribe to events. If that fails, nothing stays open."""
        await self._client.connect(timeout_s=timeout_s)
        try:
            await self._client.call("subscribe", timeout_s=timeout_s)
        except BaseException:
            await self._client.close()
            raise

    async def close(self) -> None:
        await self._client.close()

    async def reserve(self, request: Reserve) -> Lease:
        return await self._call(Lease, "reserve", request)

    async def release(self, lease_id: str) -> None:
        await self._client.call("release", {"lease_id": lease_id}, timeout_s=_ENDS_S)

    async def transfer(self, lease_id: str, owner: Owner) -> None:
        await self._client.call("transfer", {"lease_id": lease_id, "owner": owner}, timeout_s=_QUICK_S)

    async def manage(self, manager: Manager) -> None:
        await self._client.call("manage", manager, timeout_s=_QUICK_S)

    async def admit(self, client: str) -> None:
        """Have the agent also accept the client with the public key `client`."""
        await self._client.call("admit", {"client": client}, timeout_s=_QUICK_S)

    async def launch(self, request: Launch) -> KernelProcess:
        """Start a kernel and return its process. A repeated launch gets the answer or the error of the first one."""
        return await self._call(KernelProcess, "launch", request, timeout_s=request.deadline_s + _MARGIN_S)

    async def signal(self, kernel_id: str, signum: int) -> bool:
        """Send a signal to a kernel. Return False if the kernel has ended."""
        arguments = {"kernel_id": kernel_id, "signum": signum}
        answer = await self._client.call("signal", arguments, timeout_s=_QUICK_S)
        return bool(answer["delivered"])

    async def stop(self, kernel_id: str, grace_s: float) -> KernelProcess:
        arguments = {"kernel_id": kernel_id, "grace_s": grace_s}
        return await self._call(KernelProcess, "stop", arguments, timeout_s=grace_s + _ENDS_S)

    async def holdings(self) -> Holdings:
        return await self._call(Holdings, "list")

    async def logs(self, kernel_id: str, tail_bytes: int) -> str:
        arguments = {"kernel_id": kernel_id, "tail_bytes": tail_bytes}
        answer = await self._client.call("logs", arguments, timeout_s=_QUICK_S)
        return str(answer["text"])

    async def journal(self, kernel_id: str, **choice: Any) -> JournalPage:
        """Return a part of a kernel's journal. `choice` has the keyword arguments of `Journal.read`."""
        return await self._call(JournalPage, "journal", {"kernel_id": kernel_id, **choice})

    async def status(self) -> Node:
        """Return the agent's node.

        The node is draining if the cluster manager's last daemon on it has ended.
        """
        return await self._call(Node, "status")

    async def stats(self) -> list[KernelUse]:
        answer = await self._client.call("stats", timeout_s=_QUICK_S)
        return [decode(KernelUse, use, ignore_unknown=True) for use in answer]

    async def warm(
        self, argv: tuple[str, ...], env: Mapping[str, str], context: ProcessContext = UNKNOWN
    ) -> None:
        """Have the agent prepare a zygote for kernels with this command, environment and context.

        Returns when the zygote is ready, or when the agent knows that it cannot make one.
        """
        await self._client.call("warm", {"argv": argv, "env": env, "context": context}, timeout_s=90.0)

    async def leave(self) -> None:
        """Have the agent end itself. Its kernels and leases stay for the next agent."""
        await self._client.call("leave", timeout_s=_QUICK_S)

    async def _call(self, cls: type[T], op: str, arguments: Any = None, *, timeout_s: float = _QUICK_S) -> T:
        answer = await self._client.call(op, arguments, timeout_s=timeout_s)
        return decode(cls, answer, ignore_unknown=True)

    def _receive(self, event: dict[str, Any]) -> None:
        if self._on_event is not None:
            self._on_event(decode(AgentEvent, event, ignore_unknown=True))
