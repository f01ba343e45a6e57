"""Names of pods, labels and annotations."""

from __future__ import annotations

import hashlib
import re

CONTAINER = "kernel"
"""The container of roost's agent and the kernel."""
MANAGED_BY = "app.kubernetes.io/managed-by"
SERVICE_LABEL = "roost/service"
"""A digest of the service's public key."""
USER_LABEL = "roost/user"
LEASE_LABEL = "roost/lease"
"""A digest of the lease id, by which a pod is found."""
LEASE_ANNOTATION = "roost/lease"
"""The whole lease, as `dump_lease` writes it."""
KEY_ANNOTATION = "roost/agent-key"
"""The agent's public key."""
PORT_ANNOTATION = "roost/agent-port"
GATE = "roost/secret"
"""The scheduling gate of a pod whose Secret is not stored yet."""


def digest(text: str) -> str:
    """Return 20 characters that stand for a text in names and labels."""
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def to_label(text: str) -> str:
    """Return a text as the value of a label: itself if it may be one, else a readable part with a digest.

    >>> to_label("ada"), to_label("ada@example.org")
    ('ada', 'ada-example-org-cfe00dde46')
    """
    if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", text):
        return text
    readable = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:28].rstrip("-")
    return f"{readable}-{digest(text)[:10]}".lstrip("-")


def name_pod(user: str, lease_id: str, attempt: int) -> str:
    """Return the name of a lease's pod. A pod that is still being deleted keeps its name: then use a next attempt."""
    suffix = f"-{attempt}" if attempt > 1 else ""
    return f"roost-{to_label(user)[:30].rstrip('-')}-{digest(lease_id)}{suffix}"
