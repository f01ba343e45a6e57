"""What the `roost` command shows to people. Where stdout is no terminal, lines are as long as need be."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from roost.scheduler.config.memory_size import format_bytes
from roost.scheduler.service.messages import Kernel, KernelRequest

_UNBROKEN = 10_000
_SHOWN_NODES = 10
"""Nodes of which each refusal is shown."""
_WHEN = {"now": "not now", "never": "never"}
_STYLES = {
    "running": "green",
    "queued": "yellow",
    "starting": "yellow",
    "exited": "red",
    "error": "bold red",
    "warning": "yellow",
    "ok": "green",
}


def console() -> Console:
    """stdout: the terminal's width, else COLUMNS, else lines that are never broken."""
    is_free = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=_UNBROKEN if is_free else None, highlight=False, markup=False, emoji=False)


def show(out: Console, made: Table) -> None:
    """Print a table, without the blanks that fill its last column where no terminal needs them."""
    if out.is_terminal:
        out.print(made)
        return
    with out.capture() as captured:
        out.print(made)
    out.file.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Columns without lines around them; long cells are folded, never cut."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def number(value: float) -> str:
    """At most two decimals: `2`, `0.25`."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def ago(at: float, now: float | None = None) -> str:
    """How long ago `at` (seconds since the epoch) was, in one unit."""
    passed = max(0.0, (time.time() if now is None else now) - at)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if passed >= 2 * length:
            return f"{passed // length:.0f} {unit}"
    return f"{passed:.0f} s"


def asks(request: KernelRequest) -> str:
    """A request in a few words, or `-` where nothing is asked for."""
    parts = []
    if request.gpus:
        models = f" {'|'.join(request.gpu_models)}" if request.gpu_models else ""
        parts.append(f"{number(request.gpus)} GPU{models}")
    if request.memory_bytes:
        parts.append(format_bytes(request.memory_bytes))
    if request.cpus:
        parts.append(f"{number(request.cpus)} CPU")
    parts += [f"{number(amount)} {name}" for name, amount in request.resources.items()]
    parts += [f"{key}={value}" for key, value in request.labels.items()]
    parts += [f"near {key}={value}" for key, value in request.near.items()]
    parts += [f"tolerates {taint}" for taint in request.tolerates]
    return ", ".join(parts) or "-"


def show_nodes(nodes: Sequence[Mapping[str, Any]], backend: str, address: str) -> None:
    """One line for each node, one for each GPU, and one for each node with resources, labels, taints or something
    warm; and of which cluster they are."""
    out = console()
    cluster = f"Cluster: {backend}" + (f" at {address}" if address else "")
    if not nodes:
        out.print(f"There are no nodes. {cluster}.")
        return
    made = table(
        "NODE", "CPUS", "MEMORY", "GPUS", "KERNELS", "CPU USE", "STATE", right=("KERNELS", "CPU USE")
    )
    devices = table("GPU", "NODE", "MODEL", "MEMORY", "PROMISED", "USED", right=("PROMISED", "USED"))
    for node in nodes:
        gpus = node["devices"]
        used = node["cpus_used"]
        made.add_row(
            node["id"],
            f"{number(node['cpus_promised'])} of {number(node['cpus'])}",
            f"{format_bytes(node['memory_promised_bytes'])} of {format_bytes(node['memory_bytes'])}",
            f"{number(node['gpus_promised'])} of {len(gpus)}" if gpus else "-",
            str(node["kernels"]),
            "unknown" if used is None or not node["cpus"] else f"{used / node['cpus']:.0%}",
            Text("draining", style="yellow") if node["is_draining"] else Text("ready", style="green"),
        )
        for gpu in gpus:
            devices.add_row(
                gpu["id"],
                node["id"],
                gpu["model"] or "unknown",
                format_bytes(gpu["memory_bytes"]) if gpu["memory_bytes"] else "unknown",
                f"{gpu['promised']:.0%}",
                "unknown" if gpu["used"] is None else f"{gpu['used']:.0%}",
            )
    for each in (made, devices, _traits(nodes)):
        if each.row_count:
            if each is not made:
                out.print()
            show(out, each)
    out.print(f"\nCPUS, MEMORY and GPUS: promised, of what there is. {cluster}.", style="dim")


def _traits(nodes: Sequence[Mapping[str, Any]]) -> Table:
    """What else kernels can ask for; only columns in which some node has something."""
    said: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
        "RESOURCES": lambda node: [
            f"{number(node['resources_promised'].get(name, 0))} of {number(total)} {name}"
            for name, total in sorted(node["resources"].items())
        ],
        "LABELS": lambda node: [f"{name}={value}" for name, value in sorted(node["labels"].items())],
        "TAINTS": lambda node: node["taints"],
        "WARM": lambda node: node["warm"],
    }
    columns = {name: say for name, say in said.items() if any(say(node) for node in nodes)}
    made = table("NODE", *columns)
    for node in nodes:
        cells = ["\n".join(say(node)) for say in columns.values()]
        if any(cells):
            made.add_row(node["id"], *(cell or "-" for cell in cells))
    return made


def show_decision(decision: Mapping[str, Any]) -> None:
    """The sentence, warnings, the ranking with each score's terms, refusals with their reasons, what would help."""
    out = console()
    placement = decision["placement"]
    if placement:
        devices = f", GPU {', '.join(placement['device_ids'])}" if placement["device_ids"] else ""
        out.print(f"It would go to {placement['node_id']}{devices}.", style="bold")
    else:
        out.print(f"{_capital(decision['reason'])}.", style="bold")
    age = decision["metrics_age_s"]
    known = f", metrics {'unknown' if age is None else f'{age:.1f} s old'}" if placement else ""
    if decision["fallback"]:
        out.print(f"Policy {decision['policy']} was asked; {decision['fallback']}.", style="yellow")
    else:
        out.print(f"Policy {decision['policy']}{known}.")
    for warning in decision["warnings"]:
        out.print(f"{_capital(warning)}.", style="yellow")
    ranked = ([placement] if placement else []) + list(decision["runners_up"])
    for made in (_ranking(ranked), _refused(decision["refused"]), _refusals(decision["refusals"])):
        if made.row_count:
            out.print()
            show(out, made)
    total = sum(group["count"] for group in decision["refused"])
    if (more := total - min(total, _SHOWN_NODES)) > 0:
        out.print(
            f"… and {more} more {'node' if more == 1 else 'nodes'} (--json has the first 1,000 reasons)."
        )
    is_short = all(group["filter"] in ("gpu", "memory", "cpu", "avoid") for group in decision["refused"])
    if total > 1 or decision["is_never"] or not is_short:  # of one node that is full all has been said
        if decision["remedies"]:
            out.print()
        for remedy in decision["remedies"]:
            out.print(f"{_capital(remedy)}.")
    if decision["soonest"]:
        _show_soonest(out, decision["soonest"])


