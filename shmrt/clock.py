"""The one place that reads time. Everything that decides takes `now_ns` as a parameter.

>>> clock = ManualClock(5)
>>> clock.advance(10); clock.now_ns()
15
"""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["MONOTONIC", "Clock", "ManualClock"]


class Clock(Protocol):
    """Monotonic nanoseconds from somewhere."""

    def now_ns(self) -> int: ...


class _Monotonic:
    __slots__ = ()

    def now_ns(self) -> int:
        return time.monotonic_ns()


class ManualClock:
    """A clock for tests that moves only when told to."""

    __slots__ = ("_now_ns",)

    def __init__(self, now_ns: int = 0) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        return self._now_ns

    def advance(self, by_ns: int) -> None:
        self._now_ns += by_ns


MONOTONIC: Clock = _Monotonic()
