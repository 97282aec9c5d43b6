"""What a pool adds to a task, by how long the task works: from 1 microsecond to 100 milliseconds.

Tasks burn CPU time (the thread's clock, so that being pushed off the CPU does not count as work), submitted one by one
or through the package's `map`. `efficiency` is the work's own time over the time that the workers had: 1 is a pool that
costs nothing; the program itself needs CPU too, so with as many workers as CPUs 1 cannot be reached by short tasks.
`added_us` is the rest per task and worker, microseconds. `wall` is the same with tasks that wait by the wall clock, as
if the program had a CPU of its own. Median of the turns. Not measured: uneven tasks (skew), more workers (workers).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from bench._measure import check, figure
from bench._peers.pools import PoolPeer
from bench._pools import in_turns
from bench._views import Pivot, Plot
from bench._work import burn, spin

SMOKE = {"workers": 2, "micros": [20], "wall": [20], "turns": 1, "seconds": 0.01, "most": 200, "heavy": False}
FULL = {
    "workers": 2,
    "micros": [1, 5, 20, 100, 500, 2000, 10_000, 100_000],
    "wall": [20, 200],
    "turns": 3,
    "seconds": 0.15,
    "most": 20_000,
    "heavy": True,
}

VIEWS = (
    Pivot("Submitted one by one: efficiency by µs of work", "efficiency", "micros", where={"how": "submit"}),
    Pivot("Through map: efficiency by µs of work", "efficiency", "micros", where={"how": "map"}),
    Pivot("Added to a task, µs, submitted one by one", "added_us", "micros", where={"how": "submit"}, better="less"),
    Pivot("Work by the wall clock, submitted one by one", "efficiency", "micros", where={"how": "submit, wall"}),
    Plot(
        "task-times",
        "Efficiency by task length, submitted one by one",
        "efficiency",
        x="micros",
        where={"how": "submit"},
        x_label="µs of work in a task",
        y_label="efficiency",
        log_x=True,
    ),
)


def submitted(pool: Any, work: Any, micros: int, count: int) -> int:
    return sum([pool.result(handle) for handle in [pool.submit(work, micros) for _ in range(count)]])


def mapped(pool: Any, work: Any, micros: int, count: int) -> int:
    return sum(pool.map(work, [micros] * count))


def run(
    workers: int, micros: list[int], wall: list[int], turns: int, seconds: float, most: int, heavy: bool
) -> Iterator[dict[str, Any]]:
    cases: list[tuple[str, str, Any, Any, int]] = []
    for length in micros:
        cases.append(("submit", "submit", submitted, burn, length))
        cases.append(("map", "map", mapped, burn, length))
    cases += [("submit, wall", "submit", submitted, spin, length) for length in wall]
    found: dict[tuple[str, str, int], tuple[list[float], list[float]]] = {}

    def take(pool: PoolPeer, turn: int) -> None:
        for how, verb, do, work, length in cases:
            if not pool.can(verb):
                continue
            ideal = max(int(seconds * workers * 1e6 / length), 2 * workers)
            begin = time.perf_counter()
            few = max(min(ideal // 8, most // 8), workers)
            check(do(pool, work, length, few), length * few, "warm-up")
            each = (time.perf_counter() - begin) / few
            count = max(min(int(seconds / each), ideal, most), 2 * workers)
            begin = time.perf_counter()
            check(do(pool, work, length, count), length * count, f"{pool.impl}, sum of results")
            taken = time.perf_counter() - begin
            efficiency, added = found.setdefault((pool.impl, how, length), ([], []))
            efficiency.append(count * length / 1e6 / (taken * workers))
            added.append(taken * workers / count * 1e6 - length)

    yield from in_turns(take, workers, turns, heavy)
    for (impl, how, length), (efficiency, added) in found.items():
        row = {"impl": impl, "how": how, "micros": length}
        yield row | figure("efficiency", efficiency, 3) | figure("added_us", added, 3)
