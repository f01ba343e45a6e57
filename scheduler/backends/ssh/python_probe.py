"""Tests a kernelspec's Python on hosts, before the kernelspec is installed (`BackendSpec.probe`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from roost.launchers.agent.interpreter_probe import PROBE_S, ProbeResult
from roost.launchers.protocol.host_contact import HostPython
from roost.placement.model import NODE_LABEL
from roost.placement.model.json_codec import WireError, decode, encode
from roost.scheduler.backends.spec import MachineAnswer, PythonQuestion
from roost.scheduler.errors import ConfigError
from roost.scheduler.messages import format_names

from .contacts import Contacts
from .far_side import PROLOGUE_S
from .host_list import Host, list_hosts
from .open_ssh import HostProblem
from .options import FOLDER, PROLOGUE, check_options
from .questions import ask_host
from .settings import RoostSshBackend

Report = Callable[[MachineAnswer], object]

_MOST = 8
"""At most this many hosts are asked at once."""
_NEXT_S = 2.0
"""How long a host may think before the next one is asked too, if one answer is enough."""
_ASK_S = 30.0 + 2 * PROLOGUE_S + PROBE_S
_ANSWERED = ("python", "answer")
"""The problems of a host that was reached."""


def probe(settings: RoostSshBackend, question: PythonQuestion, report: Report) -> None:
    """Test the Python on one host or on several, and report each. Raises `ConfigError`."""
    check_options(question.request.options)
    hosts = choose_hosts(list_hosts(settings), question)
    asyncio.run(_probe(settings, question, hosts, report))


def choose_hosts(hosts: Sequence[Host], question: PythonQuestion) -> list[Host]:
    """Return the hosts that a question is about. Raises `ConfigError` if there is none."""
    labels = question.request.labels
    if question.machines:
        named = [host for host in hosts if host.name in question.machines]
        if unknown := set(question.machines) - {host.name for host in named}:
            known = format_names([host.name for host in hosts])
            raise ConfigError(f"{min(unknown)!a:.80} is no host of the backend ssh: name one of {known}.")
        return named
    fitting = [host for host in hosts if labels.items() <= {NODE_LABEL: host.name, **host.labels}.items()]
    if not fitting:
        wanted = format_names([f"{name}={value}" for name, value in labels.items()])
        raise ConfigError(f"no host of the backend ssh has the labels {wanted}: correct them.")
    return fitting


async def _probe(
    settings: RoostSshBackend, question: PythonQuestion, hosts: Sequence[Host], report: Report
) -> None:
    contacts = Contacts()
    needs_all = question.asks_all or bool(question.machines)
    waiting = list(hosts)
    asked: set[asyncio.Task[MachineAnswer]] = set()
    try:
        while waiting or asked:
            while waiting and len(asked) < _MOST:
                asked.add(asyncio.create_task(_ask(contacts, settings, waiting.pop(0), question)))
                if not needs_all:
                    break
            may_go_on = waiting and len(asked) < _MOST
            done, asked = await asyncio.wait(
                asked, timeout=_NEXT_S if may_go_on else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                answer = task.result()
                report(answer)
                if answer.result is not None and not needs_all:
                    return
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def _ask(
    contacts: Contacts, settings: RoostSshBackend, host: Host, question: PythonQuestion
) -> MachineAnswer:
    options = question.request.options
    python = HostPython(argv=question.argv, env=question.env, cwd=options.get(FOLDER, ""))
    began = time.monotonic()
    result: ProbeResult | None = None
    try:
        found = await ask_host(
            contacts,
            settings,
            host.name,
            kernel_python=encode(python),
            kernel_prologue=options.get(PROLOGUE, ""),
            deadline_s=_ASK_S,
        )
        if "failed" in found:
            result = ProbeResult(problem=f"{found['failed']}.")
        else:
            result = decode(ProbeResult, found["result"], ignore_unknown=True)
        problem = result.problem
    except HostProblem as caught:
        problem = caught.user_message
        if caught.kind in _ANSWERED:
            result = ProbeResult(problem=problem)
    except (WireError, KeyError) as damaged:
        problem = f"its answer cannot be read ({damaged!r:.80}): ask for roost's support."
        result = ProbeResult(problem=problem)
    return MachineAnswer(
        machine=host.name,
        took_s=time.monotonic() - began,
        result=result,
        problem=problem.removeprefix(f"{host.name}: "),
    )
