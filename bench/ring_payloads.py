"""What a ring carries besides bytes: small tuples, and large arrays that are copied once or not at all.

Messages a second, and for arrays gigabytes a second of payload, from this process to one consumer, beside
multiprocessing's queues. `tuple`: seven plain values, 112 bytes as a pickle. `array`: an ordinary numpy array, copied
into shared memory by the put and seen there by the get. `empty`: an array of `shmrt.empty`, which is sent as it lies;
each is a new one with two values written. The consumer adds up what it is sent, and the sum is checked.
"""

from __future__ import annotations

import multiprocessing
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import shmrt

SMOKE = {"tuples": 200, "arrays": 8, "size": 1 << 20}
FULL = {"tuples": 100_000, "arrays": 4_000, "size": 1 << 20}

CONTEXT = multiprocessing.get_context("fork")
TUPLE = (17, 2.5, "user-1234", b"x" * 64, True, None, 123_456_789)
PEERS = ("multiprocessing.Queue", "multiprocessing.SimpleQueue")


def make(impl: str) -> Any:
    if impl == "shmrt.Ring":
        return shmrt.Ring.create(shmrt.RingSpec(slots=1024, slot_bytes=512))
    return CONTEXT.Queue(1024) if impl == "multiprocessing.Queue" else CONTEXT.SimpleQueue()


def add_up(queue: Any, back: Any, count: int) -> None:
    total = 0.0
    for _ in range(count):
        item = queue.get()
        total += item[0] + item[-1]
    back.put(total)


def seconds_for(impl: str, count: int, item: Callable[[], Any], each: float) -> float:
    queue, back = make(impl), make(impl)
    reader = CONTEXT.Process(target=add_up, args=(queue, back, count))
    reader.start()
    begin = time.perf_counter()
    for _ in range(count):
        queue.put(item())
    total = back.get()
    seconds = time.perf_counter() - begin
    reader.join()
    for one in (queue, back):
        one.close()
    if total != each * count:
        raise AssertionError(f"{impl} delivered {total}, not {each * count}")
    return seconds


def marked(array: Any) -> Any:
    array[0], array[-1] = 1.0, 2.0
    return array


def run(tuples: int, arrays: int, size: int) -> Iterator[dict[str, Any]]:
    each = float(TUPLE[0] + TUPLE[-1])
    for impl in ("shmrt.Ring", *PEERS):
        seconds = seconds_for(impl, tuples, lambda: TUPLE, each)
        yield {"impl": f"{impl} tuple", "pickle_bytes": len(pickle.dumps(TUPLE, 5)), "per_s": round(tuples / seconds)}
    ordinary = marked(np.zeros(size // 8))
    cases: list[tuple[str, str, Callable[[], Any], int]] = [
        ("shmrt.Ring", "array", lambda: ordinary, arrays),
        ("shmrt.Ring", "empty", lambda: marked(shmrt.empty(size // 8, "f8")), arrays),
        *((impl, "array", lambda: ordinary, max(arrays // 20, 4)) for impl in PEERS),
    ]
    for impl, kind, item, count in cases:
        seconds = seconds_for(impl, count, item, 3.0)
        rate = {"per_s": round(count / seconds), "gb_per_s": round(size * count / seconds / 1e9, 2)}
        yield {"impl": f"{impl} {kind}", "size": size, **rate}
