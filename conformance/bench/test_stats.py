"""The arithmetic of the benchmark, on samples whose answer is known."""

from __future__ import annotations

import random

import pytest

from conformance.bench import stats


def test_ratio_of_a_scaled_row_is_the_scale() -> None:
    theirs = [random.Random(7).uniform(40, 60) for _ in range(40)]
    found = stats.compare([1.5 * ms for ms in theirs], theirs, stats.ratio, seed=1)
    assert found.low <= 1.5 <= found.high
    assert found.point == pytest.approx(1.5)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    dice = random.Random(3)
    hits = 0
    for seed in range(40):
        theirs = [dice.gauss(50, 5) for _ in range(25)]
        ours = [dice.gauss(55, 5) for _ in range(25)]
        found = stats.compare(ours, theirs, stats.difference, seed)
        hits += found.low <= 5 <= found.high
    assert 34 <= hits <= 40


def test_the_same_seed_gives_the_same_interval() -> None:
    rows = [5.0, 6.0, 9.0, 4.0], [4.0, 5.0, 5.0, 6.0]
    assert stats.compare(*rows, stats.ratio, 1) == stats.compare(*rows, stats.ratio, 1)


def test_rows_of_unequal_length_do_not_pair() -> None:
    with pytest.raises(ValueError, match="do not pair"):
        stats.compare([1.0], [1.0, 2.0], stats.ratio, 1)


@pytest.mark.parametrize(
    ("low", "high", "limit", "at_least", "word"),
    [
        (1.0, 1.04, 1.05, False, "yes"),
        (1.0, 1.06, 1.05, False, "unclear"),
        (1.06, 1.1, 1.05, False, "no"),
        (0.9, 0.95, 0.85, True, "yes"),
        (0.8, 0.9, 0.85, True, "unclear"),
        (0.7, 0.8, 0.85, True, "no"),
        (0.7, 0.8, None, True, ""),
    ],
)
def test_held_says_unclear_where_the_interval_holds_the_limit(
    low: float, high: float, limit: float | None, at_least: bool, word: str
) -> None:
    assert stats.held(stats.Estimate((low + high) / 2, low, high), limit, at_least) == word
