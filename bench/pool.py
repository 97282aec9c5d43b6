"""What a task costs on top of its own work: many empty ones, one at a time, and tasks of 20 and 200 microseconds.

`map` is tasks a second through `map` with chunksize 1 for the peers and the default for shmrt (which batches by
itself); `submit` through `submit` and `result` of all; `p50_us` one `submit(...).result()` after the other. Every
executor has the same number of workers, warm. `efficiency` is the work's own time over what the workers had.
Not measured: start of the workers (cold_start), and survival (recovery).
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

import shmrt

SMOKE = {"tasks": 200, "round_trips": 30, "workers": 2}
FULL = {"tasks": 20_000, "round_trips": 3_000, "workers": 2}


def nothing(number: int) -> int:
    return number


def spin_20us(number: int) -> int:
    end = time.perf_counter_ns() + 20_000
    while time.perf_counter_ns() < end:
        pass
    return number


def spin_200us(number: int) -> int:
    end = time.perf_counter_ns() + 200_000
    while time.perf_counter_ns() < end:
        pass
    return number


class Multiprocessing:
    """multiprocessing.Pool with the words of an executor."""

    def __init__(self, workers: int) -> None:
        self._pool = multiprocessing.get_context("fork").Pool(workers)

    def __enter__(self) -> Multiprocessing:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()
        self._pool.join()

    def submit(self, fn: Any, *args: Any) -> Any:
        result = self._pool.apply_async(fn, args)
        result.result = result.get  # type: ignore[attr-defined]
        return result

    def map(self, fn: Any, items: Any, chunksize: int = 1) -> Any:
        return self._pool.imap(fn, items, chunksize)


def executors(workers: int) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    context = multiprocessing.get_context("fork")
    yield "shmrt.Pool", shmrt.Pool(workers), {}
    yield "ProcessPoolExecutor", concurrent.futures.ProcessPoolExecutor(workers, context), {"chunksize": 1}
    yield (
        "ProcessPoolExecutor chunksize=64",
        concurrent.futures.ProcessPoolExecutor(workers, context),
        {"chunksize": 64},
    )
    yield "multiprocessing.Pool", Multiprocessing(workers), {"chunksize": 1}


def rate(executor: Any, fn: Any, count: int, options: dict[str, Any]) -> float:
    begin = time.perf_counter()
    total = sum(executor.map(fn, range(count), **options))
    seconds = time.perf_counter() - begin
    if total != count * (count - 1) // 2:
        raise AssertionError(f"sum {total} is wrong")
    return count / seconds


def run(tasks: int, round_trips: int, workers: int) -> Iterator[dict[str, Any]]:
    for name, executor, options in executors(workers):
        with executor as pool:
            list(pool.map(nothing, range(workers * 4), **options))
            row: dict[str, Any] = {"impl": name, "map_per_s": round(rate(pool, nothing, tasks, options))}
            begin = time.perf_counter()
            futures = [pool.submit(nothing, number) for number in range(tasks)]
            if sum(future.result() for future in futures) != tasks * (tasks - 1) // 2:
                raise AssertionError("sum is wrong")
            row["submit_per_s"] = round(tasks / (time.perf_counter() - begin))
            taken = []
            for number in range(round_trips):
                begin = time.perf_counter()
                pool.submit(nothing, number).result()
                taken.append(time.perf_counter() - begin)
            taken.sort()
            row["p50_us"] = round(taken[len(taken) // 2] * 1e6, 1)
            row["p99_us"] = round(taken[len(taken) * 99 // 100] * 1e6, 1)
            for fn, micros in ((spin_20us, 20), (spin_200us, 200)):
                reached = rate(pool, fn, max(tasks // 2, 50), options)
                row[f"efficiency_{micros}us"] = round(reached * micros / 1e6 / workers, 3)
            yield row
