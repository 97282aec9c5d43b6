"""What a tenant with a bulkhead of its own loses while others crash, hang or are full: its throughput beside them.

A healthy tenant does tasks of `work_us` one after the other, on one worker. It is measured alone and beside each kind
of bad tenant, in turns, so that a slow spell of the machine falls on all; `ratio` is the median over the rounds of its
throughput beside that one by its throughput alone in the same round. `crashing`: every task kills its worker, the next
one is submitted as soon as that is known. `hanging`: every task sleeps for ever on two workers and is killed after
`timeout_s`. `full`: callers of a bulkhead that has no place left try again every millisecond. `in one pool` is the
same with one pool of as many workers for all, which is what bulkheads are there to avoid; it does fewer tasks.

Bad tenants use the CPU too (a crash costs a fork), and no pool can give back what the machine does not have: with two
CPUs the figures hold the cost of sharing them. `bad` counts what the bad tenant did per second. Not measured: memory.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import shmrt
from bench._views import Table

SMOKE = {"rounds": 1, "tasks": 20, "work_us": 200, "timeout_s": 0.1}
FULL = {"rounds": 9, "tasks": 700, "work_us": 1000, "timeout_s": 0.2}

VIEWS = (
    Table(
        "The healthy tenant's throughput",
        {
            "beside": "beside",
            "ratio": "of alone",
            "worst_ratio": "worst round",
            "tasks_per_s": "tasks/s",
            "p50_ms": "median, ms",
            "p99_ms": "99th percentile, ms",
            "bad_per_s": "bad ones/s",
        },
    ),
)


def work(micros: int) -> int:
    end = time.perf_counter_ns() + micros * 1000
    while time.perf_counter_ns() < end:
        pass
    return micros


def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(3600)


class Bad:
    """Threads that call a bad tenant until they are told to stop."""

    def __init__(self, act: Callable[[], object], threads: int) -> None:
        self.count = 0
        self._act = act
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._stop.is_set():
            self._act()
            self.count += 1

    @contextmanager
    def at_work(self) -> Iterator[Bad]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()


def bad_tenants(pools: dict[str, Any]) -> dict[str, Bad]:
    def refused() -> None:
        try:
            pools["full"].submit(hang)
        except shmrt.Overloaded:
            time.sleep(0.001)

    return {
        "crashing": Bad(lambda: pools["crashing"].submit(crash).exception(), 1),
        "hanging": Bad(lambda: pools["hanging"].submit(hang).exception(), 2),
        "full": Bad(refused, 2),
    }


def measure(pool: Any, tasks: int, work_us: int) -> tuple[float, list[float]]:
    """Tasks per second, and how long each took."""
    taken = []
    begin = time.perf_counter()
    for _ in range(tasks):
        one = time.perf_counter()
        # A machine that stands still for a moment makes a good task late, too: its time limit is not what is measured.
        if pool.options(timeout=60.0).submit(work, work_us).result() != work_us:
            raise AssertionError("a task did something else")
        taken.append(time.perf_counter() - one)
    return tasks / (time.perf_counter() - begin), taken


def row(name: str, ratios: list[float], rates: list[float], taken: list[float], bad: float) -> dict[str, Any]:
    taken.sort()
    return {
        "beside": name,
        "ratio": round(median(ratios), 3),
        "worst_ratio": round(min(ratios), 3),
        "tasks_per_s": round(median(rates)),
        "p50_ms": round(taken[len(taken) // 2] * 1e3, 3),
        "p99_ms": round(taken[len(taken) * 99 // 100] * 1e3, 3),
        "bad_per_s": round(bad),
    }


def compare(
    good: Any, kinds: dict[str, Callable[[], Bad]], rounds: int, tasks: int, work_us: int
) -> Iterator[dict[str, Any]]:
    found: dict[str, tuple[list[float], list[float], list[float], list[float]]] = {
        name: ([], [], [], []) for name in ("nobody", *kinds)
    }
    measure(good, max(tasks // 10, 2), work_us)
    for _ in range(rounds):
        alone, taken = measure(good, tasks, work_us)
        found["nobody"][0].append(1.0)
        found["nobody"][1].append(alone)
        found["nobody"][2].extend(taken)
        found["nobody"][3].append(0.0)
        for name, make in kinds.items():
            begin = time.perf_counter()
            with make().at_work() as bad:
                rate, taken = measure(good, tasks, work_us)
                count, seconds = bad.count, time.perf_counter() - begin
            for rows, value in zip(found[name], (rate / alone, rate, taken, count / seconds), strict=True):
                rows.extend(value) if isinstance(value, list) else rows.append(value)
    for name, (ratios, rates, taken, bads) in found.items():
        yield row(name, ratios, rates, taken, median(bads))


def run(rounds: int, tasks: int, work_us: int, timeout_s: float) -> Iterator[dict[str, Any]]:
    tenants = {
        "good": {"max_workers": 1},
        "crashing": {"max_workers": 1},
        "hanging": {"max_workers": 2, "task_timeout": timeout_s},
        "full": {"max_workers": 1, "max_pending": 1, "task_timeout": 3600},
    }
    with shmrt.Bulkheads(tenants) as pools:
        pools.start()
        blocking = pools["full"].submit(hang)
        kinds = {name: lambda name=name: bad_tenants(pools)[name] for name in ("crashing", "hanging", "full")}
        yield from compare(pools["good"], kinds, rounds, tasks, work_us)
        blocking.kill()
    with shmrt.Pool(4, task_timeout=timeout_s) as pool:
        every = dict.fromkeys(tenants, pool)
        kinds = {name: lambda name=name: bad_tenants(every)[name] for name in ("crashing", "hanging")}
        for one in compare(pool, kinds, max(rounds // 3, 1), max(tasks // 10, 5), work_us):
            yield {**one, "beside": f"{one['beside']}, in one pool"}
