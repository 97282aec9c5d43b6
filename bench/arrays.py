"""A numpy array to a worker and its sum back, by size, beside the standard executor.

Gigabytes a second of payload that went one way. `shmrt.empty` sends an array that already lies in shared memory, the
others copy. The sum is checked. Not measured: arrays as results.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import shmrt

SMOKE = {"sizes": [4096, 1 << 20], "repeats": 3}
FULL = {"sizes": [4096, 1 << 16, 1 << 20, 1 << 24], "repeats": 40}


def first_and_last(array: Any) -> float:
    return float(array[0] + array[-1])


def measure(pool: Any, make: Any, size: int, repeats: int) -> float:
    arrays = [make(size // 8) for _ in range(repeats)]
    begin = time.perf_counter()
    answers = [pool.submit(first_and_last, array).result() for array in arrays]
    seconds = time.perf_counter() - begin
    if answers != [3.0] * repeats:
        raise AssertionError(f"answers {answers[:3]}")
    return size * repeats / seconds / 1e9


def ordinary(count: int) -> Any:
    array = np.zeros(count)
    array[0], array[-1] = 1.0, 2.0
    return array


def shared(count: int) -> Any:
    array = shmrt.empty((count,), "f8")
    array[0], array[-1] = 1.0, 2.0
    return array


def run(sizes: list[int], repeats: int) -> Iterator[dict[str, Any]]:
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(1, context) as peer, shmrt.Pool(1) as mine:
        for pool in (peer, mine):
            pool.submit(first_and_last, ordinary(8)).result()
        for size in sizes:
            for name, pool, make in (
                ("shmrt.Pool", mine, ordinary),
                ("shmrt.Pool + shmrt.empty", mine, shared),
                ("ProcessPoolExecutor", peer, ordinary),
            ):
                yield {"impl": name, "size": size, "gb_per_s": round(measure(pool, make, size, repeats), 3)}
