"""One message at a time through a ring between two processes, beside multiprocessing's queues.

Messages a second from one producer to one consumer, both in processes of their own, and the median round trip over two
rings. The payload is bytes; every peer pickles or copies as it does by itself. The consumer counts and sums what it
gets, and the sum is checked. Not measured: many producers, and anything that dies (multiprocessing.Queue
cannot lose a process and go on; `Ring` can, which is what it is for).
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from typing import Any

import shmrt

SMOKE = {"messages": 200, "round_trips": 50, "payload": 64}
FULL = {"messages": 50_000, "round_trips": 5_000, "payload": 64}

CONTEXT = multiprocessing.get_context("fork")


def make(impl: str) -> Any:
    if impl == "shmrt.Ring":
        return shmrt.Ring.create(shmrt.RingSpec(slots=1024, slot_bytes=512))
    if impl == "multiprocessing.Queue":
        return CONTEXT.Queue(1024)
    return CONTEXT.SimpleQueue()


def consume(queue: Any, back: Any, count: int) -> None:
    total = 0
    for _ in range(count):
        total += len(queue.get())
    back.put(total)


def echo(queue: Any, back: Any, count: int) -> None:
    for _ in range(count):
        back.put(queue.get())


def measure(impl: str, messages: int, round_trips: int, payload: int) -> dict[str, Any]:
    item = b"x" * payload
    there, back = make(impl), make(impl)
    reader = CONTEXT.Process(target=consume, args=(there, back, messages))
    reader.start()
    begin = time.perf_counter()
    for _ in range(messages):
        there.put(item)
    total = back.get()
    seconds = time.perf_counter() - begin
    reader.join()
    if total != messages * payload:
        raise AssertionError(f"{impl} delivered {total} bytes of {messages * payload}")
    answerer = CONTEXT.Process(target=echo, args=(there, back, round_trips))
    answerer.start()
    taken = []
    for _ in range(round_trips):
        begin = time.perf_counter()
        there.put(item)
        back.get()
        taken.append(time.perf_counter() - begin)
    answerer.join()
    taken.sort()
    for queue in (there, back):
        if hasattr(queue, "close"):
            queue.close()
    return {
        "impl": impl,
        "per_s": round(messages / seconds),
        "p50_us": round(taken[len(taken) // 2] * 1e6, 1),
        "p99_us": round(taken[len(taken) * 99 // 100] * 1e6, 1),
    }


def run(messages: int, round_trips: int, payload: int) -> Iterator[dict[str, Any]]:
    for impl in ("shmrt.Ring", "multiprocessing.Queue", "multiprocessing.SimpleQueue"):
        yield measure(impl, messages, round_trips, payload)