def _capital(sentence: str) -> str:
    return f"{sentence[:1].upper()}{sentence[1:]}"


def _ranking(ranked: Sequence[Mapping[str, Any]]) -> Table:
    terms = list(dict.fromkeys(name for place in ranked for name in place["terms"]))
    made = table("RANK", "NODE", "GPU", "SCORE", *terms, right=("RANK", "SCORE", *terms))
    for rank, place in enumerate(ranked, start=1):
        shares = [f"{place['terms'][name]:.3f}" if name in place["terms"] else "" for name in terms]
        devices = ", ".join(place["device_ids"]) or "-"
        made.add_row(str(rank), place["node_id"], devices, f"{place['score']:.3f}", *shares)
    return made


def _refused(groups: Sequence[Mapping[str, Any]]) -> Table:
    """Nodes counted by why they are refused, each with the nearest; nothing where there is only one node."""
    made = table("REFUSED", "WHEN", "NEAREST")
    if sum(group["count"] for group in groups) > 1:
        for group in groups:
            nearest = [f"{each['node_id']}: {each['reason']}" for each in group["examples"][:1]]
            made.add_row(group["text"], _WHEN[group["when"]], *nearest)
    return made


def _refusals(refusals: Sequence[Mapping[str, Any]]) -> Table:
    """The first nodes with all that refuses them."""
    shown = list(dict.fromkeys(refusal["node_id"] for refusal in refusals))[:_SHOWN_NODES]
    made = table("NODE", "WHEN", "WHY")
    for refusal in refusals:
        if refusal["node_id"] in shown:
            made.add_row(refusal["node_id"], _WHEN[refusal["when"]], refusal["reason"])
    return made


