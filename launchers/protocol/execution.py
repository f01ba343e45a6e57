"""The fields that a request to the service and a request to an agent have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .process_context import ProcessContext
from .shared_values import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A command and all that it needs, for one start of a kernel. `StartKernel` and `Launch` add fields."""

    kernel_id: str
    """The kernel: any printable text, usually a UUID. It keeps its id over restarts."""
    launch_id: str
    """One start or restart of the kernel. A repeat with the same id gets the first one's answer."""
    argv: tuple[str, ...]
    """The kernelspec's command, including `{connection_file}`, which the agent fills in."""
    env: Mapping[str, str] = field(repr=False)
    """The kernel's environment. It may have secrets. In a pod, the agent adds it to its own environment."""
    cwd: str
    """The working folder. In a pod where it does not exist, the kernel starts in the home folder."""
    connection: Connection
    """The kernel's keys and, if they are fixed, its ports. It is secret."""
    may_fork: bool = True
    """True if the kernel may be forked from a process that has imported ipykernel."""
    connection_folder: str = ""
    """The folder for the connection file of an executed kernel; empty: a folder of the agent's.

    A container that the command enters may not show the agent's.
    """
    is_of_another_user: bool = False
    """True if the application is another user's: the kernel gets the environment and the home of its agent."""
    context: ProcessContext = field(default_factory=ProcessContext)
    """The context of the application, which the kernel gets. Where a part is not known, it gets the agent's."""
