"""Uneven tasks: most are short, a few are long, and a pool that hands out work too early leaves workers idle.

`every 16th`: 150 microseconds, every 16th takes 16 times as long. `first` and `last`: the first or the last one takes
a quarter as long as all the short ones together, so that what a pool put behind it on the same worker waits for it.
Efficiency is the work's own CPU time over what the workers had until the last result; `of_best` compares with a plan
that gives each task, in order, to the worker that is free first, since a long last one cannot be divided. Tasks are
submitted one by one, or by the package's maps. Results are added up. Not measured: waits for input and output, which
a pool could fill.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from bench._measure import check, figure
from bench._pools import in_turns
from bench._views import Pivot
from bench._work import burn

SMOKE = {"workers": 2, "tasks": 64, "short_us": 50, "turns": 1, "heavy": False}
FULL = {"workers": 2, "tasks": 1600, "short_us": 150, "turns": 3, "heavy": True}

VIEWS = (
    Pivot("Submitted one by one: share of the best plan", "of_best", "plan", where={"how": "submit"}, better="more"),
    Pivot("Unordered map: share of the best plan", "of_best", "plan", where={"how": "map_unordered"}, better="more"),
    Pivot("map: share of the best plan", "of_best", "plan", where={"how": "map"}, better="more"),
)


def plans(tasks: int, short_us: int) -> dict[str, list[int]]:
    long = tasks * short_us // 4
    return {
        "every 16th": [short_us * (16 if number % 16 == 15 else 1) for number in range(tasks)],
        "first": [long] + [short_us] * (tasks - 1),
        "last": [short_us] * (tasks - 1) + [long],
    }


def best_s(plan: list[int], workers: int) -> float:
    """Of a plan that gives each task, in order, to the worker that is free first.

    >>> best_s([1, 1, 4], 2)
    5e-06
    """
    free = [0] * workers
    for length in plan:
        at = free.index(min(free))
        free[at] += length
    return max(free) / 1e6


def run(workers: int, tasks: int, short_us: int, turns: int, heavy: bool) -> Iterator[dict[str, Any]]:
    found: dict[tuple[str, str, str], tuple[list[float], list[float]]] = {}

    def take(pool: Any, turn: int) -> None:
        for name, plan in plans(tasks, short_us).items():
            for how in ("submit", "map", "map_unordered"):
                if not pool.can(how):
                    continue
                begin = time.perf_counter()
                if how == "submit":
                    total = sum([pool.result(handle) for handle in [pool.submit(burn, length) for length in plan]])
                else:
                    total = sum(getattr(pool, how)(burn, plan))
                taken = time.perf_counter() - begin
                check(total, sum(plan), f"{pool.impl}, sum of results")
                shares = found.setdefault((pool.impl, name, how), ([], []))
                shares[0].append(sum(plan) / 1e6 / (taken * workers))
                shares[1].append(best_s(plan, workers) / taken)

    yield from in_turns(take, workers, turns, heavy)
    for (impl, plan, how), (efficiency, of_best) in found.items():
        row = {"impl": impl, "plan": plan, "how": how}
        yield row | figure("efficiency", efficiency, 3) | figure("of_best", of_best, 3)
