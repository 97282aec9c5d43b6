"""Tasks that do nothing, per second, by every way to hand them over: what a task costs on top of its own work.

A task gives back the number that it gets. `submit`: all are submitted one by one, then all results asked for in order.
`as_completed`: the same, the results as they come. `asyncio`: all are awaited together in an event loop. `call`: one
after the other, each awaited (shmrt's `call`, else submit and result). `map`: all in one call with the package's own
choice of chunks; `map, one each` and `map, 64 each` fix it; `map_unordered`: as they come. Many small items in one
pickle are cheaper than tasks, so compare maps with maps: the first cannot tell which item killed a worker.

Every pool has the same number of warm workers. Tasks per pass are chosen so that a pass takes about as long on all;
results are added up. Median of the turns with the lowest and highest. `after_death` says what becomes of the other
tasks when one kills its worker. Not measured: tasks that do something (task_times), starting (cold_start), arrays.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench._measure import check, figure, latency, quantile, sized, stamps
from bench._peers.pools import PoolPeer
from bench._pools import in_turns
from bench._views import Pivot, Plot, Table
from bench._work import nothing

SMOKE = {"workers": 2, "turns": 1, "seconds": 0.01, "most": 1000, "round_trips": 20, "gap_s": 0.002, "heavy": False}
FULL = {"workers": 2, "turns": 3, "seconds": 0.15, "most": 200_000, "round_trips": 2000, "gap_s": 0.002, "heavy": True}

VIEWS = (
    Pivot(
        "Tasks/s",
        "per_s",
        "how",
        where={"group": "one by one"},
        better="more",
        beside={"after_death": "when a worker is killed, the others"},
    ),
    Pivot("Items/s of maps", "per_s", "how", where={"group": "maps"}, better="more"),
    Pivot("Round trip of one task, median µs", "p50_us", "mode", where={"group": "round trip"}, better="less"),
    Pivot(
        "Round trip of one task, 99th percentile, µs", "p99_us", "mode", where={"group": "round trip"}, better="less"
    ),
    Plot("tasks", "Tasks submitted one by one", "per_s", where={"how": "submit"}, y_label="tasks/s", log_y=True),
    Plot("tasks-round-trip", "Round trip, busy", "p50_us", where={"mode": "busy"}, y_label="µs", log_y=True),
    Table("Not measured", {"impl": "package", "skipped": "why"}),
)

Pass = Callable[[Any, int], int]


def submit(pool: Any, count: int) -> int:
    return sum([pool.result(handle) for handle in [pool.submit(nothing, number) for number in range(count)]])


def as_completed(pool: Any, count: int) -> int:
    return sum(pool.completed([pool.submit(nothing, number) for number in range(count)]))


def in_asyncio(pool: Any, count: int) -> int:
    async def all_of_them() -> int:
        return sum(await asyncio.gather(*[pool.awaited(nothing, number) for number in range(count)]))

    return asyncio.run(all_of_them())


def call(pool: Any, count: int) -> int:
    one = ask(pool)
    return sum(one(number) for number in range(count))


def ask(pool: Any) -> Callable[[int], Any]:
    if pool.can("call"):
        return lambda number: pool.call(nothing, number)
    return lambda number: pool.result(pool.submit(nothing, number))


def map_of(verb: str) -> Pass:
    return lambda pool, count: sum(getattr(pool, verb)(nothing, range(count)))


ONE_BY_ONE: dict[str, tuple[str, Pass]] = {
    "submit": ("submit", submit),
    "as_completed": ("completed", as_completed),
    "asyncio": ("awaited", in_asyncio),
    "call": ("submit", call),
}
MAPS: dict[str, tuple[str, Pass]] = {
    "map": ("map", map_of("map")),
    "map_unordered": ("map_unordered", map_of("map_unordered")),
    "map, one each": ("map_one_by_one", map_of("map_one_by_one")),
    "map, 64 each": ("map_by_64", map_of("map_by_64")),
}


def run(
    workers: int, turns: int, seconds: float, most: int, round_trips: int, gap_s: float, heavy: bool
) -> Iterator[dict[str, Any]]:
    rates: dict[tuple[str, str, str, str], list[float]] = {}
    trips: dict[tuple[str, str], list[list[float]]] = {}

    def take(pool: PoolPeer, turn: int) -> None:
        for group, ways in (("one by one", ONE_BY_ONE), ("maps", MAPS)):
            for how, (verb, do) in ways.items():
                if pool.can(verb):

                    def timed(count: int, do: Pass = do, how: str = how) -> float:
                        begin = time.perf_counter()
                        total = do(pool, count)
                        taken = time.perf_counter() - begin
                        check(total, count * (count - 1) // 2, f"{pool.impl}, {how}, sum of results")
                        return taken

                    count = sized(timed, seconds, 32, most)
                    rates.setdefault((pool.impl, group, how, pool.after_death), []).append(count / timed(count))
        if pool.can("submit"):
            one = ask(pool)
            for mode, count, gap in (("busy", round_trips, 0.0), ("idle before", max(round_trips // 10, 10), gap_s)):
                stamps(one, 8, gap)
                first = quantile(sorted(stamps(one, 8, gap)), 0.5)
                count = max(min(count, int(seconds * 4 / first)), 10)
                trips.setdefault((pool.impl, mode), []).append(stamps(one, count, gap))

    yield from in_turns(take, workers, turns, heavy)
    for (impl, group, how, after_death), values in rates.items():
        yield {"impl": impl, "group": group, "how": how, **figure("per_s", values), "after_death": after_death}
    for (impl, mode), rounds in trips.items():
        yield {"impl": impl, "group": "round trip", "mode": mode, **latency(rounds)}
