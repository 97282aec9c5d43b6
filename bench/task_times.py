"""What a pool adds to a task, by how long the task works: from 1 microsecond to 100 milliseconds.

Tasks burn CPU time (the thread's clock, so that being pushed off the CPU does not count as work), submitted one by one
or through the package's `map`. `bare_us` is the CPU time of such a task in plain loops, one process for each worker,
all at once: its length, and the calls of the clock by which it measures that (1.3 of 20 microseconds here).
`efficiency` is that over the time which the workers had: 1 is a pool that costs nothing; the program itself needs CPU
too, so with as many workers as CPUs 1 cannot be reached by short tasks. `added_us` is the rest per task and worker,
microseconds. `of_length` has the bare length in place of `bare_us`. `wall` is the same with tasks that wait by the wall
clock, as if the program had a CPU of its own. Median of the turns; plain loops are measured before each turn of the
first pool, and at the end. Not measured: uneven tasks (skew), more workers (workers).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from statistics import mean, median
from typing import Any

from bench._measure import check, figure, rounded
from bench._peers.channels import CONTEXT
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
    Pivot("CPU time of a task in plain loops, µs", "bare_us", "micros", where={"impl": "plain loops", "how": "burn"}),
    Pivot("By the bare length of the task, submitted one by one", "of_length", "micros", where={"how": "submit"}),
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


def plain_loop(work: Any, micros: int, count: int) -> float:
    """CPU time of a call, microseconds."""
    work(micros)
    begin = time.process_time()
    for _ in range(count):
        work(micros)
    return (time.process_time() - begin) / count * 1e6


def bare_us(work: Any, micros: int, seconds: float, workers: int) -> float:
    """CPU time of a call that nobody brings: the mean of as many processes as workers, at once."""
    count = max(int(seconds * 1e6 / micros), 2)
    with ProcessPoolExecutor(workers, mp_context=CONTEXT) as processes:
        return mean(processes.map(plain_loop, [work] * workers, [micros] * workers, [count] * workers))


def run(
    workers: int, micros: list[int], wall: list[int], turns: int, seconds: float, most: int, heavy: bool
) -> Iterator[dict[str, Any]]:
    cases: list[tuple[str, str, Any, Any, int]] = []
    for length in micros:
        cases.append(("submit", "submit", submitted, burn, length))
        cases.append(("map", "map", mapped, burn, length))
    cases += [("submit, wall", "submit", submitted, spin, length) for length in wall]
    found: dict[tuple[str, str, int], list[float]] = {}  # microseconds of a worker for a task
    bare: dict[tuple[str, int], list[float]] = {(work.__name__, length): [] for _, _, _, work, length in cases}
    measured: set[int] = set()

    def measure_bare() -> None:
        for work in (burn, spin):
            for length in {length for _, _, _, used, length in cases if used is work}:
                bare[work.__name__, length].append(bare_us(work, length, seconds, workers))

    def take(pool: PoolPeer, turn: int) -> None:
        if turn not in measured:
            measured.add(turn)
            measure_bare()
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
            found.setdefault((pool.impl, how, length), []).append(taken * workers / count * 1e6)

    yield from in_turns(take, workers, turns, heavy)
    measure_bare()
    for (name, length), each in bare.items():
        yield {"impl": "plain loops", "how": name, "micros": length} | figure("bare_us", each, 4)
    works = {how: work.__name__ for how, _, _, work, _ in cases}
    for (impl, how, length), each in found.items():
        own = median(bare[works[how], length])
        row: dict[str, Any] = {"impl": impl, "how": how, "micros": length, "bare_us": rounded(own)}
        row |= figure("efficiency", [own / us for us in each], 3) | figure("added_us", [us - own for us in each], 3)
        yield row | figure("of_length", [length / us for us in each], 3)
