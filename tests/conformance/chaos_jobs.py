"""Targets of `chaos` in test_chaos.py, which copies this file into a directory of the test's own.

Each run of a pipeline says that it begins, so functions know in which one they are: the first is without faults, the
second under faults, a third again without. In the second, input 7 waits for its death, or for what the test wants;
so a fault has hit before the run can end, however slow the machine is.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import shmrt

chaos_allowed = True
HERE = os.path.dirname(os.path.abspath(__file__))
INPUTS = 40


def note(name: str) -> int:
    """One more of it; how many there are."""
    fd = os.open(os.path.join(HERE, name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, b"x")
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def count(name: str) -> int:
    try:
        return os.stat(os.path.join(HERE, name)).st_size
    except FileNotFoundError:
        return 0


def begin() -> Iterator[int]:
    """The source."""
    note("runs")
    yield from range(INPUTS)


def is_the_one(x: int) -> bool:
    return x == 7 and count("runs") == 2


def struck(x: int) -> bool:
    """True when this call follows one that was killed."""
    if not is_the_one(x):
        return False
    if note("calls") == 1:
        wait_for_ever()
    return True


def wait_for_ever() -> None:
    while True:
        signal.pause()


def steady(x: int) -> dict[str, Any]:
    struck(x)
    return {"n": x, "text": "x" * x}


def changing(x: int) -> tuple[str, int]:
    return ("another" if struck(x) else "value", x)


def losing(x: int) -> list[int]:
    return [] if struck(x) else [x]


def repeating(x: int) -> list[int]:
    return [x, x] if struck(x) else [x]


def inventing(x: int) -> list[Any]:
    return [x, "new"] if struck(x) else [x]


def hopeless(x: int) -> int:
    if is_the_one(x):
        note("calls")
        wait_for_ever()
    return x


def halted(x: int) -> int:
    """Waits until it was stopped and continued."""
    if is_the_one(x):
        seen: list[int] = []
        signal.signal(signal.SIGCONT, lambda number, frame: seen.append(number))
        while not seen:
            time.sleep(0.001)
    return x


def gated(x: int) -> int:
    """Waits for a file."""
    if is_the_one(x):
        note("calls")
        while not count("go"):
            time.sleep(0.001)
    return x


def one(which: str, kind: str = "map", attempts: int = 50, workers: int = 2) -> shmrt.Pipeline:
    ring = shmrt.RingSpec(slots=4)
    stage = getattr(shmrt.Pipeline(which), kind)
    made: shmrt.Pipeline = stage(globals()[which], workers=workers, ring=ring, max_attempts=attempts, name="work")
    return made.source(begin)


def whole() -> shmrt.Pipeline:
    """Every kind of stage."""
    pipe = shmrt.Pipeline("whole").map(steady, workers=2).filter(lambda found: found["n"] % 5, name="some", workers=1)
    pipe = pipe.flat_map(lambda found: [found["n"], found["text"]], name="parts", workers=1).batch(3)
    return pipe.map(repr, name="shown", workers=1).source(begin)


def shifting() -> shmrt.Pipeline:
    """A source that says something else each time."""
    return shmrt.Pipeline("shifting").map(str, workers=1).source(lambda: [1, note("runs"), 3])


def nothing() -> shmrt.Pipeline:
    return shmrt.Pipeline("nothing").map(str, workers=1).source([])


def failing() -> shmrt.Pipeline:
    """A source that raises in the first run already."""

    def numbers() -> Iterator[int]:
        yield 1
        raise LookupError("no more data")

    return shmrt.Pipeline("failing").map(str, workers=1).source(numbers)
