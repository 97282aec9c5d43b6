"""How every benchmark here measures: warm up, size a pass to a time, repeat in turns, and report median and spread.

Cases are measured in turns (A B C, A B C, ...), so that a slow spell of the machine falls on all of them. The size of a
pass is found by passes that are thrown away, so that a fast peer and a slow one are both timed for about as long.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

Timed = Callable[[int], float]
"""Does something so many times and returns the seconds that it took; raises AssertionError when the answer is wrong."""


def figure(name: str, values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """The median under `name`, and with several values the lowest and highest.

    >>> figure("per_s", [3.0, 1.0, 2.0])
    {'per_s': 2.0, 'per_s_range': [1.0, 3.0]}
    """
    found: dict[str, Any] = {name: rounded(median(values), digits)}
    if len(values) > 1:
        found[f"{name}_range"] = [rounded(min(values), digits), rounded(max(values), digits)]
    return found


def rounded(value: float, digits: int = 4) -> float:
    """To so many significant digits, whole numbers from 1000 on.

    >>> rounded(1234567.0), rounded(0.0123456), rounded(0)
    (1235000, 0.01235, 0.0)
    """
    if not value or not math.isfinite(value):
        return float(value)
    places = digits - 1 - math.floor(math.log10(abs(value)))
    kept = round(value, places)
    return int(kept) if abs(kept) >= 1000 else kept


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that so large a share of them does not pass.

    >>> quantile([1, 2, 3, 4], 0.5), quantile([1, 2, 3, 4], 0.99)
    (2, 4)
    """
    return ordered[min(max(math.ceil(len(ordered) * share) - 1, 0), len(ordered) - 1)]


def latency(rounds: Iterable[Sequence[float]], unit: str = "us") -> dict[str, Any]:
    """Median of the rounds' medians with their range, and of their 99th percentiles. The rounds are seconds."""
    scale = {"us": 1e6, "ms": 1e3, "s": 1.0}[unit]
    ordered = [sorted(taken) for taken in rounds]
    row = figure(f"p50_{unit}", [quantile(taken, 0.5) * scale for taken in ordered])
    if min(len(taken) for taken in ordered) >= 20:
        row |= figure(f"p99_{unit}", [quantile(taken, 0.99) * scale for taken in ordered])
    return row


def sized(timed: Timed, seconds: float, least: int, most: int) -> int:
    """How many times make about `seconds`, found by warm-up passes that grow.

    >>> sized(lambda count: count / 1000, 0.5, 10, 10_000)
    500
    """
    count = least
    for _ in range(8):
        taken = max(timed(count), 1e-9)
        enough = math.ceil(round(count * seconds / taken, 6))
        if enough <= count * 2 or count >= most:
            return min(max(enough, least), most)
        count = min(max(enough // 4, least, count * 2), most)
    return count


def rates(timed: Timed, seconds: float, rounds: int, least: int, most: int) -> list[float]:
    """So many times per second, in each round."""
    count = sized(timed, seconds, least, most)
    return [count / timed(count) for _ in range(rounds)]


def stamps(action: Callable[[int], object], count: int, gap_s: float = 0.0) -> list[float]:
    """Seconds of each of `count` actions, one after the other, with a rest before each if asked."""
    taken = []
    clock = time.perf_counter
    for number in range(count):
        if gap_s:
            time.sleep(gap_s)
        begin = clock()
        action(number)
        taken.append(clock() - begin)
    return taken


def check(found: Any, expected: Any, what: str) -> None:
    """Every measurement verifies what was done: a fast wrong answer is not a figure."""
    if found != expected:
        raise AssertionError(f"{what}: {found!r}, not {expected!r}")
