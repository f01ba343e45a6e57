"""The messages of the service to the process of a foreign policy. They are sent as pickles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from roost.placement import Node, Request, Workload


class PolicySource(NamedTuple):
    """The way to a foreign policy."""

    name: str
    named: Mapping[str, str] = {}
    """The operator's policies, as in `find_policy`."""
    pickled: str = ""
    """A client's policy, as `pickling.pack_policy` has packed it; empty for any other."""


class Setup(NamedTuple):
    """The first message."""

    source: PolicySource
    path: Sequence[str]
    """The service's `sys.path`."""
    folder: str
    """The service's working directory."""
    memory_bytes: int
    """How much memory the policy may take."""
    has_log: bool
    """Whether the service writes a log. A command does not: it shows the error alone."""


class Question(NamedTuple):
    """A request, and the whole snapshot."""

    request: Request
    avoid: Mapping[str, str]
    workload: Workload
    nodes: Sequence[Node]
    ages: bytes
    """(n,) the ages of the nodes' metrics, as float64."""
    version: int
    """The version of the service's snapshot."""
