"""The settings of the backend `ssh`."""

from __future__ import annotations

import math
from typing import Any

from traitlets import Float, List, TraitError, TraitType, Unicode, validate

from roost.launchers.protocol.agent_settings import AgentSettings
from roost.scheduler.config.shared_sections import (
    EnforcementSettings,
    ForkingSettings,
    PortSettings,
    parse_port_range,
)

from .host import make_hosts


class Hosts(TraitType["list[str] | dict[str, dict[str, str]]", "list[str] | dict[str, dict[str, str]]"]):  # type: ignore[misc,unused-ignore]
    """A trait for hosts: a list of names, or an object of names and labels."""

    default_value: Any = ()
    info_text = "a list of names of hosts, or an object of names and labels"

    def validate(self, obj: Any, value: Any) -> Any:
        if not isinstance(value, (list, tuple, dict)):
            self.error(obj, value)
        try:
            make_hosts(value)
        except ValueError as problem:
            raise TraitError(f"{self.name}: {problem}.") from None
        return dict(value) if isinstance(value, dict) else list(value)


class RoostSshBackend(ForkingSettings, EnforcementSettings, PortSettings):
    """`c.RoostSshBackend`: the hosts, how ssh reaches them, and roost's agents there.

    The hosts of both settings are used together. A name in both is one host, with the labels of both.
    The label `address` is the IP address where a host's kernels listen, if it is not the one that ssh reaches.
    """

    hosts = Hosts(
        help="Hosts as `ssh NAME` reads them: a list of names, or an object such as {'n1': {'rack': 'a'}}, with labels."
    )
    hosts_file = Unicode(
        "", help="A file with a host on each line: its name, then labels as rack=a. # begins a comment."
    )
    ssh = List(
        Unicode(),
        ["ssh"],
        help='OpenSSH\'s client with options, as a list: ["ssh", "-F", "/etc/lab/config"].',
    )
    python = Unicode(
        "",
        help="Interpreter of roost's agents on the hosts; empty: the first of their usual names that is new enough.",
    )
    prologue = List(
        Unicode(),
        help="Lines of sh that run on a host before its agent starts, such as 'module load cuda'.",
    )
    refresh_s = Float(60.0, min=1.0, help="How old the known amounts of a host without an agent may become.")
    connect_timeout_s = Float(10.0, min=1.0, help="How long ssh may take to connect to a host.")
    agent_idle_exit_s = Float(600.0, min=0.0, help="Agents leave after this time without leases.")

    @validate("ssh", "prologue")
    def _check_texts(self, proposal: Any) -> Any:
        setting, given = proposal["trait"].name, proposal["value"]
        if any("\0" in each for each in given):
            raise TraitError(f"{setting}: a text has a zero byte: leave it out.")
        if setting == "ssh" and not (given and all(given)):
            raise TraitError('ssh: the command is empty: give a list such as ["ssh"].')
        if setting == "ssh" and " -" in given[0]:  # traitlets makes a list of a text
            raise TraitError(
                f'ssh: {given[0]!a:.80} is one text: give a list such as ["ssh", "-F", "/etc/lab/config"].'
            )
        return given

    def command(self) -> tuple[str, ...]:
        """Return the client's command with the options of all contacts."""
        return (*self.ssh, "-o", f"ConnectTimeout={math.ceil(self.connect_timeout_s)}")

    def agent_settings(self) -> AgentSettings:
        """Return the settings of each agent. The backend adds the facts about the agent's host."""
        return AgentSettings(
            idle_exit_s=self.agent_idle_exit_s,
            forking=self.forking(),
            enforcement=self.enforcement(),
            kernel_ports=parse_port_range(self.kernel_ports),
            is_remote=True,
            divides_machine=True,
            python=self.python,
        )
