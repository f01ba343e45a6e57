"""The agent's own report of its address to the service. The cluster manager reports the address too, but later."""

from __future__ import annotations

import asyncio
import logging

from roost.launchers.protocol.messages import Assignment
from roost.launchers.protocol.rpc import ClientKeys, RemoteError, RpcError, Unauthorized

log = logging.getLogger(__name__)

_PAUSES_S = (0.05, 0.2, 1.0, 0.0)
"""How long to wait after each attempt. There are as many attempts as pauses."""
_ATTEMPT_S = 2.0
"""How long each step of an attempt may take, because a network policy may drop every packet."""


async def report_address(assignment: Assignment, ip: str, port: int) -> None:
    """Report to the service that the agent listens at `ip` and `port`.

    If the service does not answer, give up, because the cluster manager reports the address too.
    """
    from roost.launchers.protocol.rpc_client import RpcClient  # here, because most agents do not need it

    keys = assignment.keys
    (service,) = keys.clients
    for pause_s in _PAUSES_S:
        client = RpcClient(
            assignment.report_to, keys=ClientKeys(server=service, public=keys.public, secret=keys.secret)
        )
        try:
            await client.connect(timeout_s=_ATTEMPT_S)
            await client.call("listens", {"ip": ip, "port": port}, timeout_s=_ATTEMPT_S)
            return
        except (Unauthorized, RemoteError) as refusal:  # the service knows the address already
            log.info("the report of this agent's address is refused: %s", refusal)
            return
        except (RpcError, asyncio.TimeoutError) as problem:
            reason = str(problem) or "no answer in time"
            log.info("the service at %s does not answer: %s", assignment.report_to, reason)
        finally:
            await client.close()
        await asyncio.sleep(pause_s)
