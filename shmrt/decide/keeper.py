"""Keeps a pool at its number of workers: when to start one more, when to wait, when to give up.

Pure: told what happened and when, it answers what to do. The root asks `starts` after everything it
told, starts that many workers, and asks again no later than `next_ns`.

* A worker that made progress, or was ended by shmrt itself, is replaced at once.
* A death before ready, or in a first task, is waited for a little longer each time. A worker that
  served (or parked healthy) resets that.
* `max(3, workers)` start failures in a row while none is ready break the pool, and so do more
  restarts than `max_restarts` in `max_seconds`. `reasons` then says what each start failed of.

>>> keeper = Keeper(2)
>>> keeper.starts(0, alive=0)
2
>>> keeper.on_start_failed(0, "no module named x", ready=0, random=0.5)
>>> keeper.starts(0, alive=1), keeper.broken
(1, False)
"""

from __future__ import annotations

from shmrt.decide.backoff import Backoff
from shmrt.decide.intensity import Intensity

__all__ = ["Keeper"]

_MS = 1_000_000
_WHOLE = 30  # what a start failure weighs; a kill from outside weighs 1

#: Deaths before ready: the cause is often outside (a file, a port) and needs time to go away.
START_BACKOFF = Backoff(free=1, first_ns=10 * _MS, cap_ns=1000 * _MS)
#: Deaths in a first task: each costs its task anyway, so the pool only must not burn the machine.
TASK_BACKOFF = Backoff(free=3, first_ns=1 * _MS, cap_ns=20 * _MS)


class Keeper:
    """What is wanted of one pool. `workers` and `spares` together are kept alive."""

    __slots__ = ("_failures", "_fruitless", "_intensity", "broken", "next_ns", "reasons", "spares", "workers")

    def __init__(
        self, workers: int, *, spares: int = 0, max_restarts: int | None = None, period_ns: int = 60_000 * _MS
    ) -> None:
        self.workers = workers
        self.spares = spares
        self.broken = False
        self.reasons: list[str] = []
        self.next_ns = 0
        self._failures = 0
        self._fruitless = 0
        self._intensity = Intensity(max_restarts, period_ns)

    @property
    def start_failures_max(self) -> int:
        return max(3, self.workers)

    def starts(self, now_ns: int, *, alive: int) -> int:
        """How many workers to start now; `alive` counts those starting or ready that are to stay."""
        if self.broken or now_ns < self.next_ns:
            return 0
        return max(0, self.workers + self.spares - alive)

    def replaces_at_once(self, now_ns: int, *, alive: int) -> bool:
        """Whether each of those who are ready would have a successor at once, should it die now as one that had made
        progress. Nobody counts such deaths then, so nothing else is to be decided of one."""
        counts = self._intensity.max_restarts is not None
        return not self.broken and not counts and now_ns >= self.next_ns and alive == self.workers + self.spares

    def wait_ns(self, now_ns: int, *, alive: int) -> int | None:
        """How long until `starts` may answer more than it does now; None: not by time."""
        if self.broken or now_ns >= self.next_ns or alive >= self.workers + self.spares:
            return None
        return self.next_ns - now_ns

    def resize(self, workers: int) -> None:
        """Another number of workers. Fewer: the surplus is not replaced when it leaves."""
        self.workers = workers

    def on_ready(self) -> None:
        self._failures = 0
        self.reasons.clear()

    def on_start_failed(
        self, now_ns: int, reason: str, *, ready: int, random: float, from_outside: bool = False
    ) -> None:
        """A worker or its template died before it was ready. `ready` others are. `from_outside`: a SIGKILL that says
        nothing of the start itself weighs a thirtieth, and the next start does not wait for it: on a busy machine,
        whoever kills at random may be faster than many starts in a row."""
        self._failures += 1 if from_outside else _WHOLE
        self.reasons.append(reason)
        del self.reasons[: -2 * self.start_failures_max]
        if not from_outside:
            self.next_ns = max(self.next_ns, now_ns + START_BACKOFF.delay_ns(self._failures // _WHOLE, random))
        if not ready and self._failures >= self.start_failures_max * _WHOLE:
            self.broken = True
        self._count(now_ns)

    def on_gone(self, now_ns: int, reason: str, *, ordered: bool, progressed: bool, random: float) -> None:
        """A worker that had been ready is gone."""
        if ordered:
            return
        if progressed:
            self._fruitless = 0
        else:
            self._fruitless += 1
            self.next_ns = max(self.next_ns, now_ns + TASK_BACKOFF.delay_ns(self._fruitless, random))
        if self._intensity.max_restarts is not None:
            self.reasons.append(reason)
            del self.reasons[: -2 * self.start_failures_max]
        self._count(now_ns)

    def _count(self, now_ns: int) -> None:
        if not self._intensity.allow(now_ns):
            self.broken = True
