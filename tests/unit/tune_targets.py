"""Targets of `tune` in test_tune_cli.py and test_tune_trials.py, which copy this file into a directory of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import count

import shmrt

runs = count()


def nap(x: int) -> int:
    """Long enough that its worker is at work for nearly all of the time, however busy the machine is."""
    threading.Event().wait(0.02)
    return x


def picky(x: int) -> int:
    if x == 5:
        raise ValueError("five is right out")
    return x


class Counter:
    """What it gives depends on which worker an item goes to."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, x: int) -> int:
        threading.Event().wait(0.02)
        self.n += 1
        return self.n


def shrinking() -> Iterator[int]:
    """Gives fewer each time."""
    yield from range(max(1, 16 - 4 * next(runs)))


def failing() -> Iterator[int]:
    yield 1
    raise LookupError("no more data")


def varying() -> Iterator[float]:
    yield from (time.monotonic() for _ in range(20))


def growing(x: int) -> list[int]:
    return [x] * (1 + time.monotonic_ns() % 97)


def line(fn: object, **options: object) -> shmrt.Pipeline:
    return shmrt.Pipeline("line").map(fn, name="work", workers=1, **options)  # type: ignore[arg-type]


naps = line(nap).source(range(16))
pair = shmrt.Pipeline("pair").map(nap, workers=1).map(str, name="words", workers=1).batch(4).source(range(64))
quick = line(str).source(range(16))
picks = line(picky).source(range(16))
counters = line(Counter, chunk=1).source(range(16))
empty = line(str).source([])
sourceless = line(str)
once = line(str).source(iter([1]))
shrinks = line(str).source(shrinking)
broken = line(str).source(failing)
varies = line(str).source(varying)
grows = shmrt.Pipeline("grows").flat_map(growing, workers=1).source(range(16))
timed = line(str).batch(4, timeout=0.01).source(range(16))
huge = line(str, ring=shmrt.RingSpec(slots=2**18, slot_bytes=2**20)).source(range(16))
tree = shmrt.Supervisor([])
number = 3


def made(n: int = 16) -> shmrt.Pipeline:
    return line(nap).source(iter(range(n)))
