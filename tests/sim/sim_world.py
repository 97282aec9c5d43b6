"""One clock, one queue of what will happen, one source of chance: the world that every part of a simulation lives in.

Nothing waits here: the clock jumps from one event to the next. Two kinds of events are kept apart, because a root that
does not run for a while (stopped, starved, suspended) sees only one of them late:

    later(...)  the world goes on: a process starts, computes, is killed
    news(...)   the root hears of it; while the root is asleep, all news waits, in order

After a sleep the root does what the real one does (`shmrt/supervise/root_loop.py`): if it came back too late, every
timer moves by all that it missed, and what happened meanwhile is handled before any timer.

`calm` is False in the safety phase and True in the liveness phase: then no new fault begins.
"""

from __future__ import annotations

import random
from heapq import heappop, heappush
from typing import Any, NoReturn

MS = 1_000_000
S = 1000 * MS
GAP_NS = S
"""The root forgives when it came back this much too late."""

SPREAD = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.1, 1.4, 1.8, 2.4, 3.8)
"""What a random duration is of its mean. A table, so that no mathematical library decides where a run goes."""


class Violation(AssertionError):
    """A rule is broken. `rule` is a short name for it."""

    def __init__(self, rule: str, *what: Any) -> None:
        super().__init__(f"{rule}: {' '.join(map(str, what))}" if what else rule)
        self.rule = rule


class World:
    """`parts` are asked for the time of their next timer (`due`), told of it (`tick`), and forgiven (`forgive`)."""

    def __init__(self, draw: random.Random, *, late: float = 0.0) -> None:
        self.draw = draw.random
        self.late = late
        """How often news takes longer than usual."""
        self.now = 0
        self.calm = False
        self.parts: list[Any] = []
        self.events = 0
        self.trace: list[tuple[Any, ...]] = []
        self.stale = True
        """A part's next timer may be another one than before: whoever changes the state of a decision says so."""
        self.asleep_until = 0
        self.slept_at = -1
        """When the root last came back from a sleep."""
        self._planned: int | None = None
        self._fell_asleep = 0
        self._queue: list[tuple[int, int, bool, Any, tuple[Any, ...]]] = []
        self._serial = 0

    # ---- chance -----------------------------------------------------------------------------------------------------
    def chance(self, probability: float) -> bool:
        return probability > 0 and self.draw() < probability

    def fault(self, probability: float) -> bool:
        """The same for what is wrong: never in the liveness phase."""
        return not self.calm and probability > 0 and self.draw() < probability

    def spread(self, mean: int) -> int:
        return int(mean * SPREAD[int(self.draw() * 16)])

    def pick(self, options: Any) -> Any:
        return options[int(self.draw() * len(options))]

    # ---- what will happen -------------------------------------------------------------------------------------------
    def later(self, delay: int, call: Any, *args: Any) -> None:
        self._serial += 1
        heappush(self._queue, (self.now + delay, self._serial, False, call, args))

    def news(self, source: Any, call: Any, *args: Any) -> None:
        """The root hears of it. News of one source (it has a `news_at`) stays in order; between sources anything may
        come first."""
        delay = self.spread(500 * MS) if self.fault(self.late) else self.spread(MS)
        at = max(self.now + delay, source.news_at)
        source.news_at = at
        self._serial += 1
        heappush(self._queue, (at, self._serial, True, call, args))

    def sleep(self, length: int) -> None:
        """The root does not run for a while."""
        if self.now < self.asleep_until:
            return
        self.note("root", "asleep for", length / S)
        due = self._due()
        self._planned = None if due is None else max(due, self.now)
        self._fell_asleep = self.now
        self.asleep_until = self.now + length
        heappush(self._queue, (self.asleep_until, -1, False, self._wake, ()))

    def _wake(self) -> None:
        self.slept_at, self.stale = self.now, True
        self.later(0, self._tick)  # behind the news that waited: a root that wakes looks at everything
        if self._planned is not None and self.now - self._planned > GAP_NS:
            for part in self.parts:
                part.forgive(self.now - self._fell_asleep)

    def _tick(self) -> None:
        self.stale = True
        for part in self.parts:
            part.tick()

    # ---- running ----------------------------------------------------------------------------------------------------
    def run(self, until: int, most: int) -> None:
        """All that happens up to a time. More than `most` events are a world that does not come to rest."""
        queue, last, next_due = self._queue, self.events + most, None
        self.stale = True
        while True:
            if self.stale:
                self.stale, next_due = False, self._due()
            due = next_due if self.now >= self.asleep_until else None
            if due is not None and due < self.now:
                due = self.now
            at = queue[0][0] if queue else None
            if at is not None and (due is None or at <= due):
                if at > until:
                    break
                entry = heappop(queue)
                self.now = at
                if entry[2] and at < self.asleep_until:
                    heappush(queue, (self.asleep_until, *entry[1:]))
                    continue
                entry[3](*entry[4])
            elif due is not None and due <= until:
                self.now = due
                self._tick()
            else:
                break
            self.events += 1
            if self.events > last:
                self.broken("no rest", f"more than {most} events until {until / S:g} s")
        self.now = until

    def _due(self) -> int | None:
        found = None
        for part in self.parts:
            due = part.due()
            if due is not None and (found is None or due < found):
                found = due
        return found

    # ---- what is said -----------------------------------------------------------------------------------------------
    def note(self, *what: Any) -> None:
        self.trace.append((self.now, *what))

    def broken(self, rule: str, *what: Any) -> NoReturn:
        self.note("BROKEN", rule, *what)
        raise Violation(rule, *what)

    def story(self, last: int = 60) -> str:
        """The end of the trace, as text."""
        lines = [f"{entry[0] / S:11.4f} {' '.join(map(str, entry[1:]))}" for entry in self.trace[-last:]]
        return "\n".join(lines)
