"""What a circuit breaker does, as simply as it can be said: the model that the real one is compared with.

Times are whole nanoseconds. A window keeps every result, and is counted anew each time. Rules: resilience4j's
CircuitBreaker; docs/resilience-breaker.md.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

CLOSED, OPEN, HALF, FORCED, DISABLED = "closed", "open", "half_open", "forced_open", "disabled"
GOOD, BAD, NOTHING = "successes", "failures", "ignored"


class Refused(Exception):
    """Its argument: nanoseconds until it may be asked again; None: only a reset helps."""


@dataclass(eq=False)
class Ticket:
    era: int
    start: int


@dataclass
class BreakerModel:
    rules: Any  # failure_threshold, reset, window, ...: times in ns, None where there is none
    state: str = CLOSED
    era: int = 0
    row: int = 0
    attempt: int = 0
    until: int = 0
    results: list[tuple[int, bool, bool]] = field(default_factory=list)  # (when, failed, slow)
    trials: list[tuple[Ticket, int]] = field(default_factory=list)  # (ticket, until)
    counters: Counter[str] = field(default_factory=Counter)
    changes: list[tuple[str, str]] = field(default_factory=list)

    def enter(self, state: str, now: int) -> None:
        self.state, self.era, self.row, self.results = state, self.era + 1, 0, []
        self.trials = []
        if state == OPEN:
            self.attempt += 1
            wait = self.rules.reset * self.rules.backoff ** (self.attempt - 1)
            self.until = now + int(min(wait, self.rules.reset_max))
        elif state != HALF:
            self.attempt = 0

    def observed(self, before: str) -> None:
        if self.state != before:
            self.changes.append((before, self.state))
            if self.state in (OPEN, CLOSED):
                self.counters["opened" if self.state == OPEN else "closed"] += 1

    def put(self, state: str, now: int) -> None:
        """By hand."""
        before = self.state
        if state == before == OPEN:
            self.attempt -= 1
        self.enter(state, now)
        self.observed(before)

    def window(self, now: int) -> list[tuple[int, bool, bool]]:
        if self.rules.window == "time" and self.state == CLOSED:
            oldest = now // self.rules.bucket - self.rules.size
            return [result for result in self.results if result[0] // self.rules.bucket > oldest]
        return self.results[-self.rules.size :] if self.state == CLOSED else self.results

    def rate_is_reached(self, now: int) -> bool:
        results, rules = self.window(now), self.rules
        failed, slow = (sum(result[which] for result in results) for which in (1, 2))
        return (rules.failure_rate is not None and failed / len(results) >= rules.failure_rate) or (
            rules.slow_rate is not None and slow / len(results) >= rules.slow_rate
        )

    @property
    def needed(self) -> int:
        """Trials with a result after which a window has a verdict."""
        return max(min(self.rules.min_calls, self.rules.half_open_max), self.rules.success_threshold)

    def admit(self, now: int) -> Ticket:
        before = self.state
        try:
            return self._admit(now)
        except Refused:
            self.counters["refused"] += 1
            raise
        finally:
            self.observed(before)

    def _admit(self, now: int) -> Ticket:
        if self.state == FORCED:
            raise Refused(None)
        for ticket, until in list(self.trials):
            if now > until and self.state == HALF:
                self.trials.remove((ticket, until))
                self.counters["lost"] += 1
                self.judge(True, self.rules.slow is not None, now)
        if self.state == OPEN and now <= self.until:
            raise Refused(self.until - now)
        if self.state == OPEN:
            self.enter(HALF, now)
        if self.state != HALF:
            return Ticket(self.era, now)
        most = self.rules.half_open_max
        enough = max(most, self.needed) - len(self.results) if self.rules.window else most
        if len(self.trials) >= min(most, enough):
            raise Refused(min(self.rules.reset, min(until for _, until in self.trials) - now))
        ticket = Ticket(self.era, now)
        self.trials.append((ticket, now + self.rules.trial))
        self.counters["trials_begun"] += 1
        return ticket

    def judge(self, failed: bool, slow: bool, now: int) -> None:
        """The result of a trial."""
        if self.rules.window is None:
            self.row += 1
            if failed or slow:
                self.enter(OPEN, now)
            elif self.row >= self.rules.success_threshold:
                self.enter(CLOSED, now)
            return
        self.results.append((now, failed, slow))
        if len(self.results) >= self.needed:
            self.enter(OPEN if self.rate_is_reached(now) else CLOSED, now)

    def settle(self, ticket: Ticket, outcome: str, now: int) -> None:
        before, rules = self.state, self.rules
        slow = rules.slow is not None and outcome != NOTHING and now - ticket.start > rules.slow
        self.counters[outcome] += 1
        if slow:
            self.counters["slow"] += 1
        held: list[Any] = [pair for pair in self.trials if pair[0] is ticket]
        if ticket.era != self.era or (self.state == HALF and not held):
            self.counters["late"] += 1
        elif self.state == HALF:
            self.trials.remove(held[0])
            if outcome != NOTHING:
                self.judge(outcome == BAD, slow, now)
        elif self.state == CLOSED and outcome != NOTHING:
            self.results.append((now, outcome == BAD, slow))
            self.row = self.row + 1 if outcome == BAD or slow else 0
            least = min(rules.min_calls, rules.size) if rules.window == "calls" else rules.min_calls
            full = rules.window is not None and len(self.window(now)) >= least and self.rate_is_reached(now)
            if full or (rules.window is None and self.row >= rules.failure_threshold):
                self.enter(OPEN, now)
        self.observed(before)
