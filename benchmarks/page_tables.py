"""The tables of docs/benchmarks.md, with the figures in them. `write_page.py` fills them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of docs/benchmarks.md.

    `name` is in the markers of the table, and `source` is the name of the benchmark. If both are equal, the
    table also shows the benchmark's missed bounds, notes and picture. `rows` has, by label, the name of a
    figure or an empty text for each column. `ratios` has, by title, the columns of numerator and denominator.
    `packages` are packages whose versions are shown besides those of Python, ipykernel and jupyter_client.
    """

    name: str
    source: str
    corner: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[str]]
    ratios: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    packages: Sequence[str] = ()
    has_picture: bool = True


def by_side(sides: Sequence[str], stages: Mapping[str, str]) -> dict[str, list[str]]:
    """Return a row for each label in `stages`: the names of the stage's figures for all sides."""
    return {label: [f"{stage}/{side}" for side in sides] for label, stage in stages.items()}


_PLAIN = "plain local Jupyter"
_TO_PLAIN = {"roost ÷ plain": ("roost", _PLAIN)}
_BOTH = ("plain", "roost")
_GATEWAY = "Gateway Provisioners"
_FAST_GATEWAY = "the same, GP_POLL_INTERVAL=0.05"
_LIFE = {
    "start → first `execute_reply`": "start",
    "the same at once after another start": "again",
    "interrupt → reply of the cell that slept": "interrupt",
    "restart → first `execute_reply`": "restart",
    "stop": "stop",
}


def _on_cluster(source: str, title: str, package: str, readings: Mapping[str, str]) -> list[Table]:
    """Return the tables of `on_ray.py` or `on_dask.py`. `readings` is label → stage, for the reading of 1,000 nodes."""
    columns = (_PLAIN, f"with a CPU on {title}", f"with half a GPU on {title}")
    starts = Table(
        name=source,
        source=source,
        corner="",
        columns=columns,
        rows=by_side(("plain", "roost-cpu", "roost-gpu"), _LIFE),
        ratios={"CPU ÷ plain": (columns[1], _PLAIN), "GPU ÷ plain": (columns[2], _PLAIN)},
        packages=(package,),
    )
    cluster = Table(
        name=f"{source}-cluster",
        source=source,
        corner="",
        columns=("roost",),
        rows={
            f"{title}'s part of a start with a CPU": ["stage leased/roost-cpu"],
            f"{title}'s part of a start with half a GPU": ["stage leased/roost-gpu"],
            "sixty kernels at once": ["60 at once/roost-tiny"],
            "largest promised share of a node's CPUs meanwhile": ["largest promised share/roost-tiny"],
            "the very first kernel, without a service and agents": ["first start/roost-gpu"],
            **{label: [f"{stage}/1000 nodes"] for label, stage in readings.items()},
        },
        packages=(package,),
    )
    return [starts, cluster]


