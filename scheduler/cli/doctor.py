"""`roost doctor`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from roost.launchers.daemon.daemon import DaemonError
from roost.scheduler.backends.spec import DEFAULT_BACKEND
from roost.scheduler.client.advice import write_command
from roost.scheduler.client.call import ANSWER_S, wait_for
from roost.scheduler.client.client import Client
from roost.scheduler.client.settings_path import find_other_path
from roost.scheduler.errors import ConfigError, RoostError
from roost.scheduler.messages import Finding

from . import machine
from .nodes import describe_cluster
from .options import advise, connect_scheduler, print_answer, scheduler_options
from .services import find_twins
from .tables import build_table, open_console, print_table

_STYLES = {
    "error": "bold red",
    "warning": "yellow",
    "not now": "yellow",
    "not asked": "cyan",
    "fixed": "bold green",
    "ok": "green",
}
"""The style of each level. The worst level comes first."""
_FIX_S = 100.0
"""How long all repairs together may take."""


def diagnose(arguments: argparse.Namespace) -> int:
    """Print the findings about Jupyter's side and the scheduler's.

    Return 1 if one of them is an error, else 0.
    """
    from roost.provisioners import kernelspecs
    from roost.provisioners.server_extension import setup_check

    findings, of_kernelspecs = list[Finding](), list[Finding]()
    silent: tuple[str, Mapping[str, Any]] | None = None
    try:
        client = connect_scheduler(arguments)
        service = wait_for(client.service())
        # First, because the doctor names policies whose decisions failed.
        of_kernelspecs = kernelspecs.find_problems()
        is_fix = arguments.fix and not arguments.dry_run
        reported = wait_for(client.doctor(fix=is_fix), _FIX_S if is_fix else ANSWER_S)
        if arguments.dry_run:
            reported = _show_plans(reported)
        findings += reported
        findings.append({"level": "ok", "what": f"the service is for {describe_cluster(service)}", "do": ""})
        findings += [
            {"level": "ok", "what": f"the scheduler of another world ({each.world}) runs", "do": ""}
            for each in client.find_elsewhere()
        ]
        findings += find_twins(client)
        findings += find_other_path(service, arguments.backend, scheduler_options(arguments))
        if broken := _find_broken_settings(arguments):
            findings = [_put_off_restart(each) for each in findings] + broken
        else:
            findings += _find_refused_restart(client, reported)
    except (RoostError, DaemonError) as error:
        silent = (arguments.backend, advise(arguments).options)
        do = "fix this first: the other checks need the scheduler"
        fields = getattr(error, "fields", {})
        if fields.get("pid"):
            restart = write_command("restart-service", arguments.backend, scheduler_options(arguments))
            do = f"read this log; if the service hangs, `{restart}` ends it and starts the next: kernels live on"
        findings.append({"level": "error", "what": fields.get("what", str(error)), "do": do})
    if arguments.backend == DEFAULT_BACKEND:  # the machine's book divides this machine, and no cluster
        findings += machine.find_problems()
    findings += setup_check.find_problems()
    findings += kernelspecs.find_problems(silent=silent) if silent is not None else of_kernelspecs
    print_answer(arguments, {"findings": findings}, lambda: _show_findings(findings))
    return 1 if any(finding["level"] == "error" for finding in findings) else 0


def _show_plans(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings with what a repair would do, in the place of the advice."""
    return [{**each, "do": f"would do: {each['fix']}"} if "fix" in each else each for each in findings]


def _find_broken_settings(arguments: argparse.Namespace) -> list[Finding]:
    """Return a finding if a scheduler that starts now could not read its settings."""
    from roost.scheduler.config.files import load_settings

    try:
        load_settings(arguments.backend, scheduler_options(arguments))
    except ConfigError as error:
        do = "correct this before the scheduler starts again; until then it keeps its earlier settings"
        return [{"level": "error", "what": str(error), "do": do}]
    return []


def _put_off_restart(finding: Finding) -> Finding:
    """Return the finding. If it advises a restart, it also advises to correct the settings before."""
    do = finding.get("do", "")
    first = f"{do}; correct the settings first, or the restart is refused"
    return {**finding, "do": first} if "restart-service" in do else finding


def _find_refused_restart(client: Client, reported: Sequence[Finding]) -> list[Finding]:
    """Return a finding if a restart, which other findings advise, would be refused."""
    from roost.scheduler.client.service_restart import find_refusal

    if not any("restart-service" in str(each.get("do")) for each in reported):
        return []
    refusal = find_refusal(client.service_folder(), client.backend, client.options)
    do = "correct this before the restart, which is refused until then"
    return [{"level": "error", "what": refusal.rstrip("."), "do": do}] if refusal else []


def _show_findings(findings: Sequence[Finding]) -> None:
    table = build_table("", "")
    table.show_header = False
    for finding in sorted(findings, key=lambda finding: list(_STYLES).index(finding["level"])):
        text = Text(finding["what"])
        advice = finding["fix"] if finding["level"] == "fixed" else finding.get("do")
        if advice:
            text.append(f"\n→ {advice}", style="bold")
        table.add_row(Text(finding["level"], style=_STYLES[finding["level"]]), text)
    print_table(open_console(), table)
