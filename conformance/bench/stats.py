"""Medians, ratios, and how sure of them we are.

Belongs here: pure arithmetic on samples. Next door: `rows` takes samples, `report` prints them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

RESAMPLES = 2000
Combine = Callable[[float, float], float]


@dataclass(frozen=True)
class Estimate:
    """A point and its percentile-bootstrap 95 % interval, all three in the unit of what was combined."""

    point: float
    low: float
    high: float


def ratio(ours: float, theirs: float) -> float:
    """Ours in units of theirs."""
    return ours / theirs


def difference(ours: float, theirs: float) -> float:
    """Ours minus theirs, in their common unit."""
    return ours - theirs


def compare(ours: Sequence[float], theirs: Sequence[float], combine: Combine, seed: int) -> Estimate:
    """`combine` of the medians of two sample rows, which were taken round by round (so of equal length).

    Whole rounds are drawn again, not single samples: a round in which the machine was busy was busy for both.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"rounds do not pair: {len(ours)} against {len(theirs)}")
    dice = random.Random(seed)
    rounds = range(len(ours))
    points = []
    for _ in range(RESAMPLES):
        drawn = dice.choices(rounds, k=len(ours))
        points.append(combine(median([ours[i] for i in drawn]), median([theirs[i] for i in drawn])))
    points.sort()
    return Estimate(combine(median(ours), median(theirs)), points[RESAMPLES // 40], points[-1 - RESAMPLES // 40])


def held(found: Estimate, limit: float | None, at_least: bool = False) -> str:
    """Whether the limit was kept, as a word: an interval that holds the limit itself decides nothing."""
    if limit is None:
        return ""
    if at_least:
        found, limit = Estimate(-found.point, -found.high, -found.low), -limit
    if found.high <= limit:
        return "yes"
    return "no" if found.low > limit else "unclear"
