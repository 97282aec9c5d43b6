"""What health checks amount to, and when the checks of a child run and what comes of their failures.

Pure: results and times come in, statuses and orders go out.

How one result counts towards the whole:

| result    | critical | counts as |
|-----------|----------|-----------|
| healthy   | yes      | healthy   |
| healthy   | no       | healthy   |
| degraded  | yes      | degraded  |
| degraded  | no       | degraded  |
| unhealthy | yes      | unhealthy |
| unhealthy | no       | degraded  |

The whole is the worst of what its results count as; without any result it is healthy.

A `Watch` is one periodic check of one child. `passed` is a result that is healthy or degraded.

| state   | event   | condition                               | next    | order   |
|---------|---------|-----------------------------------------|---------|---------|
| down    | up      | always                                  | waiting | -       |
| waiting | due     | always                                  | running | run     |
| running | passed  | always                                  | waiting | -       |
| running | failed  | in grace                                | waiting | -       |
| running | failed  | fewer than `failures` in a row          | waiting | -       |
| running | failed  | the last of `failures`, may not restart | waiting | -       |
| running | failed  | the last of `failures`, may restart     | down    | restart |
| waiting | ended   | always                                  | down    | -       |
| running | ended   | always                                  | down    | -       |

Whatever else happens in a state changes nothing. "Up" comes with each new process of the child, "ended" when it ends or
is asked to end: what was running then counts for nothing.

>>> watch = Watch(interval_ns=10, failures=2, grace_ns=0, restarts=True)
>>> watch.up(0), watch.due(10), watch.failed(11), watch.due(21), watch.failed(22), watch.state
(None, 'run', None, 'run', 'restart', 'down')
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "DEGRADED",
    "DOWN",
    "HEALTHY",
    "RUNNING",
    "STATUSES",
    "UNHEALTHY",
    "WAITING",
    "Watch",
    "counts_as",
    "overall",
]

HEALTHY = "healthy"
DEGRADED = "degraded"
UNHEALTHY = "unhealthy"
STATUSES = (HEALTHY, DEGRADED, UNHEALTHY)
"""From the best to the worst."""

DOWN = "down"
WAITING = "waiting"
RUNNING = "running"


def counts_as(status: str, critical: bool) -> str:
    """What one result is worth to the whole."""
    return DEGRADED if status == UNHEALTHY and not critical else status


def overall(results: Iterable[tuple[str, bool]]) -> str:
    """The status of all of them, each (status, critical).

    >>> overall([("healthy", True), ("unhealthy", False)]), overall([])
    ('degraded', 'healthy')
    """
    worth = [STATUSES.index(counts_as(status, critical)) for status, critical in results]
    return STATUSES[max(worth, default=0)]


class Watch:
    """One check of one child. Times are of one monotonic clock, in nanoseconds."""

    __slots__ = ("_due_ns", "_row", "_up_ns", "failures", "grace_ns", "interval_ns", "restarts", "state")

    def __init__(self, *, interval_ns: int, failures: int, grace_ns: int, restarts: bool) -> None:
        self.interval_ns = interval_ns
        self.failures = failures
        """So many failures in a row are acted upon."""
        self.grace_ns = grace_ns
        """Failures count only so long after the child's start, or once a check of this process has passed."""
        self.restarts = restarts
        self.state = DOWN
        self._row = 0  # failures that count, since the last that did not
        self._up_ns: int | None = None  # since when it may be in grace; None: it is not
        self._due_ns = 0

    def up(self, now_ns: int) -> None:
        """The child has a process that is ready."""
        if self.state == DOWN:
            self.state = WAITING
            self._row = 0
            self._up_ns = now_ns
            self._due_ns = now_ns + self.interval_ns  # a process that has just begun may not be able to answer yet

    def ended(self) -> None:
        """It has none any more, or is on its way out."""
        self.state = DOWN

    def due(self, now_ns: int) -> str | None:
        """ "run" when it is time for the next one; `passed` or `failed` is to follow."""
        if self.state != WAITING or now_ns < self._due_ns:
            return None
        self.state = RUNNING
        return "run"

    def passed(self, now_ns: int) -> None:
        if self.state == RUNNING:
            self._row = 0
            self._up_ns = None
            self._wait(now_ns)

    def failed(self, now_ns: int) -> str | None:
        """ "restart": the child's process is to be killed for it."""
        if self.state != RUNNING:
            return None
        self._wait(now_ns)
        if self._up_ns is not None and now_ns < self._up_ns + self.grace_ns:
            return None
        self._up_ns = None
        self._row += 1
        if self._row < self.failures or not self.restarts:
            return None
        self.state = DOWN  # until its next process is up
        return "restart"

    def wait_ns(self, now_ns: int) -> int | None:
        """How long until `due` may say something; None: not by time."""
        return max(0, self._due_ns - now_ns) if self.state == WAITING else None

    def forgive(self, late_ns: int) -> None:
        """Nobody ran for a while: that does not use up the grace."""
        self._due_ns += late_ns
        if self._up_ns is not None:
            self._up_ns += late_ns

    def _wait(self, now_ns: int) -> None:
        self.state = WAITING
        self._due_ns = now_ns + self.interval_ns