def _show_soonest(out: Console, soonest: Mapping[str, Any]) -> None:
    kernels = soonest["kernels"]
    these = "this kernel" if len(kernels) == 1 else f"these {len(kernels)} kernels"
    out.print(f"\nThe soonest to free: {soonest['node_id']} would have room if {these} ended.", style="bold")
    made = table("KERNEL", "OWNER", "APPLICATION", "HOLDS", "GPU", "SINCE", right=("SINCE",))
    short = short_ids([kernel["id"] for kernel in kernels])
    for kernel in kernels:
        amounts = ("cpus", "memory_bytes", "gpus", "resources")
        holds = KernelRequest(**{name: kernel[name] for name in amounts})
        made.add_row(
            short[kernel["id"]],
            kernel["user"],
            kernel["application"] or "-",
            asks(holds),
            ", ".join(kernel["device_ids"]) or "-",
            "unknown" if kernel["since"] is None else ago(kernel["since"]),
        )
    show(out, made)


def show_kernels(kernels: Sequence[Kernel]) -> None:
    """One line for each kernel, oldest first."""
    out = console()
    if not kernels:
        out.print("There are no kernels.")
        return
    made = table("KERNEL", "STATE", "OWNER", "NODE", "GPU", "ASKS FOR", "SINCE", right=("SINCE",))
    short = short_ids([kernel.id for kernel in kernels])
    for kernel in sorted(kernels, key=lambda kernel: kernel.created_at):
        made.add_row(
            short[kernel.id],
            Text(kernel.state, style=_STYLES.get(kernel.state, "")),
            kernel.owner.user,
            kernel.node_id or "-",
            ", ".join(kernel.device_ids) or "-",
            asks(kernel.request),
            ago(kernel.created_at),
        )
    show(out, made)


def show_pending(kernels: Sequence[Kernel]) -> None:
    """The queue, next first."""
    out = console()
    if not kernels:
        out.print("No kernel waits.")
        return
    made = table("POSITION", "KERNEL", "OWNER", "SINCE", "WAITS FOR", right=("POSITION", "SINCE"))
    short = short_ids([kernel.id for kernel in kernels])
    for kernel in sorted(kernels, key=lambda kernel: kernel.position or 0):
        position = "" if kernel.position is None else str(kernel.position)
        made.add_row(
            position, short[kernel.id], kernel.owner.user, ago(kernel.created_at), kernel.waits_for or "-"
        )
    show(out, made)


def short_ids(ids: Sequence[str], at_least: int = 8) -> dict[str, str]:
    """The shortest common length, 8 or more characters, at which all ids differ."""
    length = at_least
    longest = max(map(len, ids), default=0)
    while length < longest and len({known[:length] for known in ids}) < len(set(ids)):
        length += 1
    return {known: known[:length] for known in ids}


def show_findings(findings: Sequence[Mapping[str, str]]) -> None:
    """Errors first, each with what to do about it."""
    out = console()
    made = table("", "")
    made.show_header = False
    order = {"error": 0, "warning": 1, "ok": 2}
    for finding in sorted(findings, key=lambda finding: order.get(finding["level"], 1)):
        said = Text(finding["what"])
        if finding.get("do"):
            said.append(f"\n→ {finding['do']}", style="bold")
        made.add_row(Text(finding["level"], style=_STYLES.get(finding["level"], "")), said)
    show(out, made)
