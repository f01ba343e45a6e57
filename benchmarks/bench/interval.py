"""Confidence intervals of medians and of their ratios.

Method: the percentile bootstrap (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13). A ratio is
paired: the two samples of one round stay together, so that a moment at which the machine was slow counts for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
FEWEST = 5
"""With fewer rounds there is no interval: the median of so few samples may be anywhere between them."""
_DRAWS = 4_000


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


def _draw(samples: Any) -> Any:
    """Return `_DRAWS` samples as large as the given one, drawn from it with replacement. Each call draws the same."""
    given = np.asarray(samples, dtype=float)
    chosen = np.random.default_rng(0).integers(len(given), size=(_DRAWS, len(given)))
    return given[chosen]


def _between(values: Any) -> Interval:
    outside = (1 - LEVEL) / 2
    low, high = np.quantile(values, [outside, 1 - outside])
    return Interval(float(low), float(high))
