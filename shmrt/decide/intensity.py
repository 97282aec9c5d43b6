"""Restart intensity: how many restarts a period may hold.

Every attempt is asked for *before* it is made. The edge of the period is inclusive, as OTP's is: with 3
restarts in 5 s, attempts at 0, 2, 4 and 5 are one too many, at 0, 2, 4 and 6 they are not.

>>> window = Intensity(1, 10)
>>> window.allow(0), window.allow(10), window.allow(21)
(True, False, True)
"""

from __future__ import annotations

__all__ = ["Intensity"]


class Intensity:
    """At most `max_restarts` attempts in any `period_ns`; None is no limit at all."""

    __slots__ = ("_history", "max_restarts", "period_ns")

    def __init__(self, max_restarts: int | None, period_ns: int) -> None:
        self.max_restarts = max_restarts
        self.period_ns = period_ns
        self._history: list[int] = []

    def allow(self, now_ns: int) -> bool:
        """Counts one attempt at `now_ns`; False when it is one too many (it counts all the same)."""
        if self.max_restarts is None:
            return True
        edge = now_ns - self.period_ns
        self._history = [at for at in self._history if at >= edge]
        self._history.append(now_ns)
        return len(self._history) <= self.max_restarts

    def used(self, now_ns: int) -> int:
        """Attempts inside the period that ends at `now_ns`."""
        edge = now_ns - self.period_ns
        return sum(at >= edge for at in self._history)
