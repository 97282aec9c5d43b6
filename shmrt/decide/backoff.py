"""How long to wait before the next try: nothing at first, then doubling up to a cap.

The random part is passed in, so that the same numbers give the same delay.

>>> plan = Backoff(free=1, first_ns=10, cap_ns=35)
>>> [plan.delay_ns(failures, 1.0) for failures in range(5)]
[0, 0, 10, 20, 35]
>>> plan.delay_ns(2, 0.0)
5
"""

from __future__ import annotations

__all__ = ["Backoff"]


class Backoff:
    """`free` failures in a row cost nothing; each one more doubles `first_ns`, up to `cap_ns`."""

    __slots__ = ("cap_ns", "first_ns", "free", "jitter")

    def __init__(self, *, free: int, first_ns: int, cap_ns: int, jitter: float = 0.5) -> None:
        self.free = free
        self.first_ns = first_ns
        self.cap_ns = cap_ns
        self.jitter = jitter

    def delay_ns(self, failures: int, random: float) -> int:
        """The wait after `failures` in a row; `random` from 0 to 1 takes off up to `jitter` of it (half)."""
        steps = failures - self.free
        if steps <= 0:
            return 0
        # 2**60 first steps are beyond every cap; without the bound the shift itself would grow.
        full = min(self.first_ns << min(steps - 1, 60), self.cap_ns)
        return full - int(full * self.jitter * (1.0 - random))
