"""Pictures of a benchmark's results, from the document in its JSON file."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from roost.bench.report import describe_machine, show_number

_BASELINE = "plain"
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:red")
"""The colours of the sides. The baseline is grey."""
_WIDE = 100.0
"""An axis is logarithmic if its largest value is more than this times its smallest one."""
_ROW_INCHES = 0.24
_GAP = 0.6
"""The space between two stages, in rows."""


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw all samples of a benchmark as dots with their medians. Each unit has a panel, and each side has a colour.

    A second picture beside `path` shows how many kernels each node holds, if the benchmark filled nodes. Raises
    `ImportError` if matplotlib is missing.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    if document["series"] or document["capacity"]:
        _draw_capacity(pyplot, document, path)
    figures = document["figures"]
    units = list(dict.fromkeys(figure["unit"] for figure in figures.values()))
    if not units:  # interrupted before the first sample
        return
    sides = list(dict.fromkeys(side for _, side in map(split, figures)))
    sides.sort(key=lambda side: (side == _BASELINE, not side.startswith("roost")))
    colours = {**dict(zip(sides, itertools.cycle(_COLOURS), strict=False)), _BASELINE: "tab:gray"}
    panels = [arrange((name for name in figures if figures[name]["unit"] == unit), sides) for unit in units]
    heights = [panel[0][0][0] + 1.6 for panel in panels]
    picture, axes = pyplot.subplots(
        len(units),
        1,
        figsize=(8, _ROW_INCHES * sum(heights) + 0.5 * len(units) + 0.6),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis, unit, panel, height in zip(axes[:, 0], units, panels, heights, strict=True):
        shown = [(row, name, document["samples"][name]) for rows in panel for row, name in rows]
        for row, name, values in shown:
            colour = colours[split(name)[1]]
            axis.plot(values, [row] * len(values), "o", color=colour, alpha=0.35, markersize=4)
            median = statistics.median(values)
            axis.plot([median], [row], "|", color=colour, markersize=11, markeredgewidth=2)
            # Beside the dots, because the next side's dots are above.
            at = (max(values), row)
            axis.annotate(
                show_number(median), at, (6, -3), textcoords="offset points", fontsize=7, color=colour
            )
        _scale(axis, [value for _, _, values in shown for value in values])
        axis.set_yticks(
            [statistics.mean(row for row, _ in rows) for rows in panel],
            [split(rows[0][1])[0] for rows in panel],
        )
        axis.tick_params(labelsize=8)
        axis.set_ylim(-0.8, height - 0.8)
        axis.set_xlabel(f"{unit} (a dot: one sample; the bar and the number: the median)", fontsize=8)
        axis.grid(axis="x", alpha=0.25)
    if named := [side for side in sides if side]:
        marks = [
            pyplot.Line2D([], [], color=colours[side], marker="o", linestyle="", label=side) for side in named
        ]
        picture.legend(handles=marks, loc="outside lower right", ncols=len(sides), fontsize=8, frameon=False)
    axes[0, 0].set_title(_title(document), fontsize=9)
    picture.savefig(path, dpi=130)
    pyplot.close(picture)


def arrange(names: Iterable[str], sides: Sequence[str]) -> list[list[tuple[float, str]]]:
    """Return the figures of each stage, in the order of `sides`, each with its height in rows.

    The first stage is the highest, and the first figure of each stage.
    """
    stages: dict[str, list[str]] = {}
    for name in names:
        stages.setdefault(split(name)[0], []).append(name)
    height = 0.0
    panel = []
    for found in reversed(stages.values()):
        rows = sorted(found, key=lambda name: sides.index(split(name)[1]))
        panel.append([(height + number, name) for number, name in enumerate(reversed(rows))][::-1])
        height += len(rows) + _GAP
    return panel[::-1]


def split(name: str) -> tuple[str, str]:
    """Return the stage and the side of a figure's name; the side is empty if it has none."""
    stage, _, side = name.rpartition("/")
    return (stage, side) if stage else (side, "")


def _title(document: Mapping[str, Any]) -> str:
    return (
        f"{document['benchmark']} ({describe_machine(document['machine'], document['versions']['python'])})"
    )


def _scale(axis: Any, values: Sequence[float]) -> None:
    """Leave room for the numbers on the right. The axis begins at 0, unless it is logarithmic."""
    low, high = min(values), max(values)
    if low > 0 and high / low > _WIDE:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.set_xlim(low / 1.5, high * (high / low) ** 0.12)
    else:
        axis.set_xlim(min(0.0, low), high * 1.1 if high > 0 else 1.0)


def _draw_capacity(pyplot: Any, document: Mapping[str, Any], path: Path) -> None:
    """Draw how many kernels each node holds, and how the starts went."""
    picture, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.2))
    rows = [
        (f"{node}\n{name}", count)
        for node, found in document["capacity"].items()
        for name, count in {
            "started": found["started"],
            **{f"would hold, after {load}": count for load, count in found["holds"].items()},
        }.items()
    ]
    for row, (_, count) in enumerate(reversed(rows)):
        left.barh(row, count, color="tab:blue", alpha=0.6)
        left.annotate(str(count), (count, row), (2, -3), textcoords="offset points", fontsize=7)
    left.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)], fontsize=7)
    left.set_xlabel("kernels of each node", fontsize=8)
    left.margins(x=0.12)
    for name, values in document["series"].items():
        right.plot(range(1, len(values) + 1), values, ".", markersize=3, label=name)
    right.set_xlabel("the kernels in the order of their starts", fontsize=8)
    right.set_ylabel("ms until the first reply", fontsize=8)
    right.set_ylim(bottom=0)
    if document["series"]:
        right.legend(fontsize=7)
    picture.suptitle(_title(document), fontsize=9)
    picture.tight_layout()
    picture.savefig(path.with_name(f"{path.stem}-capacity{path.suffix}"), dpi=130)
    pyplot.close(picture)
