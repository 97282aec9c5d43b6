"""Decides whether one setting is faster than another, from pairs of trials that ran side by side.

A pair is one trial of each, one after the other, in changing order, so that what the machine does meanwhile hits both.
What counts of a pair is the ratio of the two rates. The verdict needs no assumption about the noise: if both were
equally fast, each pair would be a fair coin, so the number of pairs that went one way has a binomial distribution (the
*sign test*), and order statistics of the ratios bound their median.

Whoever looks after every pair and stops when it suits finds a difference sooner or later where there is none. So
`confirm` looks at `LOOKS` only, and shares the chance of a false alarm, `ALPHA`, between them: of two settings that are
equal, at most one in twenty is called faster or slower. `screen` is quicker and weaker; it only chooses what is worth
confirming with pairs that were not used to choose it.

    >>> confirm([1.1, 1.2, 1.1, 1.3, 1.2, 1.1, 1.15])
    Estimate(verdict='faster', ratio=1.15, low=1.1, high=1.3, pairs=7)
    >>> confirm([1.1, 0.9, 1.2, 0.8, 1.1, 1.0, 0.9]).verdict
    'more'
    >>> confirm([1.01, 1.02, 1.01, 1.0, 1.02, 1.01, 1.01], least=0.03).verdict
    'same'
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ALPHA", "LOOKS", "Estimate", "confirm", "interval", "median", "screen", "sign_chance"]

ALPHA = 0.05
LOOKS = (7, 11, 16)
"""Pairs after which `confirm` looks; with seven, all must go one way."""
SCREEN_MOST = 6
LEAST = 0.03
"""A gain below it is not worth a line in a file."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """`ratio` is the median of the new rate over the old one; its interval is `low` to `high`.

    verdict: `faster`, `slower`, `same` (no difference, or one below what is worth it), or `more` (pairs are needed)."""

    verdict: str
    ratio: float
    low: float
    high: float
    pairs: int


def median(values: Sequence[float]) -> float:
    """
    >>> median([3, 1, 2]), median([4, 1, 2, 3])
    (2, 2.5)
    """
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _tail(pairs: int, most: int) -> float:
    """The chance that at most `most` of so many coins show heads."""
    return float(sum(math.comb(pairs, k) for k in range(most + 1)) / 2**pairs)


def sign_chance(ratios: Sequence[float]) -> float:
    """How likely so lopsided a split is if both are equally fast (two-sided). Ties count for neither side.

    >>> sign_chance([1.1] * 7), sign_chance([1.1, 0.9])
    (0.015625, 1.0)
    """
    ups, downs = sum(ratio > 1 for ratio in ratios), sum(ratio < 1 for ratio in ratios)
    return min(1.0, 2 * _tail(ups + downs, min(ups, downs))) if ups + downs else 1.0


def interval(ratios: Sequence[float], alpha: float) -> tuple[float, float]:
    """Bounds of the median that hold but for a chance of `alpha`; the widest there are where the pairs are too few.

    >>> interval([5, 1, 2, 4, 3, 6, 7], 0.02), interval(list(range(1, 17)), 0.02)
    ((1, 7), (3, 14))
    """
    ordered = sorted(ratios)
    cut = 0
    while cut + 1 < len(ordered) / 2 and 2 * _tail(len(ordered), cut) <= alpha:
        cut += 1
    at = max(0, cut - 1)
    return ordered[at], ordered[-1 - at]


def confirm(ratios: Sequence[float], *, least: float = LEAST, looks: Sequence[int] = LOOKS) -> Estimate:
    """The verdict so far. Between two looks it is `more`, whatever the pairs say."""
    alpha = ALPHA / len(looks)
    if not ratios:
        return Estimate("more", 1.0, 0.0, math.inf, 0)
    low, high = interval(ratios, alpha)
    middle = median(ratios)
    verdict = "more"
    if len(ratios) in looks:
        if 1 - least < low and high < 1 + least:  # as small as the interval is, it has no room for a difference
            verdict = "same"
        elif sign_chance(ratios) <= alpha:
            verdict = "same" if abs(middle - 1) < least else "faster" if middle > 1 else "slower"
        elif len(ratios) >= max(looks):
            verdict = "same"
    elif len(ratios) > max(looks):
        raise ValueError(f"{len(ratios)} pairs, and the last look is at {max(looks)}")
    return Estimate(verdict, middle, low, high, len(ratios))


def screen(ratios: Sequence[float], *, least: float = LEAST) -> str:
    """Whether a change is worth keeping for now: `faster`, `no`, or `more`. Quick to say no: most changes do nothing.
    `least` is the gain that is asked for; noise may ask for more than LEAST.

    >>> screen([0.8, 0.7]), screen([1.2, 1.3, 1.25, 1.2]), screen([1.1, 0.9, 1.05]), screen([1.0] * 6)
    ('no', 'faster', 'more', 'no')
    """
    count = len(ratios)
    if count < 2:
        return "more"
    middle = median(ratios)
    if max(ratios) < 1 + LEAST:
        return "no"
    if count >= 4 and min(ratios) > 1 and middle >= 1 + least:
        return "faster"
    if count >= 4 and middle < 1:
        return "no"
    if count < SCREEN_MOST:
        return "more"
    return "faster" if middle >= 1 + least and sum(ratio > 1 for ratio in ratios) >= count - 1 else "no"
