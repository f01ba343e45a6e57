"""`roost nodes`, `roost drain` and `roost up`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from roost.placement.model import NodeType
from roost.placement.model.format import format_age, format_amount, format_bytes, format_count
from roost.placement.model.node import UNREACHABLE
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.client.call import wait_for

from .machine import describe_others
from .options import connect_scheduler, print_answer
from .tables import build_table, open_console, print_table

_UP_S = 120.0
"""How long the agents of all nodes may take to start."""
_RECENT_S = 20.0
"""Figures that are older than this are shown with their age."""
_EXACT = 1e-3
"""The difference between two sums of shares that counts as none."""


def list_nodes(arguments: argparse.Namespace) -> int:
    client = connect_scheduler(arguments)
    nodes, node_types, service = (
        wait_for(client.nodes()),
        wait_for(client.node_types()),
        wait_for(client.service()),
    )
    cluster = {"backend": service["backend"], "address": service["address"]}
    document = {"cluster": cluster, "nodes": nodes, "node_types": node_types}

    def show() -> None:
        show_nodes(nodes, describe_cluster(service))
        show_node_types(node_types)
        if get_spec(arguments.backend).runs_on_this_machine and (held := describe_others()):
            open_console().print(f"Other users hold {held}.", style="dim")

    return print_answer(arguments, document, show)


def drain(arguments: argparse.Namespace) -> int:
    wait_for(connect_scheduler(arguments).drain(arguments.node, on=not arguments.off))
    state = "kernels again" if arguments.off else "no more kernels; the kernels on it stay"
    document = {"node": arguments.node, "is_draining": not arguments.off}
    return print_answer(arguments, document, lambda: print(f"{arguments.node} takes {state}"))


def start_agents(arguments: argparse.Namespace) -> int:
    count = wait_for(connect_scheduler(arguments).up(), _UP_S)
    text = f"roost's agents run on {format_count(count, 'node')} of {arguments.backend}."
    return print_answer(arguments, {"nodes": count}, lambda: print(text))


def describe_cluster(service: Mapping[str, Any]) -> str:
    """Return the backend and the address that a service reports, for people."""
    return f"{service['backend']} at {service['address']}" if service["address"] else str(service["backend"])


def show_nodes(nodes: Sequence[Mapping[str, Any]], cluster: str) -> None:
    """Print three tables: a line per node, a line per GPU, and the nodes' other properties."""
    out = open_console()
    if not nodes:
        out.print(f"There are no nodes. Cluster: {cluster}.")
        return
    right = ("KERNELS", "CPU USE")
    table = build_table("NODE", "CPUS", "MEMORY", "GPUS", *right, "STATE", right=right)
    devices = build_table("GPU", "NODE", "MODEL", "MEMORY", "PROMISED", "USED", right=("PROMISED", "USED"))
    for node in nodes:
        gpus = node["devices"]
        used = node["cpus_used"]
        table.add_row(
            node["id"],
            f"{format_amount(node['cpus_promised'])} of {format_amount(node['cpus'])}",
            f"{format_bytes(node['memory_promised_bytes'])} of {format_bytes(node['memory_bytes'])}",
            f"{format_amount(node['gpus_promised'])} of {len(gpus)}" if gpus else "-",
            str(node["kernels"]),
            "unknown" if used is None or not node["cpus"] else f"{used / node['cpus']:.0%}",
            _describe_state(node),
        )
        for gpu in gpus:
            devices.add_row(
                gpu["id"],
                node["id"],
                gpu["model"] or "unknown",
                format_bytes(gpu["memory_bytes"]) if gpu["memory_bytes"] else "unknown",
                _describe_promise(node, gpu),
                "unknown" if gpu["used"] is None else f"{gpu['used']:.0%}",
            )
    for each in (table, devices, _build_properties(nodes)):
        if each.row_count:
            if each is not table:
                out.print()
            print_table(out, each)
    out.print(f"\nCPUS, MEMORY and GPUS: promised, of the node's total. Cluster: {cluster}.", style="dim")


def show_node_types(node_types: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of the kinds of nodes that the cluster could start; nothing if none is known."""
    if not node_types:
        return
    table = build_table(
        "NODE TYPE", "CPUS", "MEMORY", "GPUS", "NODES", "LABELS", right=("CPUS", "GPUS", "NODES")
    )
    for node_type in map(NodeType.from_dict, node_types):
        node = node_type.node
        gpus = f"{node.gpus} {node.devices[0].model}".strip() if node.devices else "-"
        labels = "\n".join(f"{name}={value}" for name, value in sorted(node.labels.items())) or "-"
        amounts = format_amount(node.cpus), format_bytes(node.memory_bytes)
        table.add_row(node_type.name, *amounts, gpus, node_type.describe_count(), labels)
    out = open_console()
    out.print()
    print_table(out, table)
    out.print(
        "\nNODE TYPES: the nodes that the cluster could start. NODES: how many there are, of its limit.",
        style="dim",
    )


def _describe_state(node: Mapping[str, Any]) -> Text:
    if not node["is_draining"]:
        return Text("ready", style="green")
    is_reachable = not node["drains_because"].startswith(UNREACHABLE)
    return Text("draining", style="yellow") if is_reachable else Text(UNREACHABLE, style="red")


def _describe_promise(node: Mapping[str, Any], gpu: Mapping[str, Any]) -> str:
    """Return the share of a GPU that is promised. Some clusters say only how many GPUs of a node others hold."""
    gpus, promised = node["devices"], gpu["promised"]
    if node["gpus_promised"] >= len(gpus):
        return "100%"
    by_others = node["gpus_promised"] - sum(each["promised"] for each in gpus)
    return "unknown" if by_others > _EXACT and promised < 1 else f"{promised:.0%}"


def _build_properties(nodes: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of the nodes' other properties. A column without any value is left out."""
    readers: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
        "RESOURCES": lambda node: [
            f"{format_amount(node['resources_promised'].get(name, 0))} of {format_amount(total)} {name}"
            for name, total in sorted(node["resources"].items())
        ],
        "LABELS": lambda node: [f"{name}={value}" for name, value in sorted(node["labels"].items())],
        "TAINTS": lambda node: node["taints"],
        "WARM": lambda node: node["warm"],
        "LIMITS": lambda node: [node["enforcement"]] if node["enforcement"] else [],
        "MEASURED": lambda node: (
            [f"{format_age(node['metrics_age_s'])} ago"] if (node["metrics_age_s"] or 0) > _RECENT_S else []
        ),
        "DRAINS BECAUSE": lambda node: [node["drains_because"]] if node["drains_because"] else [],
    }
    columns = {name: read for name, read in readers.items() if any(read(node) for node in nodes)}
    table = build_table("NODE", *columns)
    for node in nodes:
        cells = ["\n".join(read(node)) for read in columns.values()]
        if any(cells):
            table.add_row(node["id"], *(cell or "-" for cell in cells))
    return table
