"""`roost explain`: the placement that a request would get, or the placement and start of a kernel, with the reasons."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from roost.placement.model import Request
from roost.placement.model.format import format_age, format_count
from roost.provisioners.kernel_environment import limit_gpus
from roost.provisioners.request_options import read_start_options
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.client.call import wait_for
from roost.scheduler.errors import ConfigError
from roost.scheduler.messages import Kernel

from .clean_text import clean
from .kernels import find_kernels
from .options import connect_scheduler, print_answer, request_config, scheduler_options
from .tables import build_table, format_request, open_console, print_table, shorten_ids

_SHOWN_NODES = 10
"""At most this many nodes are shown, each with all its refusals."""
_WHEN = {"now": "not now", "never": "never"}


def explain(arguments: argparse.Namespace) -> int:
    if arguments.kernel:
        return _explain_kernel(arguments)
    config = {**request_config(arguments), "backend": arguments.backend}
    is_here = get_spec(arguments.backend).runs_on_this_machine
    asked = read_start_options(config, {}).request
    request = limit_gpus(asked, arguments.backend, os.environ if is_here else {})
    if arguments.snapshot:
        from roost.scheduler.config.files import load_settings
        from roost.scheduler.policies.offline import explain_saved

        settings, _ = load_settings(arguments.backend, scheduler_options(arguments))
        decision = explain_saved(arguments.snapshot, request, settings)
    else:
        decision = wait_for(connect_scheduler(arguments).explain(request))
    print_answer(arguments, {"decision": decision}, lambda: show_decision(decision))
    return int(decision["is_never"])


def _explain_kernel(arguments: argparse.Namespace) -> int:
    given = [name for name, value in request_config(arguments).items() if value]
    if given or arguments.snapshot:
        raise ConfigError("Give a kernel, or the options of a request: a kernel's request is known already.")
    client = connect_scheduler(arguments)
    (kernel,) = find_kernels(client, [arguments.kernel])
    kernel = wait_for(client.kernel(kernel.id))
    start = {"how": kernel.how, "why_not_forked": kernel.why_not_forked}
    decision, verb = kernel.decision, "went" if kernel.process else "will go"
    if decision is None and kernel.state == "queued":
        decision, verb = wait_for(client.explain(kernel.request, kernel.kernel_name)), "would go"

    def show() -> None:
        if kernel.state == "queued":
            print(f"It is at position {kernel.position or 1} in the queue.")
        if decision is None:
            print("Its placement was decided by an earlier scheduler, which kept no reasons.")
        else:
            # The decision for a start has no warnings, and names no kernels that would make room.
            show_decision({"warnings": (), "soonest": None, **decision}, verb=verb)
        if kernel.process is not None:
            print(f"\n{_describe_start(kernel)}")

    return print_answer(arguments, {"kernel": kernel.id, **start, "decision": decision}, show)


def _describe_start(kernel: Kernel) -> str:
    if kernel.how == "forked":
        return "It was forked from a warm process."
    because = f", because {clean(kernel.why_not_forked)}" if kernel.why_not_forked else ""
    return f"It was executed, not forked{because}."


def show_decision(decision: Mapping[str, Any], *, verb: str = "would go") -> None:
    """Print the placement, warnings, the ranking with its score terms, refusals with reasons, and remedies."""
    out = open_console()
    placement = decision["placement"]
    if placement:
        devices = f", GPU {', '.join(placement['device_ids'])}" if placement["device_ids"] else ""
        out.print(f"It {verb} to {placement['node_id']}{devices}.", style="bold")
    else:
        out.print(f"{_capitalize(decision['reason'])}.", style="bold")
    age = decision["metrics_age_s"]
    metrics = f", metrics {'unknown' if age is None else f'{age:.1f} s old'}" if placement else ""
    if decision["fallback"]:
        out.print(f"Policy {decision['policy']} was asked; {decision['fallback']}.", style="yellow")
    else:
        out.print(f"Policy {decision['policy']}{metrics}.")
    for warning in decision["warnings"]:
        out.print(f"{_capitalize(warning)}.", style="yellow")
    ranked = ([placement] if placement else []) + list(decision["runners_up"])
    groups = decision["refused"]
    for table in (_build_ranking(ranked), _build_groups(groups), _build_refusals(decision["refusals"])):
        if table.row_count:
            out.print()
            print_table(out, table)
    total = sum(group["count"] for group in groups)
    if (more := total - _SHOWN_NODES) > 0:
        out.print(f"… and {format_count(more, 'more node')} (--json has the first 1,000 reasons).")
    # One node that is merely full needs no remedy: the refusal above says everything.
    is_full = all(group["filter"] in ("gpu", "memory", "cpu", "avoid") for group in groups)
    if decision["remedies"] and (total > 1 or decision["is_never"] or not is_full):
        out.print()
        for remedy in decision["remedies"]:
            out.print(f"{_capitalize(remedy)}.")
    if left := decision.get("left"):
        out.print(f"\n{_capitalize(clean(left))}.")
    if others := decision.get("others"):
        out.print(f"\n{_capitalize(clean(others['text']))}.")
    if decision["soonest"]:
        _show_soonest(out, decision["soonest"])


def _capitalize(sentence: str) -> str:
    return f"{sentence[:1].upper()}{sentence[1:]}"


def _build_ranking(ranked: Sequence[Mapping[str, Any]]) -> Table:
    terms = list(dict.fromkeys(name for place in ranked for name in place["terms"]))
    table = build_table("RANK", "NODE", "GPU", "SCORE", *terms, right=("RANK", "SCORE", *terms))
    for rank, place in enumerate(ranked, start=1):
        shares = [f"{place['terms'][name]:.3f}" if name in place["terms"] else "" for name in terms]
        devices = ", ".join(place["device_ids"]) or "-"
        table.add_row(str(rank), place["node_id"], devices, f"{place['score']:.3f}", *shares)
    return table


def _build_groups(groups: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of the refused nodes, counted by reason; without rows if there is only one node."""
    table = build_table("REFUSED", "WHEN", "NEAREST")
    if sum(group["count"] for group in groups) > 1:
        for group in groups:
            nearest = [f"{each['node_id']}: {each['reason']}" for each in group["examples"][:1]]
            table.add_row(group["text"], _WHEN[group["when"]], *nearest)
    return table


