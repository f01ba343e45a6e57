"""`roost ssh check`: examines hosts that a person can log in to."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.text import Text

from roost.scheduler.backends.ssh import SPEC
from roost.scheduler.backends.ssh.contacts import Contacts
from roost.scheduler.backends.ssh.examination import Check, HostReport, examine_host
from roost.scheduler.backends.ssh.host import Host, make_host
from roost.scheduler.backends.ssh.host_list import list_hosts
from roost.scheduler.backends.ssh.open_ssh import run_on_host
from roost.scheduler.backends.ssh.settings import RoostSshBackend
from roost.scheduler.config.files import load_settings
from roost.scheduler.errors import ConfigError

from .options import print_answer, scheduler_options
from .tables import build_table, open_console, print_table

_ASK_S = 180.0
"""How long a person may take to answer ssh, with all that follows."""
_STYLES = {"ok": "green", "note": "yellow", "error": "bold red"}


def check(arguments: argparse.Namespace) -> int:
    """Examine the hosts and print the findings. Return 1 if one of them cannot run kernels, else 0."""
    _, settings = load_settings(SPEC.name, scheduler_options(arguments))
    assert isinstance(settings, RoostSshBackend)
    hosts = choose_hosts(arguments.hosts, settings)
    can_ask = sys.stdin.isatty() and not arguments.json
    reports = asyncio.run(_examine_all(hosts, settings, can_ask=can_ask))
    document = {"hosts": [_list_report(report) for report in reports]}
    print_answer(arguments, document, lambda: _show(reports))
    return 0 if all(report.can_run_kernels for report in reports) else 1


def choose_hosts(names: Sequence[str], settings: RoostSshBackend) -> list[Host]:
    """Return the named hosts, with what the settings know about them, or all of the settings. Raises `ConfigError`."""
    if not names:
        return list(list_hosts(settings))
    try:
        known = {host.name: host for host in list_hosts(settings)}
    except ConfigError:  # the list need not be there yet
        known = {}
    try:
        return [known.get(name) or make_host(name, {}) for name in dict.fromkeys(names)]
    except ValueError as problem:
        raise ConfigError(f"{problem}.") from None


async def _examine_all(
    hosts: Sequence[Host], settings: RoostSshBackend, *, can_ask: bool
) -> list[HostReport]:
    contacts = Contacts()
    shows_progress = sys.stderr.isatty() and len(hosts) > 1
    done = 0

    async def examine(host: Host) -> HostReport:
        nonlocal done
        report = await examine_host(host, settings, contacts.run)
        done += 1
        if shows_progress:
            end = "\n" if done == len(hosts) else ""
            print(f"\r{done} of {len(hosts)} hosts", end=end, file=sys.stderr, flush=True)
        return report

    reports = await asyncio.gather(*(examine(host) for host in hosts))
    if can_ask:  # one after another, because they share the terminal
        reports = [
            await _ask_person(host, report, settings) for host, report in zip(hosts, reports, strict=True)
        ]
    return list(reports)


async def _ask_person(host: Host, report: HostReport, settings: RoostSshBackend) -> HostReport:
    """Examine a host again, if it wants a person's answer. ssh asks at the terminal.

    A key that the person has accepted is known from now on. A password is not, and the service has none to give.
    """
    problem = report.problem
    if problem is None or problem.kind not in ("host_key", "authentication"):
        return report
    print(f"{problem}.\nssh may ask you now, to examine {host.name}:", file=sys.stderr)
    asked = await examine_host(host, settings, run_on_host, deadline_s=_ASK_S, may_ask=True)
    if asked.problem is not None:
        return asked
    again = await examine_host(host, settings, run_on_host)
    if again.problem is None:
        return again
    return replace(asked, checks=_mark_login(asked.checks, str(again.problem)), problem=again.problem)


def _mark_login(checks: Sequence[Check], problem: str) -> tuple[Check, ...]:
    """Return the checks of an examination for which a person was asked."""
    what = f"only with an answer of yours: {problem}"
    return tuple(replace(each, level="error", what=what) if each.step == "login" else each for each in checks)


def _list_report(report: HostReport) -> dict[str, Any]:
    return {
        "host": report.host,
        "can_run_kernels": report.can_run_kernels,
        "checks": [asdict(each) for each in report.checks],
    }


def _show(reports: Sequence[HostReport]) -> None:
    out = open_console()
    table = build_table("HOST", "STEP", "TIME", "", "FOUND", right=("TIME",))
    for report in reports:
        for each in report.checks:
            time = "" if each.seconds is None else f"{each.seconds:.2f} s"
            found = f"{each.what}; {each.do}" if each.do else each.what
            table.add_row(report.host, each.step, time, Text(each.level, style=_STYLES[each.level]), found)
    print_table(out, table)
    bad = [report.host for report in reports if not report.can_run_kernels]
    if bad:
        out.print(
            f"{len(reports) - len(bad)} of {len(reports)} hosts can run kernels. Not: {', '.join(bad)}."
        )
    elif len(reports) > 1:
        out.print(f"All {len(reports)} hosts can run kernels.")
    else:
        out.print(f"{reports[0].host} can run kernels.")
