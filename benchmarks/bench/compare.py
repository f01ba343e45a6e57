"""`roost bench compare A.json B.json`: which figures have changed by more than noise."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from roost.placement.model.format import format_count
from roost.scheduler.errors import ConfigError

_LEAST = 0.02
"""A median counts as changed only if it differs by more than this share."""
_FEW = 4
"""With fewer samples than this in one of two runs, noise alone may look like a change."""
_PARTS = ("settings", "machine", "versions", "figures", "samples")
_COUNT = re.compile(r", \d+ kernels(?=/)")
"""The part of a figure's name that says how many kernels ran. Two runs may differ in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A figure in two runs."""

    name: str
    unit: str
    before: float
    after: float
    ratio: float
    """The new median ÷ the old one."""
    samples: int
    """The number of samples in the run that has fewer."""
    verdict: str
    """Empty for an unchanged figure."""


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Return all figures that both runs have.

    A figure has changed if the middle halves of its samples do not overlap, and the medians differ by more
    than two per cent. If a run has fewer than four samples, all of them count instead of the middle half.
    """
    changes = []
    befores, afters = _read_samples(before), _read_samples(after)
    units = {_COUNT.sub("", name): figure["unit"] for name, figure in after["figures"].items()}
    for name, old in befores.items():
        new = afters.get(name)
        if not old or not new:
            continue
        first, second = statistics.median(old), statistics.median(new)
        ratio = second / first if first else float("inf") if second else 1.0
        (low, high), (new_low, new_high) = _middle(old), _middle(new)
        is_apart = new_low > high or new_high < low
        verdict = ("more" if second > first else "less") if is_apart and abs(ratio - 1) > _LEAST else ""
        changes.append(
            Change(
                name=name,
                unit=units[name],
                before=first,
                after=second,
                ratio=ratio,
                samples=min(len(old), len(new)),
                verdict=verdict,
            )
        )
    return changes


def _read_samples(run: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the samples of a run by the figure's name, which does not say how many kernels ran."""
    found: dict[str, list[float]] = {}
    for name, samples in run["samples"].items():
        found.setdefault(_COUNT.sub("", name), []).extend(samples)
    return found


def compare_capacities(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each node that both runs of `density` filled and that holds another number of kernels."""
    said = []
    old, new = before.get("capacity") or {}, after.get("capacity") or {}
    for node in old.keys() & new.keys():
        held, holds = old[node]["holds"], new[node]["holds"]
        changes = [
            f"{held[load]} → {holds[load]} after {load}"
            for load in held
            if load in holds and held[load] != holds[load]
        ]
        if changes:
            said.append(f"{node} holds another number of kernels: {', '.join(changes)}.")
    return sorted(said)


def _middle(samples: Sequence[float]) -> tuple[float, float]:
    """Return the bounds of the middle half of the samples, or of all if there are few."""
    if len(samples) < _FEW:
        return min(samples), max(samples)
    low, _, high = statistics.quantiles(samples, n=4)
    return low, high


def read(file: str) -> dict[str, Any]:
    """Return the content of a JSON file of `roost bench`. Raise `ConfigError` if it is no such file."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as problem:
        raise ConfigError(f"{file} cannot be read: {problem.strerror}.") from None
    except (ValueError, RecursionError) as problem:
        what = f"{file} is not JSON, or its end is missing ({problem})"
        raise ConfigError(f"{what}: give a file that --json has written.") from None
    if not _is_result(content):
        raise ConfigError(f"{file} is no result of `roost bench`: give a file that --json has written.")
    return cast(dict[str, Any], content)


def _is_result(content: Any) -> bool:
    if not isinstance(content, dict) or not isinstance(content.get("benchmark"), str):
        return False
    if not all(isinstance(content.get(name), dict) for name in _PARTS) or not _are_capacities(content):
        return False
    figures = content["figures"]
    units = {name for name, figure in figures.items() if isinstance(figure, dict) and "unit" in figure}
    return content["samples"].keys() <= units and all(map(_are_numbers, content["samples"].values()))


def _are_capacities(content: Mapping[str, Any]) -> bool:
    nodes = content.get("capacity") or {}
    return isinstance(nodes, dict) and all(
        isinstance(node, dict) and isinstance(node.get("holds"), dict) for node in nodes.values()
    )


def _are_numbers(samples: Any) -> bool:
    return isinstance(samples, list) and all(
        isinstance(each, (int, float)) and math.isfinite(each) for each in samples
    )


def show(before: Mapping[str, Any], after: Mapping[str, Any], changes: Sequence[Change]) -> None:
    """Print the figures that have changed, and the differences between the machines and the versions."""
    console = Console()
    for name in ("cpu", "cores", "memory_bytes", "kernel"):
        old, new = before["machine"].get(name), after["machine"].get(name)
        if old != new:
            console.print(f"The machines differ: {name} is {old} and {new}.", highlight=False)
    for name in sorted(before["versions"].keys() | after["versions"].keys()):
        old, new = before["versions"].get(name, "absent"), after["versions"].get(name, "absent")
        if old != new:
            console.print(f"{name}: {old} → {new}", highlight=False)
    for name in sorted(before["settings"].keys() | after["settings"].keys()):
        old, new = (run["settings"].get(name, "absent") for run in (before, after))
        if old != new:
            console.print(f"The settings differ: {name} is {old} and {new}.", highlight=False, markup=False)
    for run, what in ((before, "first"), (after, "second")):
        if any(str(note).startswith("Interrupted") for note in run.get("notes") or ()):
            console.print(f"The {what} run was interrupted: its counts say how far it came.", highlight=False)
    for sentence in compare_capacities(before, after):
        console.print(sentence, highlight=False, markup=False)
    changed = [change for change in changes if change.verdict]
    if changed:
        table = Table("figure", "before", "after", "after ÷ before", "unit", "n")
        for change in changed:
            values = (f"{change.before:.4g}", f"{change.after:.4g}", f"{change.ratio:.2f}")
            table.add_row(change.name, *values, change.unit, str(change.samples))
        console.print(table)
    same = len(changes) - len(changed)
    has_or_have = "has" if len(changed) == 1 else "have"
    counted = f"{format_count(len(changed), 'figure')} {has_or_have} changed, {same} have not."
    console.print(counted, highlight=False)
    for run, what in ((before, "first"), (after, "second")):
        if others := len(_read_samples(run)) - len(changes):
            is_or_are = "is" if others == 1 else "are"
            console.print(
                f"{format_count(others, 'figure')} of the {what} file {is_or_are} not in the other one.",
                highlight=False,
            )
    if any(change.samples < _FEW for change in changed):
        console.print(
            f"Those with n < {_FEW} may differ by noise alone: measure more rounds.", highlight=False
        )
