"""From nothing to the first result, and back to nothing: a new pool, one task, close.

Median milliseconds over `runs`. `first` includes the root process of a runtime of its own; `next` is another pool in a
runtime that is there. The peers fork from this process, which is the fastest they can start. Not measured: imports.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import shmrt

SMOKE = {"runs": 2}
FULL = {"runs": 30}


def with_runtime() -> None:
    with shmrt.Runtime(), shmrt.Pool(2) as pool:
        pool.submit(pow, 2, 5).result()


def one_more_pool() -> None:
    with shmrt.Pool(2) as pool:
        pool.submit(pow, 2, 5).result()


def standard() -> None:
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        pool.submit(pow, 2, 5).result()


def forked() -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.apply(pow, (2, 5))


def timed(fn: Callable[[], None], runs: int) -> float:
    taken = []
    for _ in range(runs):
        begin = time.perf_counter()
        fn()
        taken.append((time.perf_counter() - begin) * 1e3)
    return round(statistics.median(taken), 2)


def run(runs: int) -> Iterator[dict[str, Any]]:
    yield {"impl": "shmrt first", "ms": timed(with_runtime, runs)}
    with shmrt.Runtime():
        yield {"impl": "shmrt next", "ms": timed(one_more_pool, runs)}
    yield {"impl": "ProcessPoolExecutor", "ms": timed(standard, runs)}
    yield {"impl": "multiprocessing.Pool", "ms": timed(forked, runs)}
