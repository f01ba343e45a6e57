"""What `roost simulate` found: policies side by side, as a table, JSON and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from roost.placement.replay import Replay, Resource
from roost.placement.text import plural

from .tables import console, show, table

_WORDS = {"gpus": "GPUs", "cpus": "CPUs", "memory_bytes": "memory"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One policy on one stream. `decision_ms` is the median time of a decision and that of the slowest in a hundred."""

    seed: int
    replay: Replay
    decision_ms: tuple[float, float]

    def figures(self) -> dict[str, float | None]:
        """In percent, but for times: allocated, refused of what was asked for, fragmented."""
        done = self.replay
        last = done.points[max(done.points)]
        fragmented = [each.fragmented for each in done.points.values() if each.fragmented is not None]
        return {
            "allocated_at_100": done.allocation(100),
            "allocated_at_end": last.allocated,
            "refused": 100.0 * done.refused / done.arrived if done.arrived else 0.0,
            "refused_requests": 100.0 * done.refused_requests / done.requests if done.requests else 0.0,
            "fragmented": fragmented[-1] if fragmented else None,
            "decision_p50_ms": self.decision_ms[0],
            "decision_p99_ms": self.decision_ms[1],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`runs` by policy. `stream` says what was replayed, in a few words."""

    trace: str
    stream: str
    nodes: int
    capacity: float
    resource: Resource
    runs: Mapping[str, Sequence[Run]]

    def of(self, policy: str, figure: str) -> list[float]:
        """That figure of each run that has it."""
        return [value for run in self.runs[policy] if (value := run.figures()[figure]) is not None]

    def ranked(self) -> list[str]:
        """The policies, who refuses least first."""
        return sorted(self.runs, key=lambda policy: statistics.fmean(self.of(policy, "refused")))

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON types."""
        return {
            "trace": self.trace,
            "stream": self.stream,
            "nodes": self.nodes,
            "capacity": self.capacity,
            "resource": self.resource,
            "policies": {
                policy: {
                    "mean": {
                        figure: statistics.fmean(values) if (values := self.of(policy, figure)) else None
                        for figure in runs[0].figures()
                    },
                    "runs": [
                        {
                            "seed": run.seed,
                            **run.figures(),
                            "requests": run.replay.requests,
                            "arrived": run.replay.arrived,
                            "placed": run.replay.placed,
                            "points": [
                                {"percent": percent, **asdict(point)}
                                for percent, point in run.replay.points.items()
                            ],
                        }
                        for run in runs
                    ],
                }
                for policy, runs in self.runs.items()
            },
        }

    def show(self) -> None:
        """Print the table, best first."""
        out = console()
        first = next(iter(self.runs.values()))
        ends = {max(run.replay.points) for run in first}
        ahead = ["AT 100 %"] if max(ends) > 100 else []
        end = f"AT {ends.pop()} %" if len(ends) == 1 else "AT THE END"
        columns = ("POLICY", *ahead, end, "REFUSED", "REQUESTS", "FRAGMENTED", "P50 ms", "P99 ms")
        made = table(*columns, right=columns[1:])
        for policy in self.ranked():
            cells = [_percent(self.of(policy, "allocated_at_100")) for _ in ahead]
            cells += [
                _percent(self.of(policy, name))
                for name in ("allocated_at_end", "refused", "refused_requests", "fragmented")
            ]
            cells += [
                f"{statistics.fmean(self.of(policy, name)):.3f}"
                for name in ("decision_p50_ms", "decision_p99_ms")
            ]
            made.add_row(policy, *cells)
        on = f"on {plural(self.nodes, 'node')} with {_amount(self.capacity, self.resource)}"
        out.print(f"{self.stream}, {on}.\n")
        show(out, made)
        seeds = f" Means of {len(first)} seeds ± standard deviation." if len(first) > 1 else ""
        out.print(
            f"\nIn percent. AT: {_WORDS[self.resource]} allocated once demand for so much had arrived. REFUSED: of "
            "that demand, and of the REQUESTS. FRAGMENTED: free, and expected to be of no use to requests like these. "
            f"P50, P99: time of a decision.{seeds}",
            style="dim",
        )

    def draw(self, pyplot: Any, path: str) -> None:
        """Allocation, refused demand and fragmentation over arrived demand, each the mean of the runs."""
        panels: list[tuple[str, Callable[[Any], float | None]]] = [
            ("allocated", lambda point: point.allocated),
            ("refused", lambda point: point.refused),
        ]
        if any(self.of(policy, "fragmented") for policy in self.runs):
            panels.append(("fragmented", lambda point: point.fragmented))
        figure, axes = pyplot.subplots(
            len(panels), 1, figsize=(8, 3 * len(panels)), sharex=True, squeeze=False
        )
        for axis, (title, read) in zip(axes[:, 0], panels, strict=True):
            for policy in self.ranked():
                x, y = self._curve(policy, read)
                axis.plot(x, y, label=policy, linewidth=1.2)
            axis.set_ylabel(f"{title}, % of {_WORDS[self.resource]}", fontsize=8)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        axes[0, 0].legend(fontsize=8)
        axes[-1, 0].set_xlabel(f"demand arrived, % of {_WORDS[self.resource]}", fontsize=8)
        figure.suptitle(f"{self.stream}, {plural(self.nodes, 'node')}", fontsize=9)
        figure.tight_layout()
        figure.savefig(path, dpi=130)
        pyplot.close(figure)

    def _curve(self, policy: str, read: Callable[[Any], float | None]) -> tuple[list[int], list[float]]:
        x, y = [], []
        every = [run.replay.points for run in self.runs[policy]]
        for percent in sorted(set.intersection(*(set(points) for points in every))):
            values = [value for points in every if (value := read(points[percent])) is not None]
            if values:
                x.append(percent)
                y.append(statistics.fmean(values))
        return x, y


def _percent(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def _amount(capacity: float, resource: Resource) -> str:
    if resource == "memory_bytes":
        return f"{capacity / 2**30:.0f} GiB memory"
    return plural(capacity, _WORDS[resource].removesuffix("s"))
