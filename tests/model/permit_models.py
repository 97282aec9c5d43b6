"""What a bulkhead and a rate limit do, as simply as it can be said: the models that the real ones are compared with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction


@dataclass
class BulkheadModel:
    """Permits are worth the same; who waits stands in a line."""

    limit: int
    most_waiting: int
    used: int = 0
    line: list[int] = field(default_factory=list)  # those that wait, the first first
    high_water: int = 0
    counters: Counter[str] = field(default_factory=Counter)

    def take(self, who: int | None) -> str:
        """taken, waits or refused. Who is None does not wait, and goes by those that do."""
        before = 0 if who is None else self.line.index(who) if who in self.line else len(self.line)
        if self.limit - self.used > before:
            self.used += 1
            self.high_water = max(self.high_water, self.used)
            self.counters["taken"] += 1
            if who in self.line:
                self.line.remove(who)
            return "taken"
        room = self.most_waiting and self.most_waiting + max(self.limit - self.used, 0)  # some need not wait any more
        if who is None or (who not in self.line and len(self.line) >= room):
            self.counters["refused"] += 1
            return "refused"
        if who not in self.line:
            self.line.append(who)
            self.counters["waited"] += 1
        return "waits"

    def give_back(self) -> None:
        self.used -= 1

    def leave(self, who: int, timed_out: bool) -> None:
        if who in self.line:
            self.line.remove(who)
        self.counters["timed_out"] += timed_out


@dataclass
class BucketModel:
    """A bucket that is filled continuously, as exact fractions of a token; below 0 are those that wait."""

    token_ns: int
    burst: int
    level: Fraction = Fraction(0)
    when: int = 0
    counters: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.level = Fraction(self.burst)

    def pass_time(self, now: int) -> None:
        self.level = min(self.level + Fraction(now - self.when, self.token_ns), Fraction(self.burst))
        self.when = now

    def take(self, tokens: int, now: int, patience: int | None) -> tuple[bool, int]:
        """Whether they were taken, and the nanoseconds until they are there."""
        self.pass_time(now)
        missing = max(tokens - self.level, Fraction(0)) * self.token_ns
        assert missing.denominator == 1, "whole nanoseconds, as times are"
        wait = int(missing)
        if patience is not None and wait > patience:
            self.counters["refused"] += 1
            return False, wait
        self.level -= tokens
        self.counters["taken"] += tokens
        self.counters["waited"] += wait > 0
        return True, wait

    def tokens(self, now: int) -> int:
        self.pass_time(now)
        return max(int(self.level // 1), 0)
