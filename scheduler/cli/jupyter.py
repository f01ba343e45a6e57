"""`roost kernelspec install`, `list` and `remove`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from roost.provisioners import kernelspecs
from roost.provisioners.kernelspecs import RoostKernelspec
from roost.provisioners.request_options import read_start_options
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.backends.spec import DEFAULT_BACKEND
from roost.scheduler.client.interpreter_probe import MachineAnswer, ProbeResult
from roost.scheduler.client.service_checks import Outlook, check_cluster, check_nodes
from roost.scheduler.errors import ConfigError

from .options import print_answer, request_config, scheduler_options
from .tables import build_table, format_request, open_console, print_table

_STATES = {"starts": "ready", "never": "broken", "not now": "not now", "not asked": "not asked"}


def install(arguments: argparse.Namespace) -> int:
    options = scheduler_options(arguments)
    which = {"backend": arguments.backend, **({"backend_options": options} if options else {})}
    config = {**which, **request_config(arguments)}
    request = read_start_options(config, {}).request
    answers: list[MachineAnswer] = []

    def report(answer: MachineAnswer) -> None:
        answers.append(answer)
        failing = [each for each in answers if each.result is not None and each.problem]
        if answer not in failing:
            print(_describe_answer(answer), file=sys.stderr, flush=True)
        elif len(failing) > 1:  # the error has the sentence of a single one
            for each in failing if len(failing) == 2 else [answer]:
                print(_describe_answer(each), file=sys.stderr, flush=True)

    note = "" if arguments.no_check else check_cluster(request, arguments.backend, options)
    spec, probed = kernelspecs.install(
        arguments.source,
        name=f"roost-{arguments.source}" if arguments.name is None else arguments.name,
        config=config,
        display_name=arguments.display_name,
        prefix=sys.prefix if arguments.sys_prefix else arguments.prefix,
        may_replace=arguments.replace,
        is_checked=not arguments.no_check,
        python=arguments.python,
        check_on=[name for text in arguments.check_on for name in text.split(",") if name],
        report=report,
    )

    def show() -> None:
        print(f"{spec.name} ({spec.display_name})")
        for name, text in {"folder": spec.folder, **_describe_start(spec, probed)}.items():
            print(f"  {name:11} {text}")

    if probed is not None and probed.why_not_forked:
        print(probed.why_not_forked, file=sys.stderr)
    if not arguments.no_check:
        note = note or check_nodes(request, arguments.backend, options)
    if note:
        print(note, file=sys.stderr)
    document = {
        "kernelspec": asdict(spec),
        "environment": asdict(probed) if probed else None,
        "machines": [asdict(answer) for answer in answers],
    }
    return print_answer(arguments, document, show)


def _describe_answer(answer: MachineAnswer) -> str:
    """Return the line about one machine on which the Python was tested."""
    result = answer.result
    if result is None or answer.problem:
        return f"{answer.machine}  {answer.problem}"
    what = (
        f"Python {result.python}, ipykernel {result.ipykernel}" if result.is_ipykernel else result.executable
    )
    return f"{answer.machine}  {what}, {answer.took_s:.1f} s"


def list_all(arguments: argparse.Namespace) -> int:
    rows = [(spec, kernelspecs.find_outlook_of(spec)) for spec in kernelspecs.list_kernelspecs()]
    document = {"kernelspecs": [_to_document(spec, outlook) for spec, outlook in rows]}
    return print_answer(arguments, document, lambda: _show_kernelspecs(rows))


def _to_document(spec: RoostKernelspec, outlook: Outlook) -> dict[str, Any]:
    """Return a kernelspec as JSON. `problem` says why it can never start kernels; empty if it can."""
    problem = outlook.reason if outlook.kind == "never" else ""
    return {**asdict(spec), "state": _STATES[outlook.kind], "reason": outlook.reason, "problem": problem}


def _show_kernelspecs(rows: Sequence[tuple[RoostKernelspec, Outlook]]) -> None:
    if not rows:
        print("No kernelspec starts through roost: `roost kernelspec install --from python3` makes one.")
        return
    table = build_table("NAME", "DISPLAY NAME", "BACKEND", "REQUEST", "STATE")
    for spec, outlook in rows:
        try:
            request = "?" if spec.malformed else format_request(read_start_options(spec.config, {}).request)
        except ConfigError:
            request = "?"
        state = _STATES[outlook.kind]
        table.add_row(spec.name, spec.display_name, _describe_cluster(spec), request, state)
    out = open_console()
    print_table(out, table)
    for spec, outlook in rows:
        if outlook.kind in ("never", "not now"):
            advice = f": {outlook.do}" if outlook.do else ""
            out.print(f"\n{spec.name}: {outlook.reason}{advice}.")


def remove(arguments: argparse.Namespace) -> int:
    removed = []
    for name in arguments.names:
        folder = kernelspecs.remove(name)
        removed.append({"name": name, "folder": folder})
        if not arguments.json:
            print(f"Removed {folder}")
    return print_answer(arguments, {"removed": removed}, lambda: None)


def _describe_cluster(spec: RoostKernelspec) -> str:
    options = spec.config.get("backend_options")
    address = options.get("address", "") if isinstance(options, dict) else ""
    return f"{spec.config.get('backend', DEFAULT_BACKEND)} {address}".rstrip()


def _describe_start(spec: RoostKernelspec, probed: ProbeResult | None) -> Mapping[str, Any]:
    if probed is None:
        return {"checked": "no"}
    if not probed.is_ipykernel:
        start = f"from its command (language: {spec.language or 'unknown'})"
        return {"command": probed.executable, "start": start}
    can_fork = probed.can_fork and not probed.why_not_forked
    is_forked = can_fork and not get_spec(spec.config["backend"]).has_agent_per_kernel
    old = "through sockets in a private folder (encryption needs ipykernel 7.3 or newer)"
    return {
        "command": probed.executable,
        "kernel": f"ipykernel {probed.ipykernel} on Python {probed.python}",
        "start": "forked from a warm process" if is_forked else "from its command",
        "connection": "encrypted (CURVE)" if probed.has_curve else old,
    }
