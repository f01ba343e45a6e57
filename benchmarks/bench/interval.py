"""Confidence intervals of medians and of their ratios, and what they say about a bound.

Method: the percentile bootstrap (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13). A ratio is
paired: the two samples of one round stay together, so that a moment at which the machine was slow counts for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

LEVEL = 0.95
FEWEST = 5
"""With fewer rounds there is no interval: the median of so few samples may be anywhere between them."""
MOST_ROUNDS = 1_000
"""No more rounds are recommended."""
_DRAWS = 4_000

Verdict = Literal["kept", "missed", "open"]
"""What a measurement says about a bound. `open`: the interval has values on both sides of it."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval of level `LEVEL`."""

    low: float
    high: float


def of_median(samples: Sequence[float]) -> Interval | None:
    """Return the interval of the samples' median. None if there are fewer than `FEWEST`."""
    if len(samples) < FEWEST:
        return None
    return _between(np.median(_draw(samples), axis=1))


def of_ratio(above: Sequence[float], below: Sequence[float]) -> Interval | None:
    """Return the interval of the medians' ratio. The samples are paired by round.

    None if they are too few, or if one of `below` is not above 0.
    """
    if len(above) < FEWEST or min(below) <= 0:
        return None
    drawn = _draw(np.column_stack([above, below]))
    medians = np.median(drawn, axis=1)
    return _between(medians[:, 0] / medians[:, 1])


def judge(
    value: float, interval: Interval | None, *, at_most: float | None, at_least: float | None
) -> Verdict:
    """Compare a value with its bounds. Without an interval, the value alone decides."""
    low, high = (value, value) if interval is None else (interval.low, interval.high)
    if (at_most is None or high <= at_most) and (at_least is None or low >= at_least):
        return "kept"
    if (at_most is not None and low > at_most) or (at_least is not None and high < at_least):
        return "missed"
    return "open"


def count_missing_rounds(value: float, interval: Interval, bound: float, rounds: int) -> int:
    """Return about how many more rounds an open bound needs; `MOST_ROUNDS` if it needs more than that.

    The interval's width falls with the square root of the rounds.
    """
    distance = abs(value - bound)
    width = max(interval.high - value, value - interval.low)
    if distance * math.sqrt((rounds + MOST_ROUNDS) / rounds) <= width:
        return MOST_ROUNDS
    return max(1, math.ceil(rounds * (width / distance) ** 2) - rounds)


def _draw(samples: Any) -> Any:
    """Return `_DRAWS` samples as large as the given one, drawn from it with replacement. Each call draws the same."""
    given = np.asarray(samples, dtype=float)
    chosen = np.random.default_rng(0).integers(len(given), size=(_DRAWS, len(given)))
    return given[chosen]


def _between(values: Any) -> Interval:
    outside = (1 - LEVEL) / 2
    low, high = np.quantile(values, [outside, 1 - outside])
    return Interval(float(low), float(high))