def _beside_plain(
    name: str,
    stages: Mapping[str, str],
    *,
    source: str = "",
    corner: str = "",
    more: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """Return a table of plain kernels and roost, with a row for each label in `stages`.

    `more` are further rows, as in `Table`. An empty `source` means `name`.
    """
    return Table(
        name=name,
        source=source or name,
        corner=corner,
        columns=(_PLAIN, "roost"),
        rows=by_side(_BOTH, stages) | dict(more or {}),
        ratios=_TO_PLAIN,
    )


_STARTS = [
    _beside_plain(
        "start",
        {
            **_LIFE,
            "five at once": "5 at once",
            "the very first start, without a service and an agent": "first start",
        },
        more={
            "a program's start: `roost.start_kernel` → result of the first code (plain: as above)": [
                "start/plain",
                "start by roost.start_kernel/roost",
            ]
        },
    ),
    Table(
        name="against_gateway",
        source="against_gateway",
        corner="",
        columns=(_PLAIN, "roost", _GATEWAY, _FAST_GATEWAY),
        rows=by_side(
            (*_BOTH, "gateway", "gateway, 0.05 s"),
            {label: stage for label, stage in _LIFE.items() if stage != "restart"},
        ),
        ratios={
            f"roost ÷ {_GATEWAY}": ("roost", _GATEWAY),
            "roost ÷ the same, 0.05": ("roost", _FAST_GATEWAY),
        },
        packages=("gateway_provisioners",),
    ),
    _beside_plain(
        "memory",
        {
            "PSS after `1+1`": "PSS after 1+1",
            "the same with its part of roost's own processes": "all in",
            "PSS after a completion": "PSS after a completion",
        },
        corner="memory of each of 50 kernels",
    ),
    _beside_plain(
        "memory-all-in",
        {
            "one user with one kernel": "all in, 1 user with 1 kernel",
            "one user with three kernels": "all in, 1 user with 3 kernels",
            "one user with ten kernels": "all in, 1 user with 10 kernels",
            "twenty users with one kernel each": "all in, 20 users with 1 kernel",
        },
        source="memory",
        corner="all processes, for each user",
    ),
    Table(
        name="through_server",
        source="through_server",
        corner="",
        columns=("stock server, plain kernel", "roost"),
        rows=by_side(
            _BOTH,
            {
                "start (POST) → websocket → first reply": "start",
                "restart → reply on the same websocket": "restart",
                "one round trip on the websocket": "round trip",
                "first kernel, 3 s after the server's start → result of a cell": "first",
                "first kernel as soon as the server answers → result of a cell": "soonest",
                "the server's own start": "server",
            },
        ),
        ratios={"roost ÷ plain": ("roost", "stock server, plain kernel")},
        packages=("jupyter_server",),
    ),
    Table(
        name="output",
        source="output",
        corner="",
        columns=("plain kernel", "roost"),
        rows=by_side(
            _BOTH,
            {
                "round trip of `1+1`": "round trip",
                "2,000 lines, each flushed": "lines",
                "10 MB in one piece": "text",
                "2,000 displays": "displays",
                "processor time of the kernel for the lines": "kernel CPU, lines",
                "processor time of the kernel for the 10 MB": "kernel CPU, text",
                "processor time of the kernel for the displays": "kernel CPU, displays",
                "processor time of the agent for the lines": "agent CPU, lines",
                "processor time of the agent for the 10 MB": "agent CPU, text",
                "processor time of the agent for the displays": "agent CPU, displays",
            },
        ),
        ratios={"roost ÷ plain": ("roost", "plain kernel")},
    ),
    Table(
        name="limits",
        source="limits",
        corner="",
        columns=("without", "with"),
        rows={
            "start → first reply, without and with limits": ["start/free", "start/limited"],
            "a neighbour's round trip, without and with a kernel that runs out of memory": [
                "round trip alone/roost",
                "round trip beside/roost",
            ],
            "cell that fills the memory sent → the end is known": ["", "end/roost"],
            "the lease is free this long after its time": ["", "free/roost"],
        },
        ratios={"with ÷ without": ("with", "without")},
    ),
    Table(
        name="in_browser",
        source="in_browser",
        corner="",
        columns=("plain kernel", "roost"),
        rows=by_side(
            _BOTH,
            {
                "first kernel of a new server: card clicked → result of a cell that is run at once": "first",
                "such cells that JupyterLab dropped at first": "first: lost",
                "later kernels: cells dropped that are run at once": "at once: lost",
                "cells dropped that are run after half a second": "half a second: lost",
                "a GPU is held: cell run → its line with place and reason": "shown",
                "the GPU is released → result of the waiting cell": "released",
            },
        ),
        ratios={"roost ÷ plain": ("roost", "plain kernel")},
        packages=("jupyter_server", "jupyterlab"),
    ),
]

_CLUSTERS = [
    _beside_plain(
        "on_gpu",
        {
            "start → first `execute_reply`": "start",
            "a cell that imports torch": "import",
            "a cell with the first product on the GPU": "product",
            "start → the result of that product": "to a result",
            "PSS of each of 4 kernels with such a result": "PSS",
            "GPU memory of each of them": "GPU memory",
        },
    ),
    *_on_cluster("on_ray", "Ray", "ray", {"1,000 nodes read": "decode"}),
    *_on_cluster(
        "on_dask",
        "Dask",
        "distributed",
        {
            "1,000 machines read": "read",
            "of it, Dask's scheduler is busy": "answer",
            "the same for a change of one machine": "change",
        },
    ),
    Table(
        name="on_kubernetes",
        source="on_kubernetes",
        corner="start → first `execute_reply`",
        columns=(_PLAIN, "roost", "pod whose command is the kernel"),
        rows={
            "without a CPU limit": ["start/plain", "start/roost", "start/gateway"],
            "with a limit of 0.5 CPUs": ["start/plain", "start/roost-limited", "start/gateway-limited"],
            "by the defaults of each side": ["start/plain", "start/roost", "start/gateway-default"],
        },
        ratios={"roost ÷ pod": ("roost", "pod whose command is the kernel")},
    ),
    Table(
        name="kubernetes_scale",
        source="kubernetes_scale",
        corner="",
        columns=("1,000 nodes, 5,000 pods", "5,000 nodes, 50,000 pods"),
        rows=by_side(
            ("written", "recorded"),
            {
                "everything is read": "read",
                "decision": "decision",
                "decision, p99": "decision p99",
                "lease (created → bound)": "lease",
                "lease, p99": "lease p99",
                "memory of the service, at most": "memory",
                "processor time while no kernel starts": "load",
                "all watches expire at once → everything is read again": "reread",
                "decision meanwhile": "decision during reread",
                "lease meanwhile": "lease during reread",
            },
        ),
    ),
    Table(
        name="on_yarn",
        source="on_yarn",
        corner="start → first `execute_reply`",
        columns=(_PLAIN, "roost", "gateway"),
        rows={
            label: [f"start/{side}, {settings}" for side in ("plain", "roost", "gateway")]
            for label, settings in (
                ("YARN's defaults", "default"),
                ("with asynchronous scheduling", "asynchronous"),
            )
        },
        ratios={"roost ÷ gateway": ("roost", "gateway")},
    ),
    Table(
        name="on_yarn-stages",
        source="on_yarn",
        corner="stage of roost's start",
        columns=("YARN's defaults", "asynchronous scheduling"),
        rows=by_side(
            ("roost, default", "roost, asynchronous"),
            {
                "asked → granted": "stage leased",
                "granted → the agent has answered": "stage granted",
                "→ the kernel's ports are open": "stage launched",
                "→ reply": "stage reply",
            },
        ),
    ),
    Table(
        name="on_yarn-master",
        source="on_yarn",
        corner="",
        columns=("roost",),
        rows={
            "memory of the application master (RSS)": ["memory, RSS/master"],
            "memory of the application master (PSS)": ["memory, PSS/master"],
            "its processor time in an idle minute": ["idle/master"],
            "1,000 nodes read": ["read/roost, 1000 nodes"],
        },
    ),
]

_POLICIES = ("random", "best_fit", "fgd", "balanced")
_SIZES = ("1213", "10000", "100000")
_PLACEMENT = [
    Table(
        name="placement",
        source="placement",
        corner="GPUs allocated",
        columns=("Random", "BestFit", "FGD", "FGD as published (mean)", "roost's `balanced`"),
        rows={
            f"{workload}, {at} arrived": [
                f"{workload} {at}/{policy}" for policy in (*_POLICIES[:3], "fgd, published", _POLICIES[3])
            ]
            for workload in ("default", "gpushare40", "gpuspec33", "multigpu50", "cpu250")
            for at in ("100 %", "130 %")
        },
        packages=("numpy",),
        has_picture=False,
    ),
    Table(
        name="placement-departures",
        source="placement",
        corner="GPU demand refused",
        columns=("Random", "BestFit", "FGD", "roost's `balanced`"),
        rows={
            f"{workload}, load {load}": [
                f"{workload} at load {load} refused/{policy}" for policy in _POLICIES
            ]
            for workload, load in (("default", "0.88"), ("gpuspec33", "0.85"))
        },
        packages=("numpy",),
    ),
    Table(
        name="decision",
        source="decision",
        corner="",
        columns=("1,213 nodes", "10,000 nodes", "100,000 nodes"),
        rows=by_side(
            _SIZES,
            {
                "decision, p50": "decision p50",
                "decision, p99": "decision p99",
                "a class of requests that is new": "never seen",
                "recording the placement, p50": "commit p50",
                "memory of a snapshot with its GPUs": "snapshot",
            },
        ),
        packages=("numpy",),
    ),
    Table(
        name="scale",
        source="scale",
        corner="100,000 kernels on 10,000 simulated nodes",
        columns=("roost's service",),
        rows={
            "starts, 16 at the same time": ["starts"],
            "start → the agent has answered, p50": ["start p50"],
            "start → the agent has answered, p99": ["start p99"],
            "decision, p50": ["decision p50"],
            "decision, p99": ["decision p99"],
            "processor time of the service per start": ["CPU per start: service"],
            "processor time of all agents per start": ["CPU per start: agents"],
            "processor time of the client per start": ["CPU per start: client"],
            "processor time of the service while no kernel starts": ["idle: service"],
            "memory of the service with all kernels (PSS)": ["memory"],
            "the next service after kill -9 has read everything back": ["read back"],
        },
        has_picture=False,
    ),
    Table(
        name="soak",
        source="soak",
        corner="",
        columns=("during the run", "growth over its second half"),
        rows={
            label: [series, f"growth of {series}"]
            for label, series in (
                *((f"memory of the {part} (RSS)", f"{part} RSS") for part in ("service", "agent", "zygote")),
                *((f"descriptors of the {part}", f"{part} fds") for part in ("service", "agent", "zygote")),
                ("files in the runtime folder", "runtime folder files"),
            )
        },
    ),
]

TABLES = (*_STARTS, *_CLUSTERS, *_PLACEMENT)
