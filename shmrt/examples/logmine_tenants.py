"""The tenants of `logmine.py` at work: a thread each, in this program, that submits calls and looks at what they give.

    Trusted      its rules have proven themselves; it always has calls under way in the pool that such tenants share
    Probation    nobody knows its rules; one call at a time, by its breaker and its rate limit, in a pool of its own

A tenant's mistake ends in TaskTimeout, MemoryError or WorkerCrashed. Anything else is a mistake of this program: it is
kept, and whoever runs the tenants raises it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from itertools import cycle
from typing import Any

from shmrt import CircuitBreaker, CircuitOpen, PoisonMessage, RateLimit, TaskTimeout, WorkerCrashed
from shmrt.examples import logmine
from shmrt.examples.logmine_story import MENDED, POOL, QUARANTINED
from shmrt.guard.place import report as note

__all__ = ["Clock", "Probation", "Trusted"]

RATE = 3.0
"""Calls a second that a tenant on probation may begin."""
TICK_S = 0.25


class Clock:
    """Which part of the run it is, and what was done in it. Between parts, while calls of the one before come to their
    end, it is none."""

    def __init__(self) -> None:
        self.part: str | None = None
        self.lines = 0  # that the trusted ones got through in this part
        self.done: dict[str, list[tuple[int, float]]] = {"alone": [], "together": []}
        """Lines and seconds of each part that is over."""
        self._began = 0.0

    def begin(self, part: str) -> None:
        self.lines, self._began, self.part = 0, time.monotonic(), part

    def end(self) -> None:
        part, self.part = self.part, None
        if part is not None:
            self.done[part].append((self.lines, time.monotonic() - self._began))

    def rate(self, part: str) -> float:
        """Lines a second, over all but the first."""
        lines, seconds = map(sum, zip((0, 0.0), *self.done[part][1:], strict=True))
        return lines / seconds if seconds else 0.0

    def share(self) -> float:
        """Of the rate alone, what is left together."""
        alone = self.rate("alone")
        return self.rate("together") / alone if alone else 0.0


class Trusted(threading.Thread):
    """A tenant whose rules have proven themselves. It always has some calls under way, over its batches again and
    again; results are looked at in the thread that completes them."""

    def __init__(self, tenant: logmine.Tenant, pool: Any, expected: list[logmine.Found], clock: Clock, calls: int):
        super().__init__(name=f"logmine-{tenant.name}", daemon=True)
        self.tenant, self.pool, self.expected, self.clock = tenant, pool, expected, clock
        self.seen: dict[str, dict[int, logmine.Found]] = {"alone": {}, "together": {}}
        self.wrong = self.calls = 0
        self.failed: Counter[str] = Counter()
        self.mistake: BaseException | None = None
        self.over = threading.Event()
        self._places = threading.Semaphore(calls)

    def run(self) -> None:
        try:
            for number in cycle(range(len(self.tenant.batches))):
                self._places.acquire()
                if self.over.is_set():
                    return
                future = self.pool.submit(logmine.mine, self.tenant.rules, self.tenant.batches[number].text)
                future.add_done_callback(lambda future, number=number: self.done(number, future))
        except BaseException as error:
            self.mistake = error

    def done(self, number: int, future: Any) -> None:
        try:
            self.look_at(number, future)
        except BaseException as error:
            self.mistake = self.mistake or error
        finally:
            self._places.release()

    def look_at(self, number: int, future: Any) -> None:
        if future.cancelled():
            return
        self.calls += 1
        error = future.exception()
        if isinstance(error, (TaskTimeout, WorkerCrashed)):
            self.failed[type(error).__name__] += 1
            return
        found, part = future.result(), self.clock.part
        self.wrong += found != self.expected[number]
        if part is not None:
            self.clock.lines += self.tenant.batches[number].lines
            self.seen[part].setdefault(number, found)

    def whole(self) -> bool:
        """Every batch was mined in both parts."""
        return all(len(seen) == len(self.expected) for seen in self.seen.values())


class Probation(threading.Thread):
    """A tenant that has proven nothing: one call at a time, and only as long as `gate` is open.

    A batch that fails is tried again later, after the others; one that kills its workers is not."""

    def __init__(self, tenant: logmine.Tenant, pool: Any, breaker: CircuitBreaker, gate: threading.Event) -> None:
        super().__init__(name=f"logmine-{tenant.name}", daemon=True)
        self.tenant, self.breaker, self.gate = tenant, breaker, gate
        self.calls_of = pool.options(breaker=breaker)
        self.limit = RateLimit(breaker.name, RATE)
        self.rules = tenant.rules
        self.found: dict[int, logmine.Found] = {}
        self.quarantined: dict[int, PoisonMessage] = {}
        self.counts: Counter[str] = Counter()
        self.mistake: BaseException | None = None
        self.over = threading.Event()
        self.at_rest = threading.Event()  # no call of it is under way
        self._queue = deque(range(len(tenant.batches)))

    def run(self) -> None:
        try:
            while not self.over.is_set():
                if self.gate.is_set() and self._queue:
                    self.at_rest.clear()
                    if self.gate.is_set():
                        self.try_one(self._queue.popleft())
                        continue
                self.at_rest.set()
                self.gate.wait(TICK_S) if self._queue else self.over.wait(TICK_S)
        except BaseException as error:
            self.mistake = error
        finally:
            self.at_rest.set()

    def try_one(self, number: int) -> None:
        batch = self.tenant.batches[number]
        rules = self.rules
        self.limit.acquire()
        try:
            future = self.calls_of.submit(logmine.mine, rules, batch.text)
        except CircuitOpen as refusal:
            self.counts["refused"] += 1
            self._queue.appendleft(number)
            self.at_rest.set()
            self.over.wait(min(refusal.retry_after or TICK_S, TICK_S))
            return
        try:
            found = future.result()
        except PoisonMessage as error:
            self.quarantine(number, error)
            return
        except (TaskTimeout, MemoryError, WorkerCrashed) as error:
            self.counts[type(error).__name__] += 1
        else:
            self.counts["answers"] += 1
            if rules is self.rules:
                self.found[number] = found
        self._queue.append(number)

    def quarantine(self, number: int, error: PoisonMessage) -> None:
        """It is not given to a worker again."""
        self.quarantined[number] = error
        how = error.signal.name if error.signal else f"exit code {error.exitcode}"
        batch = self.tenant.batches[number].origin
        note(QUARANTINED, f"{POOL}{self.tenant.name}", "task", f"{batch}, {error.attempts} x {how}", "tried")

    def mend(self, rules: tuple[logmine.Rule, ...]) -> None:
        """What was found by the old ones counts no more."""
        self.rules = rules
        self.found = {}
        note(MENDED, f"{POOL}{self.tenant.name}", "rules", "mended", "broken")