def _build_refusals(refusals: Sequence[Mapping[str, Any]]) -> Table:
    shown = list(dict.fromkeys(refusal["node_id"] for refusal in refusals))[:_SHOWN_NODES]
    table = build_table("NODE", "WHEN", "WHY")
    for refusal in refusals:
        if refusal["node_id"] in shown:
            table.add_row(refusal["node_id"], _WHEN[refusal["when"]], refusal["reason"])
    return table


def _show_soonest(out: Console, soonest: Mapping[str, Any]) -> None:
    kernels = soonest["kernels"]
    these = "this kernel" if len(kernels) == 1 else f"these {len(kernels)} kernels"
    out.print(f"\nThe soonest to free: {soonest['node_id']} would have room if {these} ended.", style="bold")
    table = build_table("KERNEL", "OWNER", "APPLICATION", "HOLDS", "GPU", "AGE", right=("AGE",))
    short = shorten_ids([kernel["id"] for kernel in kernels])
    for kernel in kernels:
        amounts = ("cpus", "memory_bytes", "gpus", "resources")
        table.add_row(
            short[kernel["id"]],
            kernel["user"],
            kernel["application"] or "-",
            format_request(Request(**{name: kernel[name] for name in amounts})),
            ", ".join(kernel["device_ids"]) or "-",
            "unknown" if kernel["since"] is None else format_age(time.time() - kernel["since"]),
        )
    print_table(out, table)
