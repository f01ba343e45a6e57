"""Kernels in other worlds of this user: an application adopts one whose ports it can reach."""

from __future__ import annotations

from roost.scheduler.client.client import Client
from roost.scheduler.errors import BackendUnavailable, LaunchError, UnknownKernel
from roost.scheduler.messages import Kernel, ServiceFacts, read_namespace


async def find_elsewhere(client: Client, kernel_id: str) -> Client | None:
    """Return the client of another world's service that has this kernel; None if there is none.

    Raises `LaunchError` if the kernel runs in another network, because nobody can connect with it from here.
    """
    for other in client.find_elsewhere():
        try:
            kernel, facts = await other.kernel(kernel_id), await other.service()
        except (UnknownKernel, BackendUnavailable):
            continue
        _check_network(other, kernel, facts)
        return other
    return None


def _check_network(client: Client, kernel: Kernel, facts: ServiceFacts) -> None:
    """Raise `LaunchError` if nobody in this network can connect with a kernel that the service starts."""
    uses_ports = kernel.connection is not None and kernel.connection.transport == "tcp"
    if uses_ports and facts["network"] != read_namespace("net"):
        raise LaunchError(
            f"Kernel {kernel.id} runs in another network namespace, so its ports cannot be reached from here. "
            f"{client.advice.write('stop', kernel.id)} ends it."
        )
