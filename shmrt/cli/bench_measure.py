"""What `bench` measures: messages through rings, round trips, tasks, items of a pipeline.

Each measurement runs once to warm up and to find out how much work takes `seconds`, then `repeats` times. What was sent
is checked at the other end by number and sum; a difference is an error, not a figure. Rates are for a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from shmrt.cli.screen import CliError

__all__ = ["Plan", "Row", "measure", "sweep"]

BATCH = 64
SLOT_COUNTS = (16, 64, 256, 1024, 4096)
GROWTH = 32
COUNT_MOST = 1 << 22
MEMORY_PART = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """How large, and how often."""

    payload: int
    workers: int
    seconds: float
    repeats: int


@dataclass(slots=True)
class Row:
    """One measurement: what was measured, the unit, and a value for each repetition."""

    name: str
    unit: str
    values: list[float] = field(default_factory=list)


# ---- what runs in workers


def _consume(ring: Any, count: int) -> int:
    total = 0
    for _ in range(count):
        total += len(ring.get())
    return total


def _consume_many(ring: Any, count: int) -> int:
    total = 0
    while count > 0:
        found = ring.get_many(min(BATCH, count))
        count -= len(found)
        total += sum(map(len, found))
    return total


def _echo(there: Any, back: Any, count: int) -> int:
    for _ in range(count):
        back.put(there.get())
    return count


def _nothing(value: Any) -> Any:
    return value


# ---- the measurements: each does `count` things and gives the seconds that they took


def _ring(pool: Any, ring: Any, item: bytes, count: int) -> float:
    taken = pool.submit(_consume, ring, count)
    began = time.perf_counter()
    for _ in range(count):
        ring.put(item)
    _check("bytes through the ring", taken.result(), count * len(item))
    return time.perf_counter() - began


def _ring_many(pool: Any, ring: Any, item: bytes, count: int) -> float:
    taken = pool.submit(_consume_many, ring, count)
    began = time.perf_counter()
    left = count
    while left > 0:
        left -= ring.put_many([item] * min(BATCH, left))
    _check("bytes through the ring", taken.result(), count * len(item))
    return time.perf_counter() - began


def _there_and_back(pool: Any, there: Any, back: Any, item: bytes, count: int) -> float:
    answered = pool.submit(_echo, there, back, count)
    there.put(item)  # the worker is there
    back.get()
    began = time.perf_counter()
    for _ in range(count - 1):
        there.put(item)
        back.get()
    seconds = time.perf_counter() - began
    _check("answers", answered.result(), count)
    return seconds * count / max(1, count - 1)


def _calls(pool: Any, item: bytes, count: int) -> float:
    began = time.perf_counter()
    total = sum(len(pool.call(_nothing, item)) for _ in range(count))
    seconds = time.perf_counter() - began
    _check("bytes of results", total, count * len(item))
    return seconds


def _tasks(pool: Any, item: bytes, count: int) -> float:
    began = time.perf_counter()
    futures = [pool.submit(_nothing, item) for _ in range(count)]
    total = sum(len(future.result()) for future in futures)
    seconds = time.perf_counter() - began
    _check("bytes of results", total, count * len(item))
    return seconds


def _map(pool: Any, item: bytes, count: int) -> float:
    began = time.perf_counter()
    total = sum(map(len, pool.map(_nothing, (item for _ in range(count)))))
    seconds = time.perf_counter() - began
    _check("bytes of results", total, count * len(item))
    return seconds


def _pipeline(workers: int, item: bytes, count: int) -> float:
    from shmrt.pipeline import Pipeline

    pipe = Pipeline("bench").map(_nothing, workers=workers)
    with pipe.run(item for _ in range(count)) as run:
        total = len(next(run))  # the workers are there
        began = time.perf_counter()
        total += sum(map(len, run))
        seconds = time.perf_counter() - began
    _check("bytes of outputs", total, count * len(item))
    return seconds * count / max(1, count - 1)


def _check(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise CliError(f"bench: {found:,} {what} instead of {expected:,}; no figure of this run counts", code=70)


# ---- all of them


def _repeat(name: str, unit: str, plan: Plan, run: Callable[[int], float], most: int = COUNT_MOST) -> Row:
    """A rate for unit `.../s`, microseconds each for `us`."""
    count = 16
    seconds = run(count)  # the first is never counted
    while seconds < plan.seconds / 2 and count < most:
        count = min(most, int(count * min(GROWTH, plan.seconds / max(seconds, 1e-9))) + 1)
        seconds = run(count)
    row = Row(name, unit)
    for _ in range(plan.repeats):
        each = run(count) / count
        row.values.append(each * 1e6 if unit == "us" else 1 / each)
    return row


def measure(plan: Plan, memory: int) -> Iterator[Row]:
    """One measurement after the other; `memory` bytes are free for payloads."""
    from shmrt.memory.ring import Ring
    from shmrt.pool import Pool
    from shmrt.spec import RingSpec

    item = b"\xa5" * plan.payload
    waiting = max(32, memory // MEMORY_PART // (plan.payload + 512))  # tasks whose results all wait at once
    spec = RingSpec(slots=min(1024, waiting))
    with Pool(1) as pool:
        for name, way in (("ring, one by one", _ring), ("ring, batches of 64", _ring_many)):
            ring = Ring.create(spec)
            try:
                yield _repeat(name, "messages/s", plan, lambda count, w=way, r=ring: w(pool, r, item, count))  # type: ignore[misc]
            finally:
                ring.close()
        there, back = Ring.create(spec), Ring.create(spec)
        try:
            way_back = lambda count: _there_and_back(pool, there, back, item, max(2, count))  # noqa: E731
            yield _repeat("round trip of two rings", "us", plan, way_back)
        finally:
            there.close()
            back.close()
        yield _repeat("round trip of Pool.call", "us", plan, lambda count: _calls(pool, item, count))
    with Pool(plan.workers) as pool:
        yield _repeat("Pool.submit", "tasks/s", plan, lambda count: _tasks(pool, item, count), waiting)
        yield _repeat("Pool.map", "tasks/s", plan, lambda count: _map(pool, item, count))
    yield _repeat("pipeline of one stage", "items/s", plan, lambda count: _pipeline(plan.workers, item, count))


def sweep(plan: Plan, memory: int) -> Iterator[tuple[str, int, Row]]:
    """(knob, value, rates of messages one by one) with rings of other sizes."""
    from shmrt.memory.ring import Ring
    from shmrt.pool import Pool
    from shmrt.spec import RingSpec

    item = b"\xa5" * plan.payload
    fitting = min(2**20, 1 << (plan.payload + 63).bit_length())
    specs = [("slots", slots, RingSpec(slots=slots)) for slots in SLOT_COUNTS]
    specs += [("slot_bytes", size, RingSpec(slots=256, slot_bytes=size)) for size in sorted({128, 512, 4096, fitting})]
    with Pool(1) as pool:
        for knob, value, spec in specs:
            needed = spec.slots * max(int(spec.slot_bytes), plan.payload)
            if needed > memory // MEMORY_PART:
                continue
            ring = Ring.create(spec)
            try:
                row = _repeat(
                    f"ring with {knob} {value}",
                    "messages/s",
                    plan,
                    lambda count, r=ring: _ring(pool, r, item, count),  # type: ignore[misc]
                )
            finally:
                ring.close()
            yield knob, value, row
