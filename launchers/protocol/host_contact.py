"""What a service asks a host to which it has a login, and what the host answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from roost.placement.model import Node

from .agent_settings import AgentSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a service wants of a host."""

    name: str
    """The name of the agent's folder."""
    settings: AgentSettings
    clients: tuple[str, ...]
    """The public keys that the agent shall accept."""
    begins: bool = False
    """True if an agent shall run from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAnswer:
    """A host and, if one runs for this service, its agent."""

    machine: str
    """The identity of the machine, whatever name has led to it."""
    node: Node
    endpoint: str = ""
    """Where the agent listens; empty if there is none."""
    public: str = ""
    """The agent's public key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPython:
    """A kernelspec's Python, which the host shall test."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    """The folder where the kernels shall start; empty: any."""
