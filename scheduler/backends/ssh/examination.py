"""Examines a host on the way of a start: from ssh's configuration to a port that is reached from here.

examine_host ──> ssh -G HOST, then one contact ══> the host          open_ssh
                    the program there                                far_examination
             ──> a `Check` for each step, with a sentence for a person
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from roost.launchers.protocol.host_contact import Question
from roost.placement.model.format import format_amount, format_bytes
from roost.placement.model.json_codec import encode
from roost.scheduler.backends.node_archive import pack

from .far_examination import write_program
from .host import Host
from .logout_rules import read_logout_rules
from .open_ssh import HostProblem, read_options
from .problems import clean
from .settings import RoostSshBackend

Level = Literal["ok", "note", "error"]
Contact = Callable[..., Awaitable[dict[str, Any]]]
"""`run_on_host` or `Contacts.run`."""

_REACH_S = 3.0
_STEPS = ("login", "python", "prologue", "archive", "imports", "amounts", "rules", "address")
"""The steps of the contact in their order. The way of a host without a prologue has no step `prologue`."""
_KERBERIZED = ("afs", "openafs", "auristorfs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One step of a host's examination."""

    step: str
    level: Level
    what: str
    """The finding, as a clause."""
    do: str = ""
    """The remedy, as a clause."""
    seconds: float | None = None
    """How long the step took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReport:
    """The examination of one host."""

    host: str
    checks: tuple[Check, ...]
    problem: HostProblem | None = None
    """Why the contact failed."""

    @property
    def can_run_kernels(self) -> bool:
        return not any(check.level == "error" for check in self.checks)


async def examine_host(
    host: Host, settings: RoostSshBackend, contact: Contact, *, deadline_s: float = 60.0, **options: Any
) -> HostReport:
    """Examine one host. `contact` gets the `options` besides those of the settings. Raises nothing for a bad host."""
    began = time.monotonic()
    found = await read_options(host.name, ssh=settings.ssh, deadline_s=5.0)
    checks = [_describe_options(found, time.monotonic() - began)]
    prologue = "\n".join(settings.prologue)
    way = _Way(began=time.monotonic(), token=secrets.token_hex(16), has_prologue=bool(prologue))
    archive, digest = pack()
    question = Question(name="agent-ssh-check", settings=settings.agent_settings(), clients=())
    arguments = {
        "digest": digest,
        "prologue": prologue,
        "question": encode(replace(question, settings=replace(question.settings, address=host.address))),
        "address": host.address,
        "token": way.token,
        "reach_s": _REACH_S,
        "ports": question.settings.kernel_ports,
    }
    try:
        facts = await contact(
            host.name,
            write_program(),
            arguments,
            archive=lambda: archive,
            python=settings.python,
            ssh=settings.command(),
            deadline_s=deadline_s,
            report=way.note,
            **options,
        )
        checks += way.describe(facts)
        checks.append(await way.describe_address(facts))
        return HostReport(host=host.name, checks=tuple(checks))
    except HostProblem as problem:
        checks += [*way.describe({}), way.describe_end(problem)]
        return HostReport(host=host.name, checks=tuple(checks), problem=problem)
    finally:
        await way.close()


class _Way:
    """The steps that a host has done, with their times."""

    def __init__(self, *, began: float, token: str, has_prologue: bool) -> None:
        self.token = token
        self._has_prologue = has_prologue
        self._last = began
        self._steps: dict[str, float] = {}
        self._has_master = False
        self._reaching: asyncio.Task[str] | None = None

    def note(self, step: str) -> None:
        """Note a step that is done. The step of a port begins a connection to it."""
        now = time.monotonic()
        if step == "master":
            self._has_master = True
            return
        if step.startswith("listens "):
            _, port, address = step.split(" ", 2)
            if self._reaching is None and port.isdecimal():
                self._reaching = asyncio.ensure_future(self._reach(address, int(port)))
            return
        name = "login" if step == "shell" else step
        self._steps[name] = now - self._last
        self._last = now

    def describe(self, facts: Mapping[str, Any]) -> list[Check]:
        """Return the checks of the steps that are done."""
        checks = [
            Check(step=step, level="ok", what=self._say(step, facts), seconds=self._steps[step])
            for step in _STEPS
            if step in self._steps and step != "rules"
        ]
        return [*checks, *_describe_rules(facts)] if facts else checks

    def describe_end(self, problem: HostProblem) -> Check:
        """Return the check of the step that has failed."""
        done = [step for step in _STEPS if step in self._steps]
        way = [step for step in _STEPS if step != "prologue" or self._has_prologue or step in done]
        step = way[way.index(done[-1]) + 1] if done else "login"
        if step in ("prologue", "archive") and problem.kind == "python":
            step = "imports"
        return Check(step=step, level="error", what=str(problem), seconds=time.monotonic() - self._last)

    async def describe_address(self, facts: Mapping[str, Any]) -> Check:
        """Return whether a port of the host was reached from here."""
        address = clean(str(facts.get("address", "")))
        problem = clean(str(facts.get("address_problem", "")))
        do = "give the host the label address, with an address where it listens and that is reached from here"
        if not problem and self._reaching is not None:
            problem = await self._reaching
            do = f"let this machine connect to the ports of {address}, or give the host the label address"
        elif not problem:
            problem = "the host has not opened a port"
        seconds = time.monotonic() - self._last
        if problem:
            return Check(step="address", level="error", what=problem, do=do, seconds=seconds)
        what = f"its ports are reached at {address}"
        return Check(step="address", level="ok", what=what, seconds=seconds)

    async def close(self) -> None:
        if self._reaching is not None:
            self._reaching.cancel()
            await asyncio.wait([self._reaching])

    def _say(self, step: str, facts: Mapping[str, Any]) -> str:
        if step == "login" and self._has_master:
            return "by a connection that is open"
        if step == "python" and "python" in facts:
            return clean(f"{facts['python']}, {facts.get('executable', '')}")
        if step == "archive" and facts:
            return "roost's code is there" if facts.get("was_there") else "roost's code is sent"
        if step == "amounts" and isinstance(node := facts.get("node"), Mapping):
            return _describe_amounts(node)
        return "done"

    async def _reach(self, address: str, port: int) -> str:
        """Connect to the host's port. Return why that is not possible, as a clause; empty if it is."""
        writer: asyncio.StreamWriter | None = None
        connecting = asyncio.ensure_future(asyncio.open_connection(address, port))
        try:
            await asyncio.wait([connecting], timeout=_REACH_S - 0.5)
            if not connecting.done():
                return f"its ports cannot be reached at {address}: no answer within {_REACH_S - 0.5:g} s"
            reader, writer = connecting.result()
            reading = asyncio.ensure_future(reader.read(len(self.token)))
            try:
                await asyncio.wait([reading], timeout=_REACH_S)
                is_right = reading.done() and reading.result() == self.token.encode()
            finally:
                reading.cancel()
            return "" if is_right else f"{address} is another machine, seen from here"
        except OSError as problem:
            return f"its ports cannot be reached at {address}: {_name_error(problem)}"
        finally:
            connecting.cancel()
            if writer is not None:
                writer.close()


