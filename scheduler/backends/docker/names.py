"""Names of containers and volumes, and their labels."""

from __future__ import annotations

import re

from roost.scheduler.backends.agent_per_kernel import shorten_id

SERVICE_LABEL = "roost.service"
"""A digest of the service's public key."""
LEASE_LABEL = "roost.lease"
"""The whole lease, as `dump_lease` writes it."""
ID_LABEL = "roost.lease-id"
"""A digest of the lease id, by which a container is found."""
KEY_LABEL = "roost.agent-key"
"""The agent's public key."""
CREATOR_LABEL = "roost.creator"
"""The process that creates the container: its pid and its start time."""
SOCKETS_LABEL = "roost.sockets"
"""The folder where the agent and the kernel listen, if this machine does not reach the container's address."""
CLAIM_NAME = "roost-claim"
"""The name of a container whose claim is under way. The engine gives a name to one container only: this is the lock."""


def name_container(user: str, lease_id: str) -> str:
    """Return the name of a lease's container. Only one container of the engine can have it.

    >>> name_container("ada@example.org", "roost:k:s/1")
    'roost-ada-example.org-58730b45f503ec3828cc'
    """
    return f"roost-{re.sub(r'[^a-zA-Z0-9_.]+', '-', user)[:40]}-{shorten_id(lease_id)}"
