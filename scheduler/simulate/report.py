"""The result of a comparison: policies side by side, as JSON and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from roost.placement.model.format import format_count
from roost.placement.trace_run import RESOURCE_NAMES, Resource, TraceRun


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRun:
    """The run of one stream under one policy. `decision_ms`: median and 99th percentile of the decision times."""

    seed: int
    result: TraceRun
    decision_ms: tuple[float, float]

    def figures(self) -> dict[str, float | None]:
        """Return the run's figures by their JSON names: percentages, and decision times in milliseconds."""
        done = self.result
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
    """The runs of all policies. `stream` describes the requests. `note` is about requests that no node can
    serve, and about kernels that are left out, if there are any.
    """

    trace: str
    stream: str
    note: str = ""
    nodes: int
    capacity: float
    resource: Resource
    runs: Mapping[str, Sequence[PolicyRun]]

    def of(self, policy: str, figure: str) -> list[float]:
        """Return one figure for each run of the policy. Runs without this figure are left out."""
        return [value for run in self.runs[policy] if (value := run.figures()[figure]) is not None]

    def ranked(self) -> list[str]:
        """Return the names of the policies. The policy that refused the least demand comes first."""
        return sorted(self.runs, key=lambda policy: statistics.fmean(self.of(policy, "refused")))

    def to_dict(self) -> dict[str, Any]:
        described = ("trace", "stream", "note", "nodes", "capacity", "resource")
        return {
            **{name: getattr(self, name) for name in described},
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
                            "requests": run.result.requests,
                            "arrived": run.result.arrived,
                            "placed": run.result.placed,
                            "points": [
                                {"percent": percent, **asdict(point)}
                                for percent, point in run.result.points.items()
                            ],
                        }
                        for run in runs
                    ],
                }
                for policy, runs in self.runs.items()
            },
        }

    def shorten(self, policy: str) -> str:
        """Return FILE.py:NAME without its folder, unless two policies would then have the same name."""
        short = _without_folder(policy)
        return short if sum(_without_folder(each) == short for each in self.runs) == 1 else policy

    def draw(self, pyplot: Any, path: str) -> None:
        """Draw the means of allocation, refused demand and fragmentation over the demand that has arrived."""
        panels = ["allocated", "refused"]
        if any(self.of(policy, "fragmented") for policy in self.runs):
            panels.append("fragmented")
        figure, axes = pyplot.subplots(
            len(panels), 1, figsize=(8, 3 * len(panels)), sharex=True, squeeze=False
        )
        for axis, title in zip(axes[:, 0], panels, strict=True):
            for policy in self.ranked():
                x, y = self._curve(policy, title)
                axis.plot(x, y, label=self.shorten(policy), linewidth=1.2)
            axis.set_ylabel(f"{title}, % of {RESOURCE_NAMES[self.resource]}", fontsize=8)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        axes[0, 0].legend(fontsize=8)
        axes[-1, 0].set_xlabel(f"demand arrived, % of {RESOURCE_NAMES[self.resource]}", fontsize=8)
        figure.suptitle(f"{self.stream}, {format_count(self.nodes, 'node')}", fontsize=9)
        figure.tight_layout()
        figure.savefig(path, dpi=130)
        pyplot.close(figure)

    def _curve(self, policy: str, name: str) -> tuple[list[int], list[float]]:
        x, y = [], []
        every = [run.result.points for run in self.runs[policy]]
        for percent in sorted(set.intersection(*(set(points) for points in every))):
            values = [value for points in every if (value := getattr(points[percent], name)) is not None]
            if values:
                x.append(percent)
                y.append(statistics.fmean(values))
        return x, y


def _without_folder(policy: str) -> str:
    path, colon, name = policy.rpartition(":")
    return f"{Path(path).name}:{name}" if colon and path.endswith(".py") else policy