def _name_error(problem: OSError) -> str:
    """Return the system's words for an error. asyncio has words of its own."""
    return os.strerror(problem.errno) if problem.errno and problem.errno > 0 else clean(str(problem))


def _describe_options(options: Mapping[str, str], seconds: float) -> Check:
    if not options:
        what = "ssh cannot say how it reaches this host"
        return Check(step="settings", level="note", what=what, seconds=seconds)
    server = f"{options.get('user', '')}@{options.get('hostname', '')}"
    what = f"{server}, port {options.get('port', '22')}"
    if (jump := options.get("proxyjump", "none")) != "none":
        what += f", through {jump}"
    elif options.get("proxycommand", "none") != "none":
        what += ", through a ProxyCommand"
    return Check(step="settings", level="ok", what=clean(what), seconds=seconds)


def _describe_amounts(node: Mapping[str, Any]) -> str:
    try:
        amounts = [f"{format_amount(node['cpus'])} CPU", format_bytes(node["memory_bytes"])]
        gpus = len(node.get("devices", ()))
    except (KeyError, TypeError, ValueError):
        return "done"
    return ", ".join([*amounts, f"{gpus} GPU"] if gpus else amounts)


def _describe_rules(facts: Mapping[str, Any]) -> list[Check]:
    """Return the checks of what ends kernels, or takes their files away, when the user logs out."""
    checks = []
    user = clean(str(facts.get("user", "")))
    manager, own = (str(text) for text in (*facts.get("logout", ()), "", "")[:2])
    rules = read_logout_rules(manager, own, user)
    if rules is None:
        checks.append(Check(step="logout", level="ok", what="no systemd ends processes at logout"))
    elif rules.ends_processes:
        checks.append(
            Check(
                step="logout",
                level="error",
                what=f"systemd ends the processes of {user} at logout (KillUserProcesses)",
                do=f"ask the operator to add {user} to KillExcludeUsers in /etc/systemd/logind.conf",
            )
        )
    else:
        checks.append(Check(step="logout", level="ok", what="systemd lets processes live after a logout"))
    home = facts.get("home", {})
    kind, options = (clean(str(home.get(name, ""))) for name in ("type", "options"))
    if kind in _KERBERIZED or "sec=krb5" in options:
        what = f"the home is on {kind} with Kerberos: kernels lose it when the tickets end"
        do = "keep notebooks and data elsewhere, or renew the tickets on the host"
        checks.append(Check(step="home", level="note", what=what, do=do))
    return checks
