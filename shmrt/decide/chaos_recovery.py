"""How long it took to be back after each death: until a replacement was ready, and until the next output came.

Deaths and replacements of a pool are matched in their order: the first worker that becomes ready after a death is what
makes up for it. A death with no replacement before its run ended (nothing was left to do) counts nowhere.

    >>> recovery = Recovery()
    >>> recovery.died(1.0, pool=1); recovery.ready(1.004, pool=1); recovery.output(1.5)
    >>> [round(one, 3) for one in recovery.until_ready], recovery.until_output
    ([0.004], [0.5])
    >>> percentile([3.0, 1.0, 2.0, 4.0], 0.5), percentile([], 0.99)
    (2.0, None)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

__all__ = ["Recovery", "percentile", "summary"]


def percentile(values: Sequence[float], share: float) -> float | None:
    """The nearest rank: the smallest value that at least `share` of them do not exceed. None of none."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Count, p50, p99 and the longest, in seconds."""
    p50, p99 = percentile(values, 0.5), percentile(values, 0.99)
    return {"count": len(values), "p50": p50, "p99": p99, "max": max(values, default=None)}


class Recovery:
    """Fed with what happens, in any order of threads but each with its own time in seconds."""

    __slots__ = ("_mourned", "_silent", "until_output", "until_ready", "until_root")

    def __init__(self) -> None:
        self._mourned: dict[int, deque[tuple[float, bool]]] = {}
        self._silent: list[float] = []
        self.until_ready: list[float] = []
        self.until_root: list[float] = []
        """The same after a death of the root: a new root, and its first worker of each pool."""
        self.until_output: list[float] = []

    def died(self, now: float, *, pool: int, root: bool = False) -> None:
        """A worker of the pool was killed, by itself or with its root."""
        mourned = self._mourned.setdefault(pool, deque())
        if root:  # the new root starts them all afresh: there will be no replacement of each that died before
            mourned.clear()
        mourned.append((now, root))
        self._silent.append(now)

    def ready(self, now: float, *, pool: int) -> None:
        """A worker of the pool is ready."""
        mourned = self._mourned.get(pool)
        if mourned:
            at, root = mourned.popleft()
            (self.until_root if root else self.until_ready).append(now - at)

    def output(self, now: float) -> None:
        """An output has come."""
        if self._silent:
            self.until_output += [now - at for at in self._silent if at <= now]
            self._silent = [at for at in self._silent if at > now]

    def run_ended(self) -> None:
        """Its pools are closed: nobody will be replaced any more."""
        self._mourned.clear()
        self._silent.clear()
