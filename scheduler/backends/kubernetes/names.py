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
CREATOR_ANNOTATION = "roost/created-by"
"""The Kubernetes user that created the pod. An admission policy compares it with the user of each request."""
SIGNATURE_ANNOTATION = "roost/signature"
"""The service's signature, so that nobody else can pass a pod off as this service's."""
RELEASED_ANNOTATION = "roost/released"
"""Set before roost deletes a pod. A pod that is being deleted without it was deleted by somebody else."""
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


def name_pod(creator: str, lease_id: str, attempt: int) -> str:
    """Return the name of a lease's pod, with the last part of the Kubernetes user that creates it.

    A pod that is still being deleted keeps its name, so use the next `attempt` then. manifests/own-pods/policy.yaml
    computes the same name, so that nobody creates a pod with the name (and the Secret) of another user's earlier pod.

    >>> name_pod("system:serviceaccount:hub:jupyter-ada", "k1", 1)
    'roost-jupyter-ada-6ab9f1eb8f7d3388f4f9'
    """
    account = re.sub(r"[^a-z0-9]", "-", creator.rpartition(":")[2].lower())[:200]
    return f"roost-{account}-{digest(lease_id)}" + (f"-{attempt}" if attempt > 1 else "")
