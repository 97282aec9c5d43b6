"""What shmrt aims at, as ratios inside one run or against what the machine itself gives, and what a run reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench._views import OURS

Rows = list[dict[str, Any]]
Found = Mapping[str, Rows]
"""By benchmark, the rows of its newest run."""


class Absent(Exception):
    """A figure that this run does not have."""


@dataclass(frozen=True, slots=True)
class Target:
    what: str
    limit: float
    at_least: bool
    value: Callable[[Found], float]
    unit: str = "times"

    def reached(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


def one(found: Found, bench: str, field: str, **where: Any) -> float:
    for row in found.get(bench, []):
        if row.get(field) is not None and all(row.get(key) == value for key, value in where.items()):
            return float(row[field])
    raise Absent(f"{bench} has no {field} where {where}")


def best_peer(found: Found, bench: str, field: str, **where: Any) -> float:
    values = [
        float(row[field])
        for row in found.get(bench, [])
        if row.get(field) is not None
        and not row["impl"].startswith(OURS)
        and all(row.get(key) == value for key, value in where.items())
    ]
    if not values:
        raise Absent(f"{bench} has no peer with {field} where {where}")
    return max(values)


def _messages(batch: int, peer: str | None) -> Callable[[Found], float]:
    def value(found: Found) -> float:
        where = {"payload": "tuple", "batch": batch}
        ours = one(found, "messages", "per_s", impl="shmrt.Ring", **where)
        if batch > 1:  # a list of 32 as one message is another thing, and stands beside it in the table
            where["batched"] = "own"
        if peer is None:
            return ours / best_peer(found, "messages", "per_s", **where)
        return ours / one(found, "messages", "per_s", impl=peer, **where)

    return value


def _tasks(how: str, peer: str) -> Callable[[Found], float]:
    return lambda found: (
        one(found, "tasks", "per_s", impl="shmrt.Pool", how=how) / one(found, "tasks", "per_s", impl=peer, how=how)
    )


def _round_trip(mode: str) -> Callable[[Found], float]:
    return lambda found: (
        one(found, "tasks", "p50_us", impl="multiprocessing.Pool", mode=mode)
        / one(found, "tasks", "p50_us", impl="shmrt.Pool", mode=mode)
    )


def _recovery(impl: str) -> Callable[[Found], float]:
    return lambda found: one(found, "recovery", "p50_ms", impl=impl)


def _large(found: Found) -> float:
    large = [
        float(row["p50_ms"])
        for row in found.get("recovery", [])
        if row["impl"].startswith("shmrt.Pool ") and row["impl"].endswith(" MB")
    ]
    if not large:
        raise Absent("recovery has no row of a large worker")
    return large[0] / _recovery("shmrt.Pool")(found)


def _cold(found: Found) -> float:
    first = one(found, "cold_start", "to_first_ms", impl="shmrt, first")
    return first - one(found, "cold_start", "to_first_ms", impl="python -c pass")


def _memory(found: Found) -> float:
    ours = one(found, "idle", "worker_uss_mb", impl="shmrt.Pool")
    return ours / one(found, "idle", "worker_uss_mb", impl="multiprocessing.Pool")


TARGETS = (
    Target("tuples one by one, by multiprocessing.Queue", 20, True, _messages(1, "multiprocessing.Queue")),
    Target("tuples one by one, by the best peer", 5, True, _messages(1, None)),
    Target("tuples 32 at once, by the best peer with calls for many", 10, True, _messages(32, None)),
    Target(
        "round trip of a tuple, hot",
        2,
        False,
        lambda found: one(found, "round_trips", "p50_us", impl="shmrt.Ring", payload="tuple", mode="hot"),
        "µs",
    ),
    Target(
        "round trip of a tuple, parked, by the machine's wake",
        1.2,
        False,
        lambda found: one(found, "round_trips", "of_wake", impl="shmrt.Ring", payload="tuple", mode="parked"),
    ),
    Target(
        "one copy of 1 MiB, of memcpy",
        0.7,
        True,
        lambda found: one(found, "array_messages", "of_memcpy", impl="shmrt.Ring", size=1 << 20, kind="copied"),
    ),
    Target("tasks submitted one by one, by multiprocessing.Pool", 40, True, _tasks("submit", "multiprocessing.Pool")),
    Target(
        "tasks through as_completed, by ProcessPoolExecutor", 15, True, _tasks("as_completed", "ProcessPoolExecutor")
    ),
    Target("tasks through asyncio, by ProcessPoolExecutor", 5, True, _tasks("asyncio", "ProcessPoolExecutor")),
    Target("map with chunks of its own choice, by Pool.map", 1, True, _tasks("map", "multiprocessing.Pool")),
    Target("round trip of a task, busy: shorter than multiprocessing.Pool's", 5, True, _round_trip("busy")),
    Target(
        "round trip of a task, idle before: shorter than multiprocessing.Pool's", 2.5, True, _round_trip("idle before")
    ),
    Target(
        "efficiency of tasks of 20 µs on two workers, of plain loops",
        0.9,
        True,
        lambda found: one(found, "task_times", "efficiency", impl="shmrt.Pool", micros=20, how="submit"),
        "",
    ),
    Target("cold start beyond a bare interpreter's", 20, False, _cold, "ms"),
    Target("idle memory of a worker, by multiprocessing.Pool's", 1, False, _memory),
    Target(
        "idle memory beside the workers",
        9,
        False,
        lambda found: one(found, "idle", "extra_mb", impl="shmrt.Pool"),
        "MB",
    ),
    Target("CPU of everything while idle", 0.1, False, lambda f: one(f, "idle", "cpu_percent", impl="shmrt.Pool"), "%"),
    Target("from kill to the next result, from the root", 1.5, False, _recovery("shmrt.Pool"), "ms"),
    Target("from kill to the next result, template with numpy", 3, False, _recovery("shmrt.Pool numpy"), "ms"),
    Target("the same after the kill of a large worker, by a small one's", 1.5, False, _large),
)
